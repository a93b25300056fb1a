"""Streams the answers of tasks to clients of A2A. A task goes on when its client goes away, unless that is set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeAlias

from a2a.types import Task, TaskArtifactUpdateEvent, TaskStatusUpdateEvent

from waooaw_celery.agents.requests.operations import RequestOperations
from waooaw_celery.edges.a2a.tasks import (
    RESULT,
    STREAM,
    EndedTasks,
    a2a_task,
    artifact,
    artifact_event,
    artifacts_of,
    now,
    status_event,
)
from waooaw_celery.edges.a2a.values import part_of, parts_of
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import Call, TaskInfo, TaskState
from waooaw_celery.edges.gateway.task_stream import AGAIN, TaskStream
from waooaw_celery.errors import RequestError, RequestTimeout, WaooawError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

Event: TypeAlias = Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent

#: Events that may wait for a slow client. Then the reader waits, and the stream's own bound holds.
_MAX_WAITING = 100


class Streaming:
    """Streams the answers of tasks.

    Args:
        gateway: calls agents.
        ended: notes the tasks that have ended.
        cancel_when_gone: whether a task is cancelled when its client goes away before the end.
    """

    def __init__(self, gateway: Gateway, ended: EndedTasks, *, cancel_when_gone: bool = False) -> None:
        self._gateway, self._ended, self._cancel_when_gone = gateway, ended, cancel_when_gone
        self._operations = RequestOperations(gateway.app, TaskStream)
        #: What runs without a client that waits for it. (The event loop holds its tasks only weakly.)
        self._running: set[asyncio.Task[None]] = set()
        self._answering: set[str] = set()

    def is_answering(self, task_id: str) -> bool:
        """Whether this process reads the answer of a task. A second request with its id would take it away."""
        return task_id in self._answering

    async def answer(self, call: Call) -> AsyncIterator[Event]:
        """Call a method whose answer comes in parts, and yield the task and all its changes until its end.

        Args:
            call: the call, which the principal may make.

        Raises:
            WaooawError: nothing was sent; see ``Gateway.start``.
        """
        events = _Events()
        self._answering.add(call.task_id)
        reader = self._begin(self._read(call, events))
        try:
            async for event in events:
                yield event
        finally:
            if not reader.done():
                events.close()
                self._client_left(call.principal, call.task_id)

    async def changes(
        self, principal: Principal, first: TaskInfo, seconds: float, *, watched: bool = False
    ) -> AsyncIterator[Event]:
        """Yield a task and its changes until it has ended or needs input, from the ledger.

        Args:
            principal: who asks.
            first: the task as it is.
            seconds: longest time.
            watched: whether the client only watches: the task goes on when it leaves, whatever is set.
        """
        last = first
        ended = watched
        try:
            yield a2a_task(first)
            if first.state.final or first.state is TaskState.INPUT_REQUIRED:
                ended = True
                return
            async for task in self._gateway.changes(principal, first.task_id, seconds):
                for event in _news(last, task):
                    yield event
                last = task
            ended = True
        finally:
            if not ended:
                self._client_left(principal, first.task_id)

    async def aclose(self) -> None:
        """End what runs. The tasks go on."""
        running = list(self._running)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _read(self, call: Call, events: _Events) -> None:
        """Read the parts of an answer, and end with the one last status."""
        try:
            stream = self._operations.stream(
                call.agent,
                call.method,
                dict(call.arguments),
                from_agent=call.principal.from_agent,
                timeout=call.timeout,
                priority=call.priority,
                ids=call.ids,
            )
            async with stream:
                task = _begun(call)
                await events.put(a2a_task(task))
                await self._read_parts(call, task, stream, events)
        except WaooawError as error:
            events.fail(error)
        finally:
            self._answering.discard(call.task_id)
            events.end()

    async def _read_parts(self, call: Call, task: TaskInfo, stream: TaskStream, events: _Events) -> None:
        append = False
        try:
            async for part in stream:
                if part is AGAIN:  # the next part replaces the artifact
                    append = False
                    continue
                if task.state is TaskState.SUBMITTED:
                    task = replace(task, state=TaskState.WORKING, updated_at=now())
                    await events.put(status_event(task))
                made = artifact(STREAM, [part_of(part)])
                await events.put(artifact_event(task, made, append=append, last=False))
                append = True
        except RequestError as error:
            # The handler failed, or a part was lost, or the task was cancelled or too late. The ledger knows.
            logger.info(
                "the stream of task %s ended early: %s",
                task.task_id,
                error,
                extra={"action": "edge_stream_ended", "message_id": task.task_id},
            )
            if isinstance(error, RequestTimeout):
                await self.cancel(call.principal, call.task_id)
            await self._end_from_ledger(call, task, events)
            return
        if parts := parts_of(stream.result):
            await events.put(artifact_event(task, artifact(RESULT, parts)))
        task = replace(task, state=TaskState.COMPLETED, result=stream.result, updated_at=now())
        await events.put(status_event(self._ended.note(task)))

    async def _end_from_ledger(self, call: Call, task: TaskInfo, events: _Events) -> None:
        async for found in self._gateway.changes(call.principal, call.task_id, call.timeout):
            for event in _news(task, found):
                await events.put(event)
            task = found

    def _client_left(self, principal: Principal, task_id: str) -> None:
        if self._cancel_when_gone:
            self._begin(self.cancel(principal, task_id))

    async def cancel(self, principal: Principal, task_id: str) -> None:
        """Cancel a task whose client has gone. If that is not possible, the log says so."""
        try:
            await self._gateway.cancel(principal, task_id)
        except WaooawError as error:
            logger.warning(
                "the client of task %s has gone, and the task could not be cancelled: %s",
                task_id,
                error,
                extra={"action": "edge_task_not_cancelled", "message_id": task_id},
            )

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        begun = asyncio.create_task(coroutine)
        self._running.add(begun)
        begun.add_done_callback(self._done)
        return begun

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "a stream of the edge failed: %s", error, exc_info=error, extra={"action": "edge_stream_failed"}
            )


class _Events:
    """The events that wait for a client. Nobody waits for one that has gone."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_MAX_WAITING)
        self._error: WaooawError | None = None
        self._closed = False

    async def put(self, event: Event) -> None:
        """Add an event, once there is room."""
        if self._closed:
            return
        await self._room.acquire()
        self._queue.put_nowait(event)

    def fail(self, error: WaooawError) -> None:
        """Raise an error where the events are read; if nobody reads them, the log has it."""
        if self._closed:
            logger.warning(
                "a task whose client has gone failed: %s", error, extra={"action": "edge_stream_failed"}
            )
        self._error = error

    def end(self) -> None:
        """End the events."""
        self._queue.put_nowait(None)

    def close(self) -> None:
        """Note that the client has gone."""
        self._closed = True
        self._room.release()  # one reader may wait for room

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            self._room.release()
            yield event
        if self._error is not None:
            raise self._error


def _news(before: TaskInfo, after: TaskInfo) -> list[Event]:
    """Return the events that tell how a task has changed: its artifacts, and then its status."""
    news: list[Event] = []
    if after.state.final and not before.state.final:
        news += [artifact_event(after, each) for each in artifacts_of(after)]
    if (after.state, after.progress) != (before.state, before.progress):
        news.append(status_event(after))
    return news


def _begun(call: Call) -> TaskInfo:
    """Return the task of a call that was just sent."""
    began = now()
    return TaskInfo(
        task_id=call.task_id,
        agent=call.agent,
        method=call.method,
        is_workflow=False,
        state=TaskState.SUBMITTED,
        conversation_id=call.conversation_id or call.task_id,
        from_agent=call.principal.from_agent,
        arguments=dict(call.arguments),
        result=None,
        error=None,
        waits_for=None,
        progress=None,
        created_at=began,
        updated_at=began,
    )
