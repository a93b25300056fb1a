"""The operations of a request, each written once, for the blocking and the asyncio classes.

An operation that waits is a generator. It sends its requests and yields them. The caller's class waits until the
answers have arrived or the time is over, and resumes the operation, which returns its result. When the caller no
longer waits, the class closes the operation, which drops its requests.

Each such class has the attribute ``operations``: `RequestResponseHandler` and `AgentClient` block, the classes of
`aio` are awaited.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

from celery import Task

from waooaw_celery.agents.requests.core import Params, PendingRequest, RequestSender, check_may_block
from waooaw_celery.agents.requests.response import Response, result_of
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.execution.threads import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
AnyStream = TypeVar("AnyStream")

#: An operation that waits: it yields the requests that it sent, and returns its result.
RequestSteps: TypeAlias = Generator[Sequence[PendingRequest], None, T]


def direct(operation: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return a method that calls an operation which waits for no answer."""

    @wraps(operation)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return operation(self.operations, *args, **kwargs)

    return call


def blocking(operation: Callable[Concatenate[S, P], RequestSteps[T]]) -> Callable[Concatenate[Any, P], T]:
    """Return a method that blocks its thread until an operation's answers have arrived or its time is over."""

    @wraps(operation)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        check_may_block()
        steps = operation(self.operations, *args, **kwargs)
        requests = next(steps)
        try:
            concurrent.futures.wait([each.answer for each in requests], requests[0].left)
        except BaseException:  # the thread that waits is told to end
            steps.close()
            raise
        return _result(steps)

    return call


def in_thread(operation: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a coroutine that runs an operation in a thread, for an operation that waits for no answer."""

    @wraps(operation)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(run_in_thread(operation, self.operations, *args, **kwargs))

    return call


def awaited(
    operation: Callable[Concatenate[S, P], RequestSteps[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a coroutine that sends in a thread, and holds no thread while the answers are awaited."""

    @wraps(operation)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = operation(self.operations, *args, **kwargs)
        sending = run_in_thread(next, steps)
        try:
            requests = await asyncio.wrap_future(sending)
            done, _ = await asyncio.wait(
                [asyncio.wrap_future(each.answer) for each in requests], timeout=requests[0].left
            )
        except asyncio.CancelledError:
            sending.add_done_callback(partial(_close, steps))
            raise
        for each in done:
            each.exception()  # the operation reads it from the request; asyncio would log that nobody did
        return _result(steps)

    return call


def _result(steps: RequestSteps[T]) -> T:
    """Resume an operation, and return its result."""
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("an operation waits once")


def _close(steps: RequestSteps[Any], sending: Future[Any]) -> None:
    """Close an operation that nobody awaits any more, once its requests were sent."""
    if not sending.cancelled() and sending.exception() is None:
        steps.close()


class RequestOperations(Generic[AnyStream]):
    """The operations of a request.

    Args:
        app: the application whose broker and result backend carry the requests.
        stream_type: class of the streams that ``stream`` opens.
    """

    def __init__(self, app: AgentApp, stream_type: Callable[..., AnyStream]) -> None:
        self.app = require_agent_app(app, "RequestResponseHandler")
        self._sender = RequestSender(app)
        self._stream_type = stream_type

    def request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> RequestSteps[JSON]:
        """Request a method of an agent and return its result.

        Args:
            to_agent: the agent.
            method: name of one of its methods.
            params: the method's keyword arguments.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait; None: the setting ``waooaw_request_timeout``. The request expires with it.
            priority: how urgent the request is.

        Raises:
            RequestTimeout: no answer arrived in time; the agent will not begin the request any more.
            RemoteError: the method failed.
            Expired: the agent dropped the request because its time was over.
            UnknownMethod: the agent has no such method.
            UnknownAgent: the agent was never declared.
            CircularRequest: the agent itself waits for the handler that sends this request.
            BackendUnavailable: the result backend does not answer.
            RateLimitExceeded: the sender has reached its rate limit.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the request was not sent.
        """
        response = yield from self.send_request(
            to_agent, method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return result_of(response)

    def send_request(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> RequestSteps[Response]:
        """Request a method of an agent and return the Response, which holds the result or the error.

        The arguments are those of ``request``.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest, RateLimitExceeded: known before the request is sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the request was not sent.
        """
        responses = yield from self.broadcast_request(
            [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        return responses[to_agent]

    def broadcast_request(
        self,
        to_agents: Sequence[str],
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> RequestSteps[dict[str, Response]]:
        """Request a method of several agents at once and return the Response of each, by agent.

        The timeout bounds all of them together. The other arguments are those of ``request``.

        Raises:
            UnknownAgent, UnknownMethod, CircularRequest: of one of the agents; no request was sent.
            RateLimitExceeded: of all requests together; none was sent.
            BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: the requests were not sent.
        """
        requests = self._sender.send(
            to_agents, method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )
        try:
            yield requests
        except GeneratorExit:
            for each in requests:
                self.app.result_collector.drop(each.message_id)
            raise
        return {each.agent: self._sender.response(each) for each in requests}

    def stream(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> AnyStream:
        """Request a method of an agent and return its answer in parts, as the method's generator yields them.

        Iterate over the stream, best in a ``with`` statement; ``stream.result`` is the final result.

        Args:
            to_agent: the agent.
            method: name of one of its methods.
            params: the method's keyword arguments.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds to wait for the first part, and from each part to the next; None: the setting
                ``waooaw_request_timeout``. A request that is not begun within it expires.
            priority: how urgent the request is.

        Raises:
            RequestTimeout: while you iterate: a part did not arrive in time.
            StreamBroken: while you iterate: a part was lost, the agent began again, or too many parts wait.
            UnknownAgent, UnknownMethod, CircularRequest: known before the request is sent.
            The rest as ``request``.
        """
        return self._stream_type(
            self._sender, [to_agent], method, params, from_agent=from_agent, timeout=timeout, priority=priority
        )

    def request_later(
        self,
        to_agent: str,
        method: str,
        params: Params = None,
        *,
        on_reply: Task[Any, Any] | str,
        from_agent: str | None = None,
        timeout: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> DeliveryReceipt:
        """Request a method of an agent without waiting: the Response arrives as a message.

        The agent's worker sends the Response as soon as it has handled, failed or dropped the request. A worker
        that never starts again sends none.

        Args:
            to_agent: the agent.
            method: name of one of its methods.
            params: the method's keyword arguments.
            on_reply: the handler of the sender that gets the Response, registered with ``@agent.reply``, or its
                name.
            from_agent: the sender; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            timeout: seconds until the request expires; None: the setting ``waooaw_request_timeout``.
            priority: how urgent the request is.

        Returns:
            The receipt of the request.

        Raises:
            UnknownMethod: the agent has no such method, or the sender no such handler.
            UnknownAgent, BrokerUnavailable, StoreUnavailable, InvalidMessage, ConfigurationError: as ``request``.
        """
        return self._sender.send_for_reply(
            to_agent,
            method,
            params,
            on_reply=on_reply,
            from_agent=from_agent,
            timeout=timeout,
            priority=priority,
        )
