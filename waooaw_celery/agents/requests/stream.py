"""Streams: the parts of an answer as they arrive, with ``for`` or ``async for``."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Any, Self

from waooaw_celery.agents.requests.cancel import cancel
from waooaw_celery.agents.requests.request_sender import PendingRequest, RequestSender, check_may_block
from waooaw_celery.agents.requests.stream_buffer import StreamBuffer
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import RequestTimeout, StreamBroken, WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.execution.streaming import Final as Final  # users import it from here
from waooaw_celery.worker.execution.threads import run_in_thread

logger = get_logger(__name__)

#: Seconds that closing a stream waits for the worker that sends it.
CANCEL_SECONDS = 1.0


class _NoPart(Enum):
    """Why there is no part to read."""

    YET = auto()
    MORE = auto()


class _Stream:
    """The common base of the blocking and the awaited stream."""

    def __init__(self, sender: RequestSender, wake: Callable[[], None]) -> None:
        self._sender = sender
        self._buffer = StreamBuffer(wake)
        self._pending: PendingRequest | None = None
        self._ended = False
        #: The final result, after the last part: the generator's return value, or its ``Final``.
        self.result: JSON = None

    @property
    def message_id(self) -> str | None:
        """Id of the request, or None before it is sent."""
        return self._pending.message_id if self._pending is not None else None

    def _take(self) -> tuple[JSON] | _NoPart:
        """Return the next part, or why there is none.

        Raises:
            StreamBroken: a part was lost, the agent began again, or too many parts wait.
            RequestError: the request failed.
        """
        if self._ended or self._pending is None:
            return _NoPart.MORE
        permit = self._pending.permit
        if (chunk := self._buffer.take()) is not None:
            permit.begin_answer()
            return chunk
        if self._buffer.broken is not None:
            broken = StreamBroken(f"the stream of {self._pending.agent!r} is broken: {self._buffer.broken}")
            permit.end(broken)
            raise broken
        if not self._pending.answer.done():
            return _NoPart.YET
        if (chunk := self._buffer.take()) is not None:  # it arrived just before the end
            return chunk
        response = self._sender.response(self._pending)
        self._ended = True
        if response.error is not None:
            raise response.error
        self.result = self._buffer.check_complete(response.result)
        return _NoPart.MORE

    def _timed_out(self, pending: PendingRequest) -> RequestTimeout:
        error = RequestTimeout(
            f"{pending.agent!r} sent no further part of its answer to {pending.message_id} "
            f"within {pending.timeout:g} s"
        )
        pending.permit.end(error)
        return error

    def detach(self) -> None:
        """End the stream on this side only: its handler goes on, and its receipt tells how it ends."""
        self._close()

    def _close(self) -> bool:
        """End the stream, and return whether its handler may still run."""
        runs = self._pending is not None and not self._ended and not self._pending.answer.done()
        self._ended = True
        if self._pending is not None:
            self._pending.permit.drop()
            self._sender.app.result_collector.drop(self._pending.message_id)
        return runs


class Stream(_Stream):
    """The parts of an answer, in order. Iterate over it, best in a ``with`` statement, which cancels the rest.

    Raises:
        RequestTimeout: while you iterate: neither a part nor the end arrived within the timeout.
        StreamBroken: while you iterate: a part was lost, the agent began again, or too many parts wait.
        RequestError: while you iterate: the request failed; the class tells how.

    Example:
        >>> with agent.stream("writer", "write", {"topic": "tides"}) as stream:
        ...     for chunk in stream:
        ...         print(chunk, end="")
        >>> stream.result
    """

    _pending: PendingRequest

    def __init__(self, sender: RequestSender, *request: Any, **options: Any) -> None:
        check_may_block()
        self._changed = threading.Condition()
        super().__init__(sender, self._wake)
        [self._pending] = sender.send(*request, **options, stream=True, on_chunk=self._buffer.put)
        self._pending.answer.add_done_callback(lambda _: self._wake())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> JSON:
        try:
            chunk = self._await_chunk()
        except BaseException:
            self.close()
            raise
        if chunk is None:
            raise StopIteration
        return chunk[0]

    def _await_chunk(self) -> tuple[JSON] | None:
        until = time.monotonic() + self._pending.timeout
        with self._changed:
            while (chunk := self._take()) is _NoPart.YET:
                left = until - time.monotonic()
                if left <= 0:
                    raise self._timed_out(self._pending)
                self._changed.wait(left)
        return None if isinstance(chunk, _NoPart) else chunk

    def close(self) -> None:
        """End the stream, and cancel the handler that sends it if it still runs."""
        if self._close():
            _cancel(self._sender.app, self._pending)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class AsyncStream(_Stream):
    """The parts of an answer, awaited. Iterate with ``async for``, best in an ``async with`` statement.

    Raises:
        RequestTimeout, StreamBroken, RequestError: as Stream.
    """

    def __init__(self, sender: RequestSender, *request: Any, **options: Any) -> None:
        super().__init__(sender, self._wake)
        self._request = partial(sender.send, *request, **options, stream=True, on_chunk=self._buffer.put)
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        await self._send()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JSON:
        try:
            chunk = await self._await_chunk(await self._send())
        except BaseException:
            await self.aclose()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk[0]

    async def aclose(self) -> None:
        """End the stream, and cancel the handler that sends it if it still runs."""
        if self._close() and self._pending is not None:
            await asyncio.wrap_future(run_in_thread(_cancel, self._sender.app, self._pending))

    async def _send(self) -> PendingRequest:
        """Send the request if it was not sent, and return it."""
        if self._pending is None:
            self._loop = asyncio.get_running_loop()
            sending = run_in_thread(self._request)
            try:
                [self._pending] = await asyncio.wrap_future(sending)
            except asyncio.CancelledError:
                sending.add_done_callback(self._drop)
                raise
            self._pending.answer.add_done_callback(lambda _: self._wake())
        return self._pending

    def _drop(self, sending: Future[list[PendingRequest]]) -> None:
        """Cancel a request that was sent after the coroutine that sends it was cancelled."""
        if not sending.cancelled() and sending.exception() is None:
            [pending] = sending.result()
            pending.permit.drop()
            self._sender.app.result_collector.drop(pending.message_id)
            _cancel(self._sender.app, pending)

    async def _await_chunk(self, pending: PendingRequest) -> tuple[JSON] | None:
        until = time.monotonic() + pending.timeout
        while True:
            self._changed.clear()
            chunk = self._take()
            if chunk is not _NoPart.YET:
                return None if isinstance(chunk, _NoPart) else chunk
            try:
                await asyncio.wait_for(self._changed.wait(), max(until - time.monotonic(), 0.0))
            except TimeoutError:
                if time.monotonic() >= until:
                    raise self._timed_out(pending) from None

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # it was closed meanwhile: nobody awaits the next part
                self._loop.call_soon_threadsafe(self._changed.set)


def _cancel(app: AgentApp, pending: PendingRequest) -> None:
    """Cancel the handler of a request whose stream was closed."""
    try:
        cancel(app, pending.message_id, running=True, timeout=CANCEL_SECONDS)
    except WaooawError as error:  # closing a stream does not fail if the handler cannot be stopped
        logger.warning(
            "could not cancel request %s: %s",
            pending.message_id,
            error,
            extra={"action": "stream_not_cancelled", "message_id": pending.message_id},
        )
