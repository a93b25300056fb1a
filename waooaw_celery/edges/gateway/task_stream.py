"""A streamed answer whose request outlives its reader, and which begins again when its worker has died."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from waooaw_celery.agents.requests.request_sender import PendingRequest, RequestSender
from waooaw_celery.agents.requests.stream import AsyncStream
from waooaw_celery.agents.requests.stream_buffer import StreamBuffer
from waooaw_celery.errors import RequestTimeout

#: Stands between the parts of an attempt that ended and those of the next one, which sends all parts again.
AGAIN: Final = object()


class TaskStream(AsyncStream):
    """The parts of an answer, awaited. Closing it does not cancel the request, unlike with ``AsyncStream``.

    Only a part that does not come in time cancels it.

    When the worker dies and another one begins the answer again, ``AGAIN`` is the next part, and all parts follow
    once more.

    Raises:
        StreamBroken: while you iterate: a part was lost. The rest as ``AsyncStream``.
    """

    def __init__(self, sender: RequestSender, *request: Any, **options: Any) -> None:
        super().__init__(sender, *request, **options)
        self._buffer = _Attempts(self._wake)
        self._is_late = False
        self._request = partial(sender.send, *request, **options, stream=True, on_chunk=self._buffer.put)

    async def aclose(self) -> None:
        """End the stream. Its handler goes on, unless it was too late."""
        if self._is_late:
            await super().aclose()
        self._close()

    def _timed_out(self, pending: PendingRequest) -> RequestTimeout:
        self._is_late = True
        return super()._timed_out(pending)


class _Attempts(StreamBuffer):
    """A buffer that takes the parts of one attempt after the other.

    Args:
        wake: as for ``StreamBuffer``.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__(wake)

    def put(self, part: Any) -> None:
        """Add a part that has arrived; the first part of another attempt replaces what was not read yet."""
        is_other = self._run is not None and part["run"] != self._run
        if is_other and part["number"] == 0 and self.broken is None:
            self._run, self._next = part["run"], 0
            self._parts.clear()
            self._parts.append(AGAIN)
        super().put(part)
