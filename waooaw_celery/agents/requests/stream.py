"""Take the parts of an answer as they come: ``for chunk in requests.stream(...)``, and ``async for``."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum, auto
from functools import partial
from typing import Any, Self

from waooaw_celery.agents.requests.cancel import cancel
from waooaw_celery.agents.requests.core import PendingRequest, RequestSender, check_may_block
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import RequestTimeout, StreamBroken, WaooawError
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.execution.streaming import Final as Final  # a part of what users write
from waooaw_celery.worker.execution.threads import run_in_thread

logger = logging.getLogger(__name__)

#: Parts that may wait for whoever takes them; one more breaks the stream, and its handler is cancelled.
MAX_BUFFERED_PARTS = 10_000
#: Seconds that closing a stream may wait for the worker that sends it.
CANCEL_SECONDS = 1.0


class StreamBuffer:
    """The parts of one answer that have come and were not taken yet.

    Args:
        wake: called by the thread that takes the answers, when there is something to take.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[JSON] = deque()
        self._run: str | None = None
        self._next = 0
        self.broken: str | None = None

    def put(self, said: Any) -> None:
        """Take in a part, in the thread of the answers; what comes twice is taken once."""
        run, number = said["run"], said["number"]
        self._run = self._run or run
        if self.broken is not None:
            pass  # what comes after a gap is not taken
        elif run != self._run:
            self.broken = "the agent began its answer again, after its worker was lost or it asked for a retry"
        elif number > self._next:
            self.broken = f"parts {self._next} to {number - 1} were lost with the connection to the result backend"
        elif len(self._waiting) >= MAX_BUFFERED_PARTS:
            self.broken = (
                f"{MAX_BUFFERED_PARTS} parts wait to be taken: take them faster, or have larger ones sent"
            )
        elif number == self._next:
            self._waiting.append(said["chunk"])
            self._next += 1
        self._wake()

    def take(self) -> tuple[JSON] | None:
        """Return the next part, or None when none is there."""
        return (self._waiting.popleft(),) if self._waiting else None

    def check_whole(self, said: Any) -> JSON:
        """Return the final result, when all parts that were sent have come.

        Raises:
            StreamBroken: some have not.
        """
        if not isinstance(said, dict) or "chunks" not in said:  # a method that does not stream
            return said
        if said["chunks"] != self._next or self._run not in (None, said["run"]):
            raise StreamBroken(f"{self._next} of {said['chunks']} parts have come")
        return said["result"]


class _Nothing(Enum):
    """Why there is no part to take."""

    YET = auto()
    MORE = auto()


class _Stream:
    """What both forms of a stream have in common."""

    def __init__(self, asker: RequestSender, wake: Callable[[], None]) -> None:
        self._asker = asker
        self._incoming = StreamBuffer(wake)
        self._asked: PendingRequest | None = None
        self._ended = False
        #: The final result, once all parts were taken: what the generator returned, or its ``Final``.
        self.result: JSON = None

    @property
    def message_id(self) -> str | None:
        """Id of the request, or None before it was sent."""
        return self._asked.message_id if self._asked is not None else None

    def _take(self) -> tuple[JSON] | _Nothing:
        """Return the next part, or that there is none now, or none any more.

        Raises:
            StreamBroken, RequestError: the answer came to another end.
        """
        if self._ended or self._asked is None:
            return _Nothing.MORE
        if (chunk := self._incoming.take()) is not None:
            return chunk
        if self._incoming.broken is not None:
            raise StreamBroken(f"the answer of {self._asked.agent!r} is broken off: {self._incoming.broken}")
        if not self._asked.answer.done():
            return _Nothing.YET
        if (chunk := self._incoming.take()) is not None:  # it came just before the end
            return chunk
        response = self._asker.response(self._asked)
        self._ended = True
        if response.error is not None:
            raise response.error
        self.result = self._incoming.check_whole(response.result)
        return _Nothing.MORE

    def _late(self, asked: PendingRequest) -> RequestTimeout:
        return RequestTimeout(
            f"{asked.agent!r} sent no further part of its answer to {asked.message_id} within {asked.timeout:g} s"
        )

    def _close(self) -> bool:
        """Take no more, and return whether the handler may still run."""
        runs = self._asked is not None and not self._ended and not self._asked.answer.done()
        self._ended = True
        if self._asked is not None:
            self._asker.app.result_collector.drop(self._asked.message_id)
        return runs


class Stream(_Stream):
    """The parts of an answer, one after the other. At the end of a ``with`` a handler that runs on is cancelled.

    Raises:
        RequestTimeout: no part, and no end, within the timeout after the one before.
        StreamBroken: a part was lost, the agent began again, or too many wait to be taken.
        RequestError: the answer came to another end; its classes say which.
    """

    _asked: PendingRequest

    def __init__(self, asker: RequestSender, *request: Any, **options: Any) -> None:
        check_may_block()
        self._came = threading.Condition()
        super().__init__(asker, self._wake)
        [self._asked] = asker.ask(*request, **options, stream=True, on_chunk=self._incoming.put)
        self._asked.answer.add_done_callback(lambda _: self._wake())

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
        until = time.monotonic() + self._asked.timeout
        with self._came:
            while (chunk := self._take()) is _Nothing.YET:
                left = until - time.monotonic()
                if left <= 0:
                    raise self._late(self._asked)
                self._came.wait(left)
        return None if isinstance(chunk, _Nothing) else chunk

    def close(self) -> None:
        """Take no more parts, and cancel the handler that sends them if it still runs."""
        if self._close():
            _cancel(self._asker.app, self._asked)

    def _wake(self) -> None:
        with self._came:
            self._came.notify_all()


class AsyncStream(_Stream):
    """The parts of an answer, awaited: ``async for chunk in stream``, best within ``async with stream:``.

    Raises:
        RequestTimeout, StreamBroken, RequestError: as Stream.
    """

    def __init__(self, asker: RequestSender, *request: Any, **options: Any) -> None:
        super().__init__(asker, self._wake)
        self._request = partial(asker.ask, *request, **options, stream=True, on_chunk=self._incoming.put)
        self._came = asyncio.Event()
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
        """Take no more parts, and cancel the handler that sends them if it still runs."""
        if self._close() and self._asked is not None:
            await asyncio.wrap_future(run_in_thread(_cancel, self._asker.app, self._asked))

    async def _send(self) -> PendingRequest:
        """Send the request, unless that was done."""
        if self._asked is None:
            self._loop = asyncio.get_running_loop()
            sending = run_in_thread(self._request)
            try:
                [self._asked] = await asyncio.wrap_future(sending)
            except asyncio.CancelledError:
                sending.add_done_callback(self._drop)
                raise
            self._asked.answer.add_done_callback(lambda _: self._wake())
        return self._asked

    def _drop(self, sending: Future[list[PendingRequest]]) -> None:
        """Cancel a request that nobody waited for once it was sent, if it was."""
        if not sending.cancelled() and sending.exception() is None:
            [asked] = sending.result()
            self._asker.app.result_collector.drop(asked.message_id)
            _cancel(self._asker.app, asked)

    async def _await_chunk(self, asked: PendingRequest) -> tuple[JSON] | None:
        until = time.monotonic() + asked.timeout
        while True:
            self._came.clear()
            chunk = self._take()
            if chunk is not _Nothing.YET:
                return None if isinstance(chunk, _Nothing) else chunk
            try:
                await asyncio.wait_for(self._came.wait(), max(until - time.monotonic(), 0.0))
            except TimeoutError:
                if time.monotonic() >= until:
                    raise self._late(asked) from None

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._came.set)


def _cancel(app: AgentApp, asked: PendingRequest) -> None:
    """Cancel the handler of a request whose answer nobody takes any more."""
    try:
        cancel(app, asked.message_id, running=True, timeout=CANCEL_SECONDS)
    except WaooawError as error:  # whoever closes a stream is done with it, also when the handler runs on
        logger.warning(
            "request %s was not cancelled: %s",
            asked.message_id,
            error,
            extra={"action": "stream_not_cancelled", "message_id": asked.message_id},
        )
