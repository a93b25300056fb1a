"""Tells when an ``async def`` handler blocks the event loop of its process, on which all others of it wait."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback

from waooaw_celery.worker.health import native_thread as native

logger = logging.getLogger(__name__)

#: Looks within the time that the event loop may stand still.
LOOKS = 4


class LoopWatch:
    """Asks an event loop to call back, from a thread of its own, and logs when it does not.

    It is no stall: a handler runs. But other handlers of the process cannot go on meanwhile.

    Args:
        loop: the event loop.
        thread: identifier of its thread; None: not known.
        seconds: for which it may stand still.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int | None, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        # With gevent the first is that of a greenlet, and the second that of the only thread.
        self._threads = thread, native.thread_id()
        self._asked_at: float | None = None
        self._closed = False
        native.start_thread(self._run)

    def close(self) -> None:
        """Ask no more."""
        self._closed = True

    def _run(self) -> None:
        told = False
        while not self._closed:
            if self._asked_at is None:
                told, self._asked_at = False, time.monotonic()
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # it was closed
                    return
            elif not told and time.monotonic() - self._asked_at > self._seconds:
                told = True
                frames = sys._current_frames()
                found = [frames[thread] for thread in self._threads if thread in frames]
                logger.warning(
                    "a handler has blocked the event loop of its process for %.0f s: use await in place of "
                    "blocking calls, or make it a plain def. It is here:\n%s",
                    self._seconds,
                    "".join(traceback.format_stack(found[0])) if found else "not known",
                    extra={"action": "handler_loop_blocked"},
                )
            native.sleep(self._seconds / LOOKS)

    def _answer(self) -> None:
        self._asked_at = None
