"""Handlers that answer in parts: each part that a generator yields is sent on its way at once."""

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
from waooaw_celery.results.collector import CHUNK
from waooaw_celery.worker.execution.event_loop import HandlerCancelled
from waooaw_celery.worker.execution.threads import run_in_thread


@dataclass(frozen=True, slots=True)
class Final:
    """What an async generator yields last to say what its whole answer is: it cannot return a value.

    Attributes:
        result: the answer, any JSON value.
    """

    result: JSON


class StreamWriter:
    """The parts of one answer, sent while the handler runs, or gathered for a caller who wants all at once.

    Args:
        backend: gives the calling thread's result backend.
        request: the attempt that is being handled.
        streamed: whether the caller takes parts.
    """

    def __init__(self, backend: Callable[[], Any], request: Context, streamed: bool) -> None:
        self._backend, self._request, self._streamed = backend, request, streamed
        self._run = uuid4().hex  # a second attempt is told from the first
        self._count = 0
        self._gathered: list[JSON] = []
        self._final: Final | None = None

    def add(self, value: Any) -> None:
        """Send a part on its way.

        Raises:
            InvalidMessage: it is no JSON value, or comes after the final result.
        """
        if self._final is not None:
            raise InvalidMessage("a stream ends with its Final result: nothing may be yielded after it")
        if isinstance(value, Final):
            self._final = value
            return
        chunk = json_copy(value, f"chunk {self._count}")
        if self._streamed:
            said = {"run": self._run, "number": self._count, "chunk": chunk}
            self._backend().store_result(self._request.id, said, CHUNK, request=self._request)
        else:
            self._gathered.append(chunk)
        self._count += 1

    def result(self, returned: Any = None) -> Any:
        """Return what is stored as the result of the request.

        Args:
            returned: what the generator returned.
        """
        final = self._final.result if self._final is not None else returned
        if self._streamed:
            return {"run": self._run, "chunks": self._count, "result": final}
        return self._gathered if final is None else final


def consume_generator(generator: Any, chunks: StreamWriter, is_stopped: Callable[[], bool] = lambda: False) -> Any:
    """Run a generator to its end, and return the result of its request.

    Raises:
        HandlerCancelled: it is to be stopped, which is asked before each part; it has cleaned up.
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
    """Run an async generator to its end, and return the result of its request.

    A part is sent by a thread beside the loop, and the generator goes on when it is sent: a backend that is slow
    slows down this one and no other.
    """
    async with aclosing(generator):
        async for value in generator:
            await asyncio.wrap_future(run_in_thread(chunks.add, value))
    return chunks.result()
