"""Warns when an ``async def`` handler blocks the event loop of its process, and with it all other handlers."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.health import native_thread as native

logger = get_logger(__name__)

#: Checks within the time for which a handler may block the event loop.
CHECKS = 4
#: The longest time between two checks, in seconds: a health endpoint shows what they have found.
MAX_PAUSE_SECONDS = 2.0


class LoopWatch:
    """Asks an event loop for a callback, from its own thread, and logs a warning when the callback does not come.

    A blocked loop is no stall, because a handler runs. But the other handlers of the process cannot continue.

    Args:
        loop: the event loop.
        thread: identifier of its thread; None: unknown.
        seconds: for which a handler may block it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int | None, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        # With gevent, the first identifies a greenlet, and the second the only thread.
        self._threads = thread, native.thread_id()
        self._asked_at: float | None = None
        self._closed = False
        native.start_thread(self._run)

    def blocked_seconds(self) -> float:
        """Return for how many seconds the loop has owed a callback; 0: it has made the last one."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def close(self) -> None:
        """Stop watching."""
        self._closed = True

    def _run(self) -> None:
        has_warned = False
        while not self._closed:
            if self._asked_at is None:
                has_warned, self._asked_at = False, time.monotonic()
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop is closed
                    return
            elif not has_warned and time.monotonic() - self._asked_at > self._seconds:
                has_warned = True
                self._warn()
            native.sleep(min(self._seconds / CHECKS, MAX_PAUSE_SECONDS))

    def _warn(self) -> None:
        frames = sys._current_frames()
        found = [frames[thread] for thread in self._threads if thread in frames]
        stack = "".join(traceback.format_stack(found[0])) if found else "unknown"
        logger.warning(
            "a handler has blocked the event loop of its process for %.0f s: use await in place of "
            "blocking calls, or make it a plain def. Its stack:",
            self._seconds,
            extra={"action": "handler_loop_blocked", "stacks": stack},
        )

    def _answer(self) -> None:
        self._asked_at = None
