"""Buffers the parts of a streamed answer between the result collector and the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from waooaw_celery.errors import StreamBroken
from waooaw_celery.messages.validation import JSON

#: Number of parts that may wait for the reader. One more breaks the stream, and its handler is cancelled.
MAX_BUFFERED_PARTS = 10_000


class StreamBuffer:
    """The parts of one answer that have arrived and were not read yet, in order.

    Args:
        wake: called after each part, in the thread of the result collector.

    Attributes:
        broken: why the stream is broken, or None.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._parts: deque[JSON] = deque()
        self._run: str | None = None
        self._next = 0
        self.broken: str | None = None

    def put(self, part: Any) -> None:
        """Add a part that has arrived; a part that arrives twice is added once.

        Args:
            part: its ``run`` (an id of the attempt), ``number`` (from 0) and ``chunk`` (the value).
        """
        run, number = part["run"], part["number"]
        self._run = self._run or run
        if self.broken is not None:
            pass  # parts after a gap are dropped
        elif run != self._run:
            self.broken = (
                "its handler was started again, after a retry or the death of its worker; request it again"
            )
        elif number > self._next:
            self.broken = (
                f"parts {self._next} to {number - 1} were lost with the connection to the result backend; "
                "request it again"
            )
        elif len(self._parts) >= MAX_BUFFERED_PARTS:
            self.broken = (
                f"{MAX_BUFFERED_PARTS} parts are unread: read them faster, or send fewer and larger parts"
            )
        elif number == self._next:
            self._parts.append(part["chunk"])
            self._next += 1
        self._wake()

    def take(self) -> tuple[JSON] | None:
        """Remove the next part and return it in a tuple, or None if no part waits."""
        return (self._parts.popleft(),) if self._parts else None

    def check_complete(self, result: Any) -> JSON:
        """Return the final result, if all parts have arrived.

        Args:
            result: the result of the task: its number of ``chunks``, ``run`` and ``result``; or the plain result
                of a method that does not stream.

        Raises:
            StreamBroken: a part is missing.
        """
        if not isinstance(result, dict) or "chunks" not in result:
            return result
        if result["chunks"] != self._next or self._run not in (None, result["run"]):
            raise StreamBroken(f"only {self._next} of {result['chunks']} parts arrived")
        return result["result"]
