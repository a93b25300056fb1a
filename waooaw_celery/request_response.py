"""Ask an agent, get its answer: the result, the error over there, or the timeout."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from waooaw_celery.answers import Answered
from waooaw_celery.app import AgentApp
from waooaw_celery.calls import Call
from waooaw_celery.errors import (
    BackendUnavailable,
    BlockingRequest,
    ConfigurationError,
    InvalidMessage,
    RequestTimeout,
    WaooawError,
)
from waooaw_celery.message import TYPE_NAMES, Message, MessageType, Priority
from waooaw_celery.response import Response, outcome
from waooaw_celery.routing import HandlerName
from waooaw_celery.values import JSON, check_agent_name, json_copy
from waooaw_celery.worker.loop import on_loop
from waooaw_celery.worker.task import current_task

Params = Mapping[str, JSON] | None


@dataclass(frozen=True, slots=True)
class Asked:
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
    answer: Future[Answered]
    timeout: float
    began: float

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self.began + self.timeout - time.monotonic(), 0.0)


class RequestResponseHandler:
    """Asks agents and waits for their answers, which come through Celery's result backend.

    May be used in a handler: what is left of its own caller's time bounds the request, and an agent that waits in
    this chain of requests already cannot be asked. The worker process that waits handles nothing else meanwhile;
    in an ``async def`` handler, await ``waooaw_celery.aio``.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = app

    def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> JSON:
        """Ask and return the answer.

        Args:
            to_agent: who is asked.
            method: name of a method there.
            params: its keyword arguments.
            from_agent: who asks; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``. The request expires with it.
            priority: how urgent.

        Raises:
            RequestTimeout: no answer in time; the agent will not begin it any more.
            RemoteError: the method failed there.
            Expired: the agent dropped it, since its time was over.
            UnknownMethod: the agent has no such method.
            UnknownAgent: nobody ever declared it.
            CircularRequest: the agent waits for the answer of this handler itself.
            BackendUnavailable: the result backend does not answer.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        return result_of(
            self.send_request(to_agent, method, params, from_agent=from_agent, timeout=timeout, priority=priority)
        )

    def send_request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Response:
        """Ask and return what came of it; what fails on the other side is in the response, not raised.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest: known before it is sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        answers = self.broadcast_request(
            [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return answers[to_agent]

    def broadcast_request(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> dict[str, Response]:
        """Ask several agents at once and return what came of each, after no more than the timeout in all.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest: of one of them; then nobody was asked.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        if on_loop():
            raise BlockingRequest(
                "a request that blocks would stop every coroutine of this process: in an async def handler, "
                "await agent.aio.request(...) or waooaw_celery.aio.RequestResponseHandler"
            )
        asked = self.ask(to_agents, method, params, from_agent=from_agent, timeout=timeout, priority=priority)
        return {each.agent: self._wait(each) for each in asked}

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
    ) -> list[Asked]:
        """Send a request to each agent and return at once: the part of every form that is not waiting.

        Raises:
            As ``broadcast_request``.
        """
        if isinstance(to_agents, str) or not to_agents:
            raise InvalidMessage(f"to_agents must be a list of at least one agent, not {to_agents!r}")
        began = time.monotonic()
        self._check_backend()
        arguments = json_copy(dict(params or {}), "params")
        targets = [_method(name, method) for name in dict.fromkeys(to_agents)]
        call, limit = self._call(targets, self._limit(timeout), stream)
        for target in targets:
            self.app.registry.check_handler(target)
        batch = [
            (
                target,
                self.app.complete(
                    target,
                    Message(
                        from_agent=from_agent or self.app.speaker(target),
                        to_agent=target.agent,
                        message_type=MessageType.QUERY,
                        payload=arguments,
                        priority=priority,
                        ttl_seconds=limit,
                    ),
                ),
            )
            for target in targets
        ]
        answers: dict[str, Future[Answered]] = {}
        try:
            for _, message in batch:
                answers[message.message_id] = self.app.answers.expect(message.message_id, on_chunk)
            self.app.send_messages(batch, call)
        except BaseException:
            for message_id in answers:
                self.app.answers.drop(message_id)
            raise
        return [
            Asked(message.to_agent, message.message_id, answers[message.message_id], limit, began)
            for _, message in batch
        ]

    def response(self, asked: Asked) -> Response:
        """Tell what came of a request whose answer is there, or for which there is no more time."""
        self.app.answers.drop(asked.message_id)
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
            result, problem = outcome(asked.agent, asked.message_id, asked.answer.result())
        return Response(
            agent=asked.agent,
            message_id=asked.message_id,
            result=result,
            error=problem,
            seconds=time.monotonic() - asked.began,
        )

    def _wait(self, asked: Asked) -> Response:
        try:
            wait([asked.answer], asked.left)
        except BaseException:  # whoever waits is told to end
            self.app.answers.drop(asked.message_id)
            raise
        return self.response(asked)

    def _call(self, targets: Sequence[HandlerName], timeout: float, stream: bool) -> tuple[Call, float]:
        """Return who waits for the answers, and for how long, when this is asked by a handler that is awaited.

        Raises:
            CircularRequest: one of those who are asked waits already.
            RequestTimeout: nobody waits for the handler any more.
        """
        task = current_task()
        if task is None:
            return Call(stream=stream), timeout
        call = Call(waiting=(*(task.call.waiting if task.call else ()), task.agent), stream=stream)
        for target in targets:
            call.check(target.agent)
        until = task.awaited_until()
        if until is None:
            return call, timeout
        left = (until - datetime.now(UTC)).total_seconds()
        if left <= 0:
            raise RequestTimeout(f"the caller of {task.name} no longer waits, so nobody else is asked")
        return call, min(timeout, left)

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


def result_of(response: Response) -> JSON:
    """Return the result, or raise the error, of a response."""
    if response.error is not None:
        raise response.error
    return response.result


def _method(agent: str, method: str) -> HandlerName:
    check_agent_name(agent, "to_agent")
    target = HandlerName.parse(f"{agent}.{method}") if isinstance(method, str) else None
    if target is None or target.handler in TYPE_NAMES:
        raise InvalidMessage(f"method must be the name of a method of {agent!r}, not {method!r}")
    return target
