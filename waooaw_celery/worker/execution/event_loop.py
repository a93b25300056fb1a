"""The event loop of a process, on which its ``async def`` handlers run: one, for as long as the process lives."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from waooaw_celery.errors import HandlerExited
from waooaw_celery.worker.execution.blocked_loop import LoopWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a cancelled handler has for cleaning up when its process is told to end.
_GRACE = 1.0
#: Seconds that the loop's thread has to begin and to end.
_PATIENCE = 5.0


class HandlerEventLoop:
    """A thread with an event loop, and the handlers that run on it by the id of their message.

    Clients and pools that a handler opens stay usable for the next one, since the loop is never another.

    Args:
        stall_seconds: for which a handler may block the loop before the log tells of it.
    """

    def __init__(self, stall_seconds: float = 60.0) -> None:
        self._running: dict[str, Running[Any]] = {}
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
        """Run a handler's coroutine to its end, and wait for it in this thread, whose context it gets.

        Whatever is raised in this thread meanwhile, such as Celery's soft time limit, cancels the coroutine, which
        may clean up first, or answer all the same.

        Args:
            message_id: of the message that it handles.
            coroutine: the handler's.
            soft: seconds after which it is cancelled, or None.
            hard: seconds after which it is cancelled and no longer waited for, or None.
            cancelled: whether somebody cancelled its message before it could be found here.

        Raises:
            SoftTimeLimitExceeded, TimeLimitExceeded: it ran too long.
            HandlerCancelled: ``cancel`` was called for its message.
            HandlerExited: it was cancelled by itself, or called ``sys.exit()``.
        """
        running = Running(self._loop, coroutine)
        self._running[message_id] = running
        try:
            if cancelled():
                self.cancel(message_id)
            return running.outcome(soft, hard)
        finally:
            if self._running.get(message_id) is running:
                del self._running[message_id]

    def cancel(self, message_id: str) -> bool:
        """Cancel the handler of a message, and return whether one was running."""
        running = self._running.get(message_id)
        if running is None:
            return False
        running.cancel(HandlerCancelled("it was cancelled"))
        return True

    def runs_here(self) -> bool:
        """Whether the calling code is on the loop itself."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what the handlers left behind, and end the thread."""
        self._closing = True
        self._watch.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._closing:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # of a task that a handler left behind
                logger.warning("a background task raised %r", error, extra={"action": "background_task_exited"})
        self._loop.run_until_complete(self._clean_up())
        self._loop.close()

    async def _clean_up(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_GRACE)
        await self._loop.shutdown_asyncgens()


class HandlerCancelled(Exception):
    """Somebody cancelled the message whose handler runs."""


class Running(Generic[T]):
    """One handler's coroutine on the loop, and the thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._done: Future[T] = Future()
        self._cause: BaseException | None = None
        # The handle copies the context of this thread, and the task that of the handle.
        loop.call_soon_threadsafe(self._start, coroutine)

    def outcome(self, soft: float | None, hard: float | None) -> T:
        """Wait for the end within the limits, and return the result or raise what ended it."""
        began = time.monotonic()
        limits = [
            (seconds, error)
            for seconds, error in ((soft, SoftTimeLimitExceeded(soft)), (hard, TimeLimitExceeded(hard)))
            if seconds is not None
        ]
        for seconds, error in sorted(limits, key=lambda limit: limit[0]):
            try:
                return self._wait(began + seconds - time.monotonic())
            except _StillRunning:
                self.cancel(error)
        try:
            return self._wait(None if hard is None else _GRACE)
        except _StillRunning:  # it goes on although it was told to end, and nobody waits for it any more
            raise TimeLimitExceeded(hard) from None

    def cancel(self, cause: BaseException) -> None:
        """Cancel the coroutine; its end is told as this cause, unless it returns or raises something else."""
        self._cause = self._cause or cause
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(_contained(coroutine))
        self._task.add_done_callback(self._finish)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._done.set_exception(self._cause or HandlerExited("the handler was cancelled from within"))
        elif (error := task.exception()) is not None:
            self._done.set_exception(error)
        else:
            self._done.set_result(task.result())

    def _wait(self, seconds: float | None) -> T:
        """Wait until the coroutine has ended.

        Raises:
            _StillRunning: it has not, after this many seconds.
        """
        try:
            return self._done.result(seconds)
        except BaseException as error:
            if self._done.done() and error is self._done.exception():
                raise
            if isinstance(error, TimeoutError):
                raise _StillRunning from None
            # Raised in this thread by a signal: Celery's soft limit, or the end of the process.
            self.cancel(error)
            return self._wait_for_clean_up(error)

    def _wait_for_clean_up(self, error: BaseException) -> T:
        # A soft limit leaves the rest of the time to the handler, and the hard limit ends the process.
        grace = None if isinstance(error, SoftTimeLimitExceeded) else _GRACE
        try:
            return self._done.result(grace)
        except TimeoutError as late:
            if self._done.done() and late is self._done.exception():
                raise
            raise error from None


class _StillRunning(Exception):
    """The coroutine has not ended yet."""


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a handler, and let its ``sys.exit()`` end it and not the loop."""
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
    """Return the loop of this process; it is made when it is first needed, after the pool has forked.

    Args:
        stall_seconds: for which a handler may block the loop before the log tells of it.
    """
    global _loop
    with _lock:
        if _loop is None:
            _loop = HandlerEventLoop(stall_seconds)
        return _loop


def cancel_handler(message_id: str) -> bool:
    """Cancel the coroutine that handles a message in this process, and return whether one does."""
    return _loop is not None and _loop.cancel(message_id)


def is_on_event_loop() -> bool:
    """Whether the calling code is an ``async def`` handler, or called by one."""
    return _loop is not None and _loop.runs_here()


def close_event_loop(**_: Any) -> None:
    """End the loop of this process, if it has one."""
    global _loop
    with _lock:
        loop, _loop = _loop, None
    if loop is not None:
        loop.close()


def _forget_loop() -> None:
    """In a forked process: the thread of the parent's loop is not here."""
    global _loop, _lock
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_loop)
