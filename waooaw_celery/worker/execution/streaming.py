"""Streams: handlers that answer in parts. Each part that a generator yields is sent at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery.app.task import Context

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.results.pending import CHUNK
from waooaw_celery.worker.execution.event_loop import HandlerCancelled
from waooaw_celery.worker.execution.threads import run_in_thread


@dataclass(frozen=True, slots=True)
class Final:
    """The whole answer of a stream, yielded last by an async generator, which cannot return a value.

    Attributes:
        result: the answer, a JSON value.

    Example:
        >>> async def count():
        ...     yield 1
        ...     yield 2
        ...     yield Final("counted to 2")
    """

    result: JSON


class StreamWriter:
    """Sends the parts of one answer, or collects them for a caller that wants one result.

    Args:
        backend: returns the result backend of the calling thread.
        request: the attempt that is being handled.
        streamed: whether the caller wants parts.
        record: is told each part that was sent; or None.
    """

    def __init__(
        self,
        backend: Callable[[], Any],
        request: Context,
        streamed: bool,
        record: Callable[[JSON], None] | None = None,
    ) -> None:
        self._backend, self._request, self._streamed, self._record = backend, request, streamed, record
        self._run = uuid4().hex  # tells the parts of one attempt from those of another
        self._count = 0
        self._collected: list[JSON] = []
        self._final: Final | None = None

    def add(self, value: Any) -> None:
        """Send or collect a part.

        Args:
            value: a JSON value, or the Final result.

        Raises:
            InvalidMessage: it is no JSON value, or comes after the Final result.
        """
        if self._final is not None:
            raise InvalidMessage("a value was yielded after Final(...): a stream ends with its Final result")
        if isinstance(value, Final):
            self._final = value
            return
        chunk = json_copy(value, f"chunk {self._count}")
        if self._streamed:
            part = {"run": self._run, "number": self._count, "chunk": chunk}
            self._backend().store_result(self._request.id, part, CHUNK, request=self._request)
            if self._record is not None:
                self._record(chunk)
        else:
            self._collected.append(chunk)
        self._count += 1

    def result(self, returned: Any = None) -> Any:
        """Return the result of the request, as the result backend stores it.

        Args:
            returned: what the generator returned.
        """
        final = self._final.result if self._final is not None else returned
        if self._streamed:
            return {"run": self._run, "chunks": self._count, "result": final}
        return self._collected if final is None else final


def consume_generator(generator: Any, chunks: StreamWriter, is_stopped: Callable[[], bool] = lambda: False) -> Any:
    """Consume a generator, and return the result of its request.

    Args:
        generator: what the handler returned.
        chunks: takes each part.
        is_stopped: returns whether the handler is to be stopped; it is called before each part.

    Raises:
        HandlerCancelled: the handler was stopped, and has cleaned up.
    """
    with closing(generator):
        while True:
            if is_stopped():
                raise HandlerCancelled("it was cancelled")
            try:
                value = next(generator)
            except StopIteration as end:
                return chunks.result(end.value)
            chunks.add(value)


async def consume_async_generator(generator: Any, chunks: StreamWriter) -> Any:
    """Consume an async generator, and return the result of its request.

    A thread sends each part, and the generator continues when it is sent. So a slow result backend slows down this
    handler, and no other on the event loop.

    Args:
        generator: what the handler returned.
        chunks: takes each part.
    """
    async with aclosing(generator):
        async for value in generator:
            await asyncio.wrap_future(run_in_thread(chunks.add, value))
    return chunks.result()
