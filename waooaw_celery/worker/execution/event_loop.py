"""The event loop of a process, on which its ``async def`` handlers run. It lives as long as the process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from waooaw_celery.errors import HandlerExited
from waooaw_celery.messages.log.hiding import hidden_error
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.execution.blocked_loop import LoopWatch

logger = get_logger(__name__)

T = TypeVar("T")

#: Seconds that a cancelled handler has for cleaning up when its process must end.
_GRACE_SECONDS = 1.0
#: Seconds for which ``close`` waits for the loop's thread.
_CLOSE_SECONDS = 5.0


class HandlerEventLoop:
    """A thread with an event loop, and the handlers that run on it, by message id.

    The loop never changes. So a handler can leave clients and pools open for the next one.

    Args:
        stall_seconds: for which a handler may block the loop before a warning is logged.
    """

    def __init__(self, stall_seconds: float = 60.0) -> None:
        self._running: dict[str, RunningHandler[Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="waooaw-handlers", daemon=True)
        self._closing = False
        self._thread.start()
        self._watch = LoopWatch(self._loop, self._thread.ident, stall_seconds)

    def run(
        self,
        message_id: str,
        coroutine: Coroutine[Any, Any, T],
        soft: float | None = None,
        hard: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> T:
        """Run a handler's coroutine in the context of this thread, and wait for its result.

        What is raised in this thread meanwhile, such as Celery's soft time limit, cancels the coroutine. The
        coroutine may clean up first, or return a result all the same.

        Args:
            message_id: id of the message that it handles.
            coroutine: the handler's.
            soft: seconds after which it is cancelled; None: never.
            hard: seconds after which it is cancelled and no longer waited for; None: never.
            cancelled: returns whether the message was cancelled before its handler was registered here.

        Returns:
            What the coroutine returns.

        Raises:
            SoftTimeLimitExceeded, TimeLimitExceeded: it ran too long.
            HandlerCancelled: ``cancel`` was called for its message.
            HandlerExited: it cancelled itself, or called ``sys.exit()``.
        """
        handler = RunningHandler(self._loop, coroutine)
        self._running[message_id] = handler
        try:
            if cancelled():
                self.cancel(message_id)
            return handler.outcome(soft, hard)
        finally:
            if self._running.get(message_id) is handler:
                del self._running[message_id]

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self._loop

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop that belongs to no message, and return the future of its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def cancel(self, message_id: str) -> bool:
        """Cancel the handler of a message, and return whether one was running."""
        handler = self._running.get(message_id)
        if handler is None:
            return False
        handler.cancel(HandlerCancelled("it was cancelled"))
        return True

    def runs_here(self) -> bool:
        """Return whether the calling code runs on this loop."""
        return threading.current_thread() is self._thread

    def blocked_seconds(self) -> float:
        """Return for how many seconds a handler has blocked the loop; 0: none does."""
        return self._watch.blocked_seconds()

    def close(self) -> None:
        """Cancel the background tasks that handlers have left, and end the thread."""
        self._closing = True
        self._watch.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._closing:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # of a background task of a handler
                logger.warning(
                    "a background task of a handler raised %s; the event loop continues",
                    hidden_error(error),
                    extra={"action": "background_task_exited"},
                )
        self._loop.run_until_complete(self._clean_up())
        self._loop.close()

    async def _clean_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
        await self._loop.shutdown_asyncgens()


class HandlerCancelled(Exception):
    """The message of the running handler was cancelled."""


class RunningHandler(Generic[T]):
    """One handler's coroutine on the loop, and the thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._done: Future[T] = Future()
        self._cause: BaseException | None = None
        # The handle copies the context of this thread, and the task copies that of the handle.
        loop.call_soon_threadsafe(self._start, coroutine)

    def outcome(self, soft: float | None, hard: float | None) -> T:
        """Wait for the coroutine, and return its result or raise its error.

        Args:
            soft: seconds after which it is cancelled; None: never.
            hard: seconds after which it is cancelled and no longer waited for; None: never.
        """
        started_at = time.monotonic()
        limits = [
            (seconds, error)
            for seconds, error in ((soft, SoftTimeLimitExceeded(soft)), (hard, TimeLimitExceeded(hard)))
            if seconds is not None
        ]
        for seconds, error in sorted(limits, key=lambda limit: limit[0]):
            try:
                return self._wait(started_at + seconds - time.monotonic())
            except _StillRunning:
                self.cancel(error)
        try:
            return self._wait(None if hard is None else _GRACE_SECONDS)
        except _StillRunning:  # it ignores the cancellation, and nobody waits for it any more
            raise TimeLimitExceeded(hard) from None

    def cancel(self, cause: BaseException) -> None:
        """Cancel the coroutine.

        Args:
            cause: what ``outcome`` raises, unless the coroutine returns or raises otherwise; the first counts.
        """
        self._cause = self._cause or cause
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(_without_exit(coroutine))
        self._task.add_done_callback(self._finish)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._done.set_exception(
                self._cause or HandlerExited("the handler's own code cancelled its coroutine")
            )
        elif (error := task.exception()) is not None:
            self._done.set_exception(error)
        else:
            self._done.set_result(task.result())

    def _wait(self, seconds: float | None) -> T:
        """Wait for the coroutine, and return its result or raise its error.

        Raises:
            _StillRunning: it has not ended within this many seconds.
        """
        try:
            return self._done.result(seconds)
        except BaseException as error:
            if self._done.done() and error is self._done.exception():
                raise
            if isinstance(error, TimeoutError):
                raise _StillRunning from None
            # A signal raised it in this thread: Celery's soft time limit, or the end of the process.
            self.cancel(error)
            return self._wait_for_clean_up(error)

    def _wait_for_clean_up(self, error: BaseException) -> T:
        # After a soft limit, the handler has until the hard limit, which ends the process.
        grace = None if isinstance(error, SoftTimeLimitExceeded) else _GRACE_SECONDS
        try:
            return self._done.result(grace)
        except TimeoutError as late:
            if self._done.done() and late is self._done.exception():
                raise
            raise error from None


class _StillRunning(Exception):
    """The coroutine has not ended."""


async def _without_exit(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a handler, and turn its ``sys.exit()`` into an error, which does not end the loop."""
    try:
        return await coroutine
    except SystemExit as error:
        kind = type(error).__name__
        raise HandlerExited(f"the handler raised {kind}: it called sys.exit({error.code!r})") from error
    except KeyboardInterrupt as error:
        raise HandlerExited("the handler raised KeyboardInterrupt") from error


_lock = threading.Lock()
_loop: HandlerEventLoop | None = None


def handler_event_loop(stall_seconds: float = 60.0) -> HandlerEventLoop:
    """Return the event loop of this process. The first call creates it, after the pool has forked.

    Args:
        stall_seconds: for which a handler may block the loop before a warning is logged.
    """
    global _loop
    with _lock:
        if _loop is None:
            _loop = HandlerEventLoop(stall_seconds)
        return _loop


def cancel_handler(message_id: str) -> bool:
    """Cancel the coroutine that handles a message in this process, and return whether there was one."""
    return _loop is not None and _loop.cancel(message_id)


def is_on_event_loop() -> bool:
    """Return whether the calling code is an ``async def`` handler, or called by one."""
    return _loop is not None and _loop.runs_here()


def blocked_seconds() -> float:
    """Return for how many seconds a handler has blocked the event loop of this process; 0: none does."""
    loop = _loop
    return 0.0 if loop is None else loop.blocked_seconds()


def close_event_loop(**_: Any) -> None:
    """End the event loop of this process, if it has one."""
    global _loop
    with _lock:
        loop, _loop = _loop, None
    if loop is not None:
        loop.close()


def _forget_loop() -> None:
    """Forget the parent's loop in a forked process, which does not have its thread."""
    global _loop, _lock
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_loop)
