"""Connections of slow clients: uvicorn waits for ever for headers, and for a client that does not read."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds within which the headers of a request must be there, from the connection or their first byte on.
HEADER_SECONDS = 15.0
#: Seconds that a client may take to read something of an answer for which the buffers have no more room.
READ_SECONDS = 60.0


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol of HTTP, with bounds on the time for headers, and for reading an answer."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Read what has come; headers that are not whole must follow in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_timers(headers=True)
        elif self._headers_due is None and not self.transport.is_closing():
            self._await_headers()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._cancel_timers(reading=True)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the bounds."""
        self._cancel_timers(headers=True, reading=True)
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _cancel_timers(self, *, headers: bool = False, reading: bool = False) -> None:
        if headers and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
        if reading and self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None
