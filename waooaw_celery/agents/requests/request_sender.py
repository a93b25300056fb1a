"""Sends requests and makes their responses: blocking, awaited, streamed, or answered by a message."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from celery import Task

from waooaw_celery.agents.requests.request_targets import RequestTargets, Targets
from waooaw_celery.agents.requests.response import Response, outcome_of
from waooaw_celery.agents.requests.target_guard import Permit, TargetGuard
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.errors import (
    BackendUnavailable,
    BlockingCall,
    CircuitOpen,
    ConfigurationError,
    InvalidMessage,
    RequestTimeout,
    WaooawError,
)
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import DeliveryReceipt, receipt_of
from waooaw_celery.messages.reply_to import ReplyTo
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.results.pending import ResultMessage
from waooaw_celery.settings import ArgumentChecks
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.execution.event_loop import is_on_event_loop

Params = Mapping[str, JSON] | None
#: Requests, each with its method.
Batch: TypeAlias = list[tuple[HandlerName, Message]]

#: Seconds that preparing a request may take without being counted against its expiry.
NOTICED_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that was sent and has no answer yet.

    Attributes:
        agent: the requested agent.
        message_id: id of the request.
        answer: future of the answer, which the thread of the result collector completes.
        timeout: longest time that the caller waits, in seconds.
        began: when the caller began to wait, by the monotonic clock.
        permit: notes how the request ends.
    """

    agent: str
    message_id: str
    answer: Future[ResultMessage]
    timeout: float
    began: float
    permit: Permit

    @property
    def left(self) -> float:
        """Seconds until the timeout; 0 after it."""
        return max(self.began + self.timeout - time.monotonic(), 0.0)


class RequestSender:
    """Sends requests, and makes the response to each.

    Args:
        app: the application whose broker and result backend carry the requests.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "RequestResponseHandler")
        self._targets, self._guard = RequestTargets(app), TargetGuard(app)

    def send(
        self,
        to_agents: Sequence[str | CapabilityAddress],
        method: str | None,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        stream: bool = False,
        on_chunk: Callable[[Any], None] | None = None,
        ids: Mapping[str, Any] | None = None,
        breaker: bool = True,
        without: Mapping[str, str] = MappingProxyType({}),
    ) -> list[PendingRequest]:
        """Send a request to each agent, without waiting for the answers.

        Args:
            to_agents: the agents, or the capabilities that they must have.
            method: name of one of their methods; None: the method that is the capability.
            params: keyword arguments of the method.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``.
            priority: priority of the requests.
            stream: whether the answer is sent in parts.
            on_chunk: called with each part, in the thread of the result collector.
            ids: ids of the message, for a request to one agent: ``message_id``, ``correlation_id``, …
            breaker: whether the circuit breakers of the agents are asked, and told of the outcomes.
            without: agents that are not to be chosen for a capability, and why.

        Raises:
            UnknownAgent, UnknownMethod, NoAgentAvailable, CircularRequest, InvalidArguments, CircuitOpen,
                TooManyInFlight: for one of the agents; no request was sent.
            BackendUnavailable, BrokerUnavailable, StoreUnavailable, RateLimitExceeded, InvalidMessage,
                ConfigurationError: the requests were not sent.
        """
        began = time.monotonic()
        self._check_backend()
        seconds = self.seconds(timeout)

        def prepare(targets: Targets) -> tuple[ReplyTo, float, Batch]:
            reply_to, limit = self._reply_to(list(targets), seconds, stream)
            return reply_to, limit, self._messages(targets, params, from_agent, limit, priority, began, ids)

        (reply_to, limit, batch), permits = self._admitted(to_agents, method, prepare, breaker, without)
        answers: dict[str, Future[ResultMessage]] = {}
        try:
            for _, message in batch:
                answers[message.message_id] = self.app.result_collector.expect(
                    message.message_id, message.to_agent, on_chunk, None if stream else began + limit
                )
                if message.capability is not None:
                    self._count(message, answers[message.message_id], began + limit)
            self.app.publisher.publish(batch, reply_to)
        except BaseException as error:
            for permit in permits:
                permit.end(error)
            for message_id in answers:
                self.app.result_collector.drop(message_id)
                self.app.directory.end_request(message_id)
            raise
        return [
            PendingRequest(message.to_agent, message.message_id, answers[message.message_id], limit, began, permit)
            for (_, message), permit in zip(batch, permits, strict=True)
        ]

    def send_for_reply(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None,
        params: Params,
        *,
        from_agent: str | None,
        timeout: float | None,
        priority: Priority,
        on_reply: Task[Any, Any] | str,
        breaker: bool = True,
    ) -> DeliveryReceipt:
        """Send a request that is answered with a message, and return its receipt.

        Args:
            to_agent, method, params, from_agent, priority: as for ``send``.
            timeout: seconds until the request expires.
            on_reply: the sender's handler that gets the Response, or its name.
            breaker: whether the circuit breaker of the agent is asked, and told of a failure to send.

        Raises:
            UnknownMethod: the sender has no such handler. The rest as ``send``.
        """
        seconds = self.seconds(timeout)

        def prepare(targets: Targets) -> tuple[ReplyTo, float, Batch]:
            batch = self._messages(targets, params, from_agent, seconds, priority)
            [(_, message)] = batch
            handler = HandlerName(
                message.from_agent, on_reply if isinstance(on_reply, str) else getattr(on_reply, "handler", "")
            )
            self.app.registry.check_handler(handler)
            return ReplyTo(on_reply=str(handler)), seconds, batch

        (reply_to, _, batch), [permit] = self._admitted([to_agent], method, prepare, breaker, waits=False)
        try:
            self.app.publisher.publish(batch, reply_to)
        except BaseException as error:
            permit.end(error)
            raise
        permit.hand_over()
        [(target, message)] = batch
        return receipt_of(message, target.handler)

    def _admitted(
        self,
        to_agents: Sequence[str | CapabilityAddress],
        method: str | None,
        prepare: Callable[[Targets], tuple[ReplyTo, float, Batch]],
        breaker: bool,
        without: Mapping[str, str] = MappingProxyType({}),
        *,
        waits: bool = True,
    ) -> tuple[tuple[ReplyTo, float, Batch], list[Permit]]:
        """Return prepared requests and their permits.

        The circuit breaker of an agent that was chosen for a capability may have opened a moment ago: then another
        agent is chosen.

        Args:
            to_agents, method, without: as for ``send``.
            prepare: returns for the methods the reply-to, the seconds that their callers wait, and the requests.
            breaker: whether the circuit breakers of the agents are asked, and told of the outcomes.
            waits: whether a caller waits for the answers.
        """
        refused = dict(without)
        while True:
            targets = self._targets.of(to_agents, method, refused, breaker)
            prepared = prepare(targets)
            try:
                return prepared, self._guard.admit(prepared[2], prepared[1], breaker=breaker, waits=waits)
            except CircuitOpen as error:
                if not any(each.agent == error.agent and capability for each, capability in targets.items()):
                    raise
                refused[error.agent] = "its circuit breaker is open"

    def _count(self, message: Message, answer: Future[ResultMessage], until: float) -> None:
        """Count a request as a load of the agent that was chosen for it, until it is answered or times out."""
        directory = self.app.directory
        directory.begin_request(message.message_id, message.to_agent, until)
        answer.add_done_callback(lambda _: directory.end_request(message.message_id))

    def response(self, pending: PendingRequest) -> Response:
        """Return the response to a request that was answered or timed out.

        Args:
            pending: the request.
        """
        self.app.result_collector.drop(pending.message_id)
        result: JSON = None
        problem: WaooawError | None
        if not pending.answer.done():
            problem = RequestTimeout(
                f"{pending.agent!r} did not answer request {pending.message_id} within {pending.timeout:g} s"
            )
        elif (cause := pending.answer.exception()) is not None:
            problem = BackendUnavailable(
                f"the answer of {pending.agent!r} to {pending.message_id} could not be fetched: {cause}"
            )
            problem.__cause__ = cause
        else:
            result, problem = outcome_of(pending.agent, pending.message_id, pending.answer.result())
        pending.permit.end(problem)
        return Response(
            agent=pending.agent,
            message_id=pending.message_id,
            result=result,
            error=problem,
            seconds=time.monotonic() - pending.began,
        )

    def _reply_to(self, targets: Sequence[HandlerName], timeout: float, stream: bool) -> tuple[ReplyTo, float]:
        """Return the reply-to of a request and its timeout, bounded by that of the handler's own caller.

        Raises:
            CircularRequest: one of the agents already waits in this chain of requests.
            RequestTimeout: the caller of the running handler no longer waits.
        """
        task = current_task()
        if task is None:
            return ReplyTo(stream=stream), timeout
        reply_to = ReplyTo(waiting=(*(task.call.waiting if task.call else ()), task.agent), stream=stream)
        for target in targets:
            reply_to.check(target.agent)
        until = task.caller_deadline()
        if until is None:
            return reply_to, timeout
        left = (until - self.app.reference_clock.now()).total_seconds()
        if left <= 0:
            raise RequestTimeout(
                f"{task.name} may send no further request: the timeout of its own caller has passed"
            )
        return replace(reply_to, deadline=until if stream else None), min(timeout, left)

    def _messages(
        self,
        targets: Targets,
        params: Params,
        from_agent: str | None,
        limit: float,
        priority: Priority,
        began: float | None = None,
        ids: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Return the request to each agent, ready to be sent.

        Args:
            targets: the requested methods, each with the capability that the sender named, or None.
            params: the arguments.
            from_agent: the sender, or None.
            limit: seconds until the requests expire.
            priority: their priority.
            began: when the caller began to wait, by the monotonic clock; None: it does not wait.
            ids: ids of the message, or None.
        """
        if params is not None and not isinstance(params, Mapping):
            raise InvalidMessage(
                f"params must be a mapping of the method's parameters to values, such as {{'name': 'Ada'}}, "
                f"not {params!r:.80}"
            )
        arguments = json_copy(dict(params or {}), "params")
        if self.app.settings.check_arguments is ArgumentChecks.BOTH:
            for target in targets:
                self.app.contracts.check(target, arguments)
        spent = 0.0 if began is None else time.monotonic() - began
        if spent > NOTICED_SECONDS:  # the store was asked: the requests must not outlive their caller's wait
            limit -= spent
            if limit <= 0:
                raise RequestTimeout(
                    "the time of the request was over before it was sent: the store answered late"
                )
        messages = [
            Message(
                from_agent=from_agent or self.app.message_factory.sender_of(target),
                to_agent=target.agent,
                message_type=MessageType.QUERY,
                payload=arguments,
                priority=priority,
                ttl_seconds=limit,
                capability=capability,
                **{"message_id": self.app.result_collector.new_id(), **(ids or {})},
            )
            for target, capability in targets.items()
        ]
        completed: Batch
        completed = self.app.message_factory.complete_all(zip(targets, messages, strict=True))
        return completed

    def seconds(self, timeout: float | None) -> float:
        """Return the timeout of a request in seconds.

        Raises:
            InvalidMessage: it is not a positive number.
        """
        seconds = self.app.settings.request_timeout if timeout is None else timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9:
            raise InvalidMessage(f"timeout must be a positive number of seconds, not {timeout!r}")
        return float(seconds)

    def _check_backend(self) -> None:
        url = self.app.components.publish_settings.read().result_backend
        if not url or url.startswith("disabled"):
            raise ConfigurationError(
                "a request needs a result backend, and none is configured: set result_backend "
                "(or CELERY_RESULT_BACKEND), such as redis://localhost:6379/0"
            )


def check_may_block() -> None:
    """Check that the caller may block its thread.

    Raises:
        BlockingCall: the caller is a coroutine.
    """
    if is_on_event_loop():
        raise BlockingCall(
            "a blocking request would block all coroutines of this process: in an async def handler, "
            "await agent.aio.request(...) or waooaw_celery.agents.aio.RequestResponseHandler"
        )
