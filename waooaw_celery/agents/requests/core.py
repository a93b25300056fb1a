"""How a request is sent, and what came of it: what every form of asking shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from celery import Task

from waooaw_celery.agents.requests.response import Response, outcome_of
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import (
    BackendUnavailable,
    BlockingCall,
    ConfigurationError,
    InvalidMessage,
    RequestTimeout,
    WaooawError,
)
from waooaw_celery.messages.message import DeliveryReceipt, Message, MessageType, Priority, receipt_of
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.reply_to import ReplyTo
from waooaw_celery.messages.validation import JSON, check_agent_name, json_copy
from waooaw_celery.results.collector import ResultMessage
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.execution.event_loop import is_on_event_loop

Params = Mapping[str, JSON] | None


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request that was sent, and whose answer is awaited.

    Attributes:
        agent: who was asked.
        message_id: of the request.
        answer: settled by the thread that takes the answers.
        timeout: seconds that the caller waits in all.
        began: when it began to wait, by the monotonic clock.
    """

    agent: str
    message_id: str
    answer: Future[ResultMessage]
    timeout: float
    began: float

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self.began + self.timeout - time.monotonic(), 0.0)


class RequestSender:
    """Sends requests, and tells what came of each.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "RequestResponseHandler")

    def ask(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
        stream: bool = False,
        on_chunk: Callable[[Any], None] | None = None,
    ) -> list[PendingRequest]:
        """Send a request to each agent and return at once.

        Args:
            to_agents: who is asked.
            method: name of a method there.
            params: its keyword arguments.
            from_agent: who asks; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``.
            priority: how urgent.
            stream: whether the answer is taken in parts.
            on_chunk: called with each part, in the thread of the answers.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest: of one of them; then nobody was asked.
            BackendUnavailable, BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could
                not be sent.
        """
        began = time.monotonic()
        self._check_backend()
        targets = self._targets(to_agents, method)
        call, limit = self._call(targets, self._limit(timeout), stream)
        batch = self._messages(targets, params, from_agent, limit, priority)
        answers: dict[str, Future[ResultMessage]] = {}
        try:
            for _, message in batch:
                answers[message.message_id] = self.app.result_collector.expect(
                    message.message_id, message.to_agent, on_chunk
                )
            self.app.send_messages(batch, call)
        except BaseException:
            for message_id in answers:
                self.app.result_collector.drop(message_id)
            raise
        return [
            PendingRequest(message.to_agent, message.message_id, answers[message.message_id], limit, began)
            for _, message in batch
        ]

    def ask_for_reply(
        self,
        to_agent: str,
        method: str,
        params: Params,
        *,
        from_agent: str | None,
        timeout: float | None,
        priority: Priority,
        on_reply: Task[Any, Any] | str,
    ) -> DeliveryReceipt:
        """Send a request whose answer comes as a message, and return its receipt.

        Args:
            to_agent, method, params, from_agent, priority: as ``ask``.
            timeout: seconds after which it is not begun any more.
            on_reply: the handler of the asking agent that gets the Response, or its name.

        Raises:
            UnknownMethod: the asking agent has no such handler. The rest as ``ask``.
        """
        targets = self._targets([to_agent], method)
        [(target, message)] = self._messages(targets, params, from_agent, self._limit(timeout), priority)
        handler = HandlerName(
            message.from_agent, on_reply if isinstance(on_reply, str) else getattr(on_reply, "handler", "")
        )
        self.app.registry.check_handler(handler)
        self.app.send_messages([(target, message)], ReplyTo(on_reply=str(handler)))
        return receipt_of(message, target.handler)

    def response(self, asked: PendingRequest) -> Response:
        """Tell what came of a request whose answer is there, or for which there is no more time."""
        self.app.result_collector.drop(asked.message_id)
        result: JSON = None
        problem: WaooawError | None
        if not asked.answer.done():
            problem = RequestTimeout(
                f"{asked.agent!r} did not answer request {asked.message_id} within {asked.timeout:g} s"
            )
        elif (cause := asked.answer.exception()) is not None:
            problem = BackendUnavailable(
                f"the answer of {asked.agent!r} to {asked.message_id} could not be fetched: {cause}"
            )
            problem.__cause__ = cause
        else:
            result, problem = outcome_of(asked.agent, asked.message_id, asked.answer.result())
        return Response(
            agent=asked.agent,
            message_id=asked.message_id,
            result=result,
            error=problem,
            seconds=time.monotonic() - asked.began,
        )

    def _call(self, targets: Sequence[HandlerName], timeout: float, stream: bool) -> tuple[ReplyTo, float]:
        """Return who waits for the answers, and for how long, when this is asked by a handler that is awaited.

        Raises:
            CircularRequest: one of those who are asked waits already.
            RequestTimeout: nobody waits for the handler any more.
        """
        task = current_task()
        if task is None:
            return ReplyTo(stream=stream), timeout
        call = ReplyTo(waiting=(*(task.call.waiting if task.call else ()), task.agent), stream=stream)
        for target in targets:
            call.check(target.agent)
        until = task.awaited_until()
        if until is None:
            return call, timeout
        left = (until - self.app.reference_clock.now()).total_seconds()
        if left <= 0:
            raise RequestTimeout(f"the caller of {task.name} no longer waits, so nobody else is asked")
        return call, min(timeout, left)

    def _targets(self, to_agents: Sequence[str], method: str) -> list[HandlerName]:
        if isinstance(to_agents, str) or not to_agents:
            raise InvalidMessage(f"to_agents must be a list of at least one agent, not {to_agents!r}")
        targets = [_method(name, method) for name in dict.fromkeys(to_agents)]
        for target in targets:
            self.app.registry.check_handler(target)
        return targets

    def _messages(
        self,
        targets: Sequence[HandlerName],
        params: Params,
        from_agent: str | None,
        limit: float,
        priority: Priority,
    ) -> list[tuple[HandlerName, Message]]:
        """Return the request to each, ready to be sent."""
        arguments = json_copy(dict(params or {}), "params")
        messages = [
            Message(
                from_agent=from_agent or self.app.speaker(target),
                to_agent=target.agent,
                message_type=MessageType.QUERY,
                payload=arguments,
                priority=priority,
                ttl_seconds=limit,
            )
            for target in targets
        ]
        return [
            (target, self.app.complete(target, message)) for target, message in zip(targets, messages, strict=True)
        ]

    def _limit(self, timeout: float | None) -> float:
        limit = self.app.settings.request_timeout if timeout is None else timeout
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < 3.2e9:
            raise InvalidMessage(f"timeout must be a positive number of seconds, not {timeout!r}")
        return float(limit)

    def _check_backend(self) -> None:
        if not self.app.conf.result_backend or self.app.conf.result_backend.startswith("disabled"):
            raise ConfigurationError(
                "requests need a result backend to bring their answers: set result_backend "
                "(or CELERY_RESULT_BACKEND), such as redis://localhost:6379/0"
            )


def check_may_block() -> None:
    """Check that whoever waits here holds up nobody else.

    Raises:
        BlockingCall: it is a coroutine.
    """
    if is_on_event_loop():
        raise BlockingCall(
            "a request that blocks would stop every coroutine of this process: in an async def handler, "
            "await agent.aio.request(...) or waooaw_celery.agents.aio.RequestResponseHandler"
        )


def _method(agent: str, method: str) -> HandlerName:
    check_agent_name(agent, "to_agent")
    target = HandlerName.parse(f"{agent}.{method}") if isinstance(method, str) else None
    if target is None or takes_message(target.handler):
        raise InvalidMessage(f"method must be the name of a method of {agent!r}, not {method!r}")
    return target
