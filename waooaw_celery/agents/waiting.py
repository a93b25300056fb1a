"""How a caller waits for answers: it blocks its thread, or it is awaited.

An operation that waits is a generator. It sends its requests and yields them. The caller's class waits until the
answers have arrived or the time is over, and resumes the operation, which returns its result, or yields a Pause
after which it sends again. When the caller no longer waits, the class closes the operation, which drops its
requests.

So each operation is written once, for the blocking and the asyncio classes. Each such class has the attribute
``operations``: `RequestResponseHandler` and `AgentClient` block, the classes of `aio` are awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from waooaw_celery.agents.arrivals import completed
from waooaw_celery.agents.requests.request_retries import Pause
from waooaw_celery.agents.requests.request_sender import PendingRequest, check_may_block
from waooaw_celery.worker.execution.threads import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

#: An operation that waits: it yields the requests that it sent, or a pause, and returns its result.
RequestSteps: TypeAlias = Generator[Sequence[PendingRequest] | Pause, None, T]


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
        waits = next(steps)
        while True:
            try:
                _wait(waits)
            except BaseException:  # the thread that waits is told to end
                steps.close()
                raise
            try:
                waits = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result

    return call


def _wait(requests: Sequence[PendingRequest] | Pause) -> None:
    """Wait until all answers have arrived, or the time is over."""
    if isinstance(requests, Pause):
        requests.sleep(requests.seconds)
        return
    for each in requests:
        with suppress(TimeoutError, CancelledError):  # the operation looks at the request
            each.answer.exception(each.left)


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
            await completed(sending)
            waits = sending.result()
            while True:
                if isinstance(waits, Pause):
                    await asyncio.sleep(waits.seconds)
                    sending = run_in_thread(next, steps)  # it sends again
                    await completed(sending)
                    waits = sending.result()
                    continue
                for each in waits:
                    if not await completed(each.answer, each.left):
                        break
                try:
                    waits = next(steps)
                except StopIteration as end:
                    result: T = end.value
                    return result
        except asyncio.CancelledError:
            if not sending.cancel():  # it is being sent, or was
                sending.add_done_callback(partial(_close, steps))
            raise

    return call


def _close(steps: RequestSteps[Any], sending: Future[Any]) -> None:
    """Close an operation that nobody awaits any more, once its requests were sent."""
    if not sending.cancelled() and sending.exception() is None:
        steps.close()
