"""Answers with server-sent events: they end with the task, the client or the edge, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from waooaw_celery.edges.http.problems import problem_of

#: Seconds after which a comment shows that the stream still lives.
KEEP_ALIVE_SECONDS = 15.0


class Event(NamedTuple):
    """A server-sent event.

    Attributes:
        name: its type.
        data: a JSON value.
        id: its id; None: it has none.
    """

    name: str
    data: Any
    id: int | None = None

    def encode(self) -> bytes:
        """Return its text. JSON has no line break of its own."""
        number = "" if self.id is None else f"id: {self.id}\n"
        return f"{number}event: {self.name}\ndata: {json.dumps(self.data, separators=(',', ':'))}\n\n".encode()


class Streams:
    """The open streams of an edge, which must end before it can stop."""

    def __init__(self) -> None:
        self._open: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def stop(self) -> None:
        """End all streams. It may be called from a signal handler or a thread."""
        for loop, stopping in tuple(self._open):
            loop.call_soon_threadsafe(stopping.set)

    def open(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Event]:
        """Note a stream, and return what ends it."""
        found = asyncio.get_running_loop(), asyncio.Event()
        self._open.add(found)
        return found

    def close(self, stream: tuple[asyncio.AbstractEventLoop, asyncio.Event]) -> None:
        """Forget a stream."""
        self._open.discard(stream)


class EventStream(Response):
    """An answer of server-sent events.

    Args:
        events: the events.
        streams: the open streams of the edge.
        headers: more headers.
        left: is called when the client or the edge ends the stream before its last event, before ``events`` is
            cancelled. It gets whether the client has gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        streams: Streams,
        *,
        headers: dict[str, str] | None = None,
        left: Callable[[bool], None] = lambda _: None,
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events, self._streams, self._left = events, streams, left
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until one side ends the stream."""
        noted = self._streams.open()
        writing = asyncio.ensure_future(self._write(scope, send))
        gone, stopping = asyncio.ensure_future(until_gone(receive)), asyncio.ensure_future(noted[1].wait())
        try:
            await asyncio.wait({writing, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.close(noted)
            if not writing.done():
                self._left(gone.done())
            await _end(gone, stopping, *([] if writing.done() else [writing]))
        if not writing.cancelled():
            writing.result()
        elif self._begun and noted[1].is_set():  # the edge stops: the answer ends in order
            await send({"type": "http.response.body", "body": b""})

    async def _write(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._begun = True
        if scope["method"] != "HEAD":
            await self._write_events(send)
        else:
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _write_events(self, send: Send) -> None:
        step: asyncio.Future[Event] | None = None
        try:
            while True:
                step = step or asyncio.ensure_future(_next(self._events))
                done, _ = await asyncio.wait({step}, timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    await _send_part(send, b": still here\n\n")
                    continue
                try:
                    event = step.result()
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001 - the status is sent: the client learns of it by an event
                    await _send_part(send, Event("error", problem_of(error)).encode())
                    return
                step = None
                await _send_part(send, event.encode())
        finally:
            if step is not None:
                await _end(step)
            await self._events.aclose()


async def until_gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _end(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
