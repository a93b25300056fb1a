"""Runs a tool's call: with progress while it runs, and with what becomes of it when the client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import Call, TaskInfo, TaskState
from waooaw_celery.edges.gateway.task_stream import AGAIN
from waooaw_celery.edges.mcp.results import text_of
from waooaw_celery.errors import InvalidMessage, RequestError, UnknownMessage, WaooawError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Tells the client how far a call is: a number that grows, and a text.
Report = Callable[[float, str], Awaitable[None]]
#: Seconds after which a call that has not ended is looked at, and between two looks.
FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.3, 1.0
#: Most characters of a text of progress.
MAX_PROGRESS_TEXT = 500
#: Seconds within which a task must be cancelled.
SETTLE_SECONDS = 10.0


class Calls:
    """Runs the calls of one server.

    Args:
        gateway: calls agents.
        cancel_when_gone: whether a task is cancelled when its client goes away before the answer.
    """

    def __init__(self, gateway: Gateway, *, cancel_when_gone: bool) -> None:
        self._gateway, self._cancel_when_gone = gateway, cancel_when_gone
        self._stopping = asyncio.Event()
        self._open = 0
        #: What runs although its caller has gone. (The event loop itself holds its tasks only weakly.)
        self._running: set[asyncio.Future[Any]] = set()

    def stop(self) -> None:
        """Answer all open calls now: their tasks go on. Call it in the thread of the event loop."""
        self._stopping.set()

    async def run(self, call: Call, *, streams: bool, report: Report | None, gone_is_cancelled: bool) -> TaskInfo:
        """Make a call, and return its task once it has ended, needs input, or the server stops.

        Args:
            call: the call.
            streams: whether the answer comes in parts.
            report: tells the client of progress; None: it does not want to know.
            gone_is_cancelled: whether the protocol calls it a cancellation when the client goes away.

        Raises:
            As ``Gateway.run``.
        """
        self._open += 1
        try:
            return await self._run(call, streams, report, gone_is_cancelled)
        finally:
            self._open -= 1

    async def settled(self, seconds: float) -> None:
        """Wait until no call is open any more, or some seconds have passed."""
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def _run(self, call: Call, streams: bool, report: Report | None, gone_is_cancelled: bool) -> TaskInfo:
        progress = _Progress()
        if streams and report is not None:
            work: asyncio.Future[TaskInfo] = asyncio.ensure_future(self._stream(call, progress))
        else:
            work = asyncio.ensure_future(self._gateway.run(call))
        self._running.add(work)
        work.add_done_callback(self._ended)
        try:
            while not work.done() and not self._stopping.is_set():
                await self._wait(work, progress)
                if work.done() or report is None:
                    continue
                if not streams:
                    await self._look(call, progress)
                if (news := progress.take()) is not None:
                    await report(*news)
        except asyncio.CancelledError:
            if (gone_is_cancelled or self._cancel_when_gone) and not self._stopping.is_set():
                with anyio.move_on_after(SETTLE_SECONDS, shield=True):
                    await self.cancel(call.principal, call.task_id, work)
            raise
        if work.done():
            if report is not None and (news := progress.take()) is not None:
                await report(*news)
            return work.result()
        return await self._gateway.task(call.principal, call.task_id)

    async def cancel(
        self, principal: Principal, task_id: str, work: asyncio.Future[TaskInfo] | None = None
    ) -> None:
        """Cancel the task of a call that may just be sent. A task that cannot be stopped goes on.

        Args:
            principal: who made the call.
            task_id: the task.
            work: the call, if it was made here; a call that has ended needs no cancellation.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while (work is None or not work.done()) and time.monotonic() < until:
            try:
                await self._gateway.cancel(principal, task_id)
            except UnknownMessage:
                if work is None:
                    return
                await asyncio.sleep(0.02)  # it is being sent
            except WaooawError as error:
                logger.warning(
                    "the task %s of a client that cancelled it goes on: %s",
                    *(task_id, error),
                    extra={"action": "not_cancelled"},
                )
                return
            else:
                return

    def spawn(self, work: Awaitable[Any]) -> None:
        """Run something for which no client waits; an error is logged."""
        future = asyncio.ensure_future(work)
        self._running.add(future)
        future.add_done_callback(self._ended)

    async def _wait(self, work: asyncio.Future[TaskInfo], progress: _Progress) -> None:
        """Wait for the end of a call, or until there may be progress to tell, or the server stops."""
        others: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(event.wait()) for event in (self._stopping, progress.changed)
        ]
        try:
            await asyncio.wait([work, *others], timeout=progress.pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in others:
                each.cancel()
        progress.pause = LOOK_SECONDS

    async def _look(self, call: Call, progress: _Progress) -> None:
        """Note how far a task is that does not answer in parts."""
        try:
            task = await self._gateway.task(call.principal, call.task_id)
        except WaooawError:  # it is being sent, or the ledger does not answer: the call itself tells
            return
        told = text_of(task.progress) if task.progress is not None else task.state.value
        progress.note_text(f"{task.state.value}: {told}" if task.progress is not None else told)

    async def _stream(self, call: Call, progress: _Progress) -> TaskInfo:
        """Read the parts of an answer, and return the task with its final result, or with the parts."""
        parts: list[Any] = []
        try:
            async with self._gateway.stream(call) as stream:
                async for part in stream:
                    if part is AGAIN:  # the worker died: all parts follow again
                        parts.clear()
                        continue
                    parts.append(part)
                    progress.note(text_of(part))
        except RequestError:  # the ledger tells what became of the task
            return await self._gateway.wait(call.principal, call.task_id, call.timeout)
        except InvalidMessage as error:
            try:  # the client has sent its request again
                return await self._gateway.wait(call.principal, call.task_id, call.timeout)
            except UnknownMessage:
                raise error from None
        task = await self._gateway.task(call.principal, call.task_id)
        result = parts if stream.result is None else stream.result
        # The ledger may learn of the end a moment later.
        return replace(task, state=TaskState.COMPLETED, result=result, error=None)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._running.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None and not isinstance(error, WaooawError):
            logger.error("a tool's call failed: %s", error, exc_info=error, extra={"action": "tool_call_failed"})


class _Progress:
    """How far a call is. Only the newest state is kept, so that a slow client holds up nothing."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.pause = FIRST_LOOK_SECONDS
        self._number, self._text = 0, ""

    def note(self, text: str) -> None:
        """Note a step."""
        self._number += 1
        self._text = text[:MAX_PROGRESS_TEXT]
        self.changed.set()

    def note_text(self, text: str) -> None:
        """Note a state; the same again is no step."""
        if text[:MAX_PROGRESS_TEXT] != self._text:
            self.note(text)

    def take(self) -> tuple[float, str] | None:
        """Return what was noted since the last time, if anything."""
        if not self.changed.is_set():
            return None
        self.changed.clear()
        return float(self._number), self._text
