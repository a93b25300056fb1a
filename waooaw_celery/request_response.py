"""Ask an agent, get its answer: the result, the error over there, or the timeout."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery.backends.asynchronous import AsyncBackendMixin
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, allow_join_result
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from waooaw_celery.app import AgentApp
from waooaw_celery.errors import (
    BackendUnavailable,
    ConfigurationError,
    Expired,
    InvalidMessage,
    RemoteError,
    RequestTimeout,
    UnknownMethod,
    WaooawError,
)
from waooaw_celery.message import TYPE_NAMES, Message, MessageType, Priority
from waooaw_celery.routing import HandlerName
from waooaw_celery.values import JSON, check_agent_name, json_copy
from waooaw_celery.worker.signals import IGNORED, class_name

logger = logging.getLogger(__name__)

#: Seconds between two looks at the clock while waiting; an answer that arrives ends the waiting at once.
_LOOK_SECONDS = 0.1
#: What the result backends raise when they do not answer.
_BACKEND_ERRORS = (RedisError, OperationalError, OSError, RuntimeError)
#: Celery's states of a task that brought no result.
_FAILED = frozenset({"FAILURE", "RETRY", "REVOKED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What came of a request.

    Attributes:
        agent: who was asked.
        message_id: id of the request, and its correlation id.
        result: the answer, a JSON value; None when there is an error.
        error: RemoteError, RequestTimeout, Expired, UnknownMethod or BackendUnavailable; None when it went well.
        seconds: how long the caller waited.
    """

    agent: str
    message_id: str
    result: JSON
    error: WaooawError | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None


class RequestResponseHandler:
    """Asks agents and waits for their answers, which come through Celery's result backend.

    May be used in a handler; the worker process that waits handles nothing else meanwhile.

    Args:
        app: the application whose broker and result backend carry them.
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = app

    def request(
        self,
        to_agent: str,
        method: str,
        params: Mapping[str, JSON] | None = None,
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
            BackendUnavailable: the result backend does not answer.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        response = self.send_request(
            to_agent, method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        if response.error is not None:
            raise response.error
        return response.result

    def send_request(
        self,
        to_agent: str,
        method: str,
        params: Mapping[str, JSON] | None = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Response:
        """Ask and return what came of it; what fails on the other side is in the response, not raised.

        Raises:
            UnknownAgent, UnknownMethod: known before it is sent.
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
        params: Mapping[str, JSON] | None = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> dict[str, Response]:
        """Ask several agents at once and return what came of each, after no more than the timeout in all.

        Raises:
            UnknownAgent, UnknownMethod: one of them does not have it; then nobody was asked.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: it could not be sent.
        """
        if isinstance(to_agents, str) or not to_agents:
            raise InvalidMessage(f"to_agents must be a list of at least one agent, not {to_agents!r}")
        limit = self._check_timeout(timeout)
        self._check_backend()
        arguments = json_copy(dict(params or {}), "params")
        targets = [_method(name, method) for name in dict.fromkeys(to_agents)]
        for target in targets:
            self.app.registry.check_handler(target)
        began = time.monotonic()
        waiting = [(target.agent, self._ask(target, arguments, from_agent, limit, priority)) for target in targets]
        return {agent: _await(agent, result, began, limit) for agent, result in waiting}

    def _ask(
        self, target: HandlerName, params: JSON, from_agent: str | None, timeout: float, priority: Priority
    ) -> AsyncResult[Any]:
        message = Message(
            from_agent=from_agent or self.app.speaker(target),
            to_agent=target.agent,
            message_type=MessageType.QUERY,
            payload=params,
            priority=priority,
            ttl_seconds=timeout,
        )
        try:
            return self.app.send_task(str(target), (), params, message=message, ignore_result=False)
        except (RedisError, RuntimeError) as error:  # Celery subscribes to the answer before it publishes
            raise BackendUnavailable(f"no answer of {target.agent!r} could be awaited: {error}") from error

    def _check_timeout(self, timeout: float | None) -> float:
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


def _method(agent: str, method: str) -> HandlerName:
    check_agent_name(agent, "to_agent")
    target = HandlerName.parse(f"{agent}.{method}") if isinstance(method, str) else None
    if target is None or target.handler in TYPE_NAMES:
        raise InvalidMessage(f"method must be the name of a method of {agent!r}, not {method!r}")
    return target


def _await(agent: str, result: AsyncResult[Any], began: float, timeout: float) -> Response:
    """Wait for one answer until the time of all is over, and forget it in the backend."""
    value, error = _fetch(agent, result, max(began + timeout - time.monotonic(), 0.001), timeout)
    _forget(result)
    return Response(
        agent=agent, message_id=str(result.id), result=value, error=error, seconds=time.monotonic() - began
    )


def _fetch(agent: str, result: AsyncResult[Any], left: float, timeout: float) -> tuple[JSON, WaooawError | None]:
    """Return the answer or what went wrong, after no more than the seconds that are left."""
    try:
        _wait(result, left)
        return _outcome(agent, result)
    except TimeoutError:
        return None, RequestTimeout(f"{agent!r} did not answer request {result.id} within {timeout:g} s")
    except _BACKEND_ERRORS as cause:
        error = BackendUnavailable(f"the answer of {agent!r} to {result.id} could not be fetched: {cause}")
        error.__cause__ = cause
        return None, error


def _forget(result: AsyncResult[Any]) -> None:
    try:
        result.forget()
    except _BACKEND_ERRORS as error:  # the answer is not wrong for that, and expires by itself
        logger.warning("request %s was not forgotten: %s", result.id, error, extra={"action": "not_forgotten"})


def _wait(result: AsyncResult[Any], timeout: float) -> None:
    """Wait until the result is there.

    Celery's ``get`` looks at its timeout once a second only; this looks ten times as often.

    Raises:
        TimeoutError: it is not, after this many seconds.
    """
    backend = result.backend
    if not isinstance(backend, AsyncBackendMixin):  # a database: asked again and again
        with allow_join_result():  # Celery forbids waiting in a task; here the timeout bounds it
            try:
                result.get(timeout=timeout, propagate=False, interval=_LOOK_SECONDS)
            except CeleryTimeoutError as error:
                raise TimeoutError from error
        return
    backend.add_pending_result(result)
    consumer: Any = getattr(backend, "result_consumer")  # noqa: B009 - its type stubs do not know it
    consumer.on_wait_for_pending(result)
    for _ in consumer.drainer.drain_events_until(result.on_ready, timeout=timeout, interval=_LOOK_SECONDS):
        pass


def _outcome(agent: str, result: AsyncResult[Any]) -> tuple[JSON, WaooawError | None]:
    """Tell what the backend's record of the request means: its result, or its error."""
    state: str = result.state
    if state not in _FAILED:
        return result.result, None
    exception = result.result
    name, text = _class_and_text(exception, str(result.traceback or ""))
    if state == "REVOKED" and str(exception) == "expired":
        return None, Expired(f"{agent!r} dropped request {result.id}: its time was over before it was begun")
    if state == "REVOKED" and text.startswith(IGNORED):
        return None, RemoteError(agent, "Ignore", text.removeprefix(IGNORED))
    if name == "NotRegistered":
        return None, UnknownMethod(
            f"the worker of {agent!r} has no handler {exception}: restart it if it is older"
        )
    return None, RemoteError(agent, name, text, str(result.traceback or "") or None)


def _class_and_text(exception: Any, traceback: str) -> tuple[str, str]:
    """Return an exception's class name and text, from its traceback when Celery could not carry it itself."""
    name, text = class_name(exception), str(exception)
    if text.startswith("<class '"):
        found = re.findall(r"^(?:[\w.]+\.)?(\w+): (.*(?:\n(?!\w).*)*)", traceback, re.MULTILINE)
        if found:
            return str(found[-1][0]), str(found[-1][1]).strip()
    return name, text
