"""Tasks by HTTP: read from the ledger, followed until they end, cancelled, and given signals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.gateway.task import TaskInfo, TaskState
from waooaw_celery.edges.http import reading
from waooaw_celery.edges.http.problems import problem_of_task
from waooaw_celery.edges.http.task_forms import task_form
from waooaw_celery.edges.http.tasks.event_stream import Event, EventStream, Streams

#: Seconds between two looks at a workflow that waits for a signal: for hours perhaps, and many may be followed.
_INPUT_SECONDS = 1.0


class Tasks:
    """Answers what concerns a task.

    Args:
        context: the edge.
        streams: the open streams of the edge.
    """

    def __init__(self, context: EdgeContext, streams: Streams) -> None:
        self._gateway, self._options, self._streams = context.gateway, context.options, streams

    async def get(self, request: Request) -> Response:
        """Answer ``GET /v1/tasks/{id}``."""
        task = await self._gateway.task(reading.principal_of(request), request.path_params["id"])
        return JSONResponse(task_form(task))

    async def events(self, request: Request) -> Response:
        """Answer ``GET /v1/tasks/{id}/events``. A client that connects again gets the state as it is now."""
        principal, id_ = reading.principal_of(request), request.path_params["id"]
        await self._gateway.task(principal, id_)  # an unknown task has a status of its own
        return EventStream(events_of(self._gateway, principal, id_, self._options.timeout), self._streams)

    async def cancel(self, request: Request) -> Response:
        """Answer ``DELETE /v1/tasks/{id}``."""
        task = await self._gateway.cancel(reading.principal_of(request), request.path_params["id"])
        return JSONResponse(task_form(task), 200 if task.state.final else 202)

    async def signal(self, request: Request) -> Response:
        """Answer ``POST /v1/tasks/{id}/signals/{name}``."""
        principal, id_ = reading.principal_of(request), request.path_params["id"]
        payload = await reading.json_of(request)
        signal_id = reading.id_for(principal, reading.idempotency_key(request))
        await self._gateway.signal(principal, id_, request.path_params["name"], payload, signal_id=str(signal_id))
        return JSONResponse(task_form(await self._gateway.task(principal, id_)), 202)


async def events_of(
    gateway: Gateway, principal: Principal, task_id: str, seconds: float
) -> AsyncGenerator[Event, None]:
    """Yield a task as events, at each change, until it has ended or some seconds have passed.

    Args:
        gateway: calls agents.
        principal: who asks.
        task_id: the task.
        seconds: longest time.
    """
    deadline = time.monotonic() + seconds
    last: TaskInfo | None = None
    while True:
        async for task in gateway.changes(principal, task_id, max(deadline - time.monotonic(), 0.0)):
            if task != last and not task.state.final:
                yield Event("task", task_form(task))
            last = task
        if last is not None and last.state.final:
            yield ended_event(last)
            return
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(_INPUT_SECONDS)  # it waits for a signal


def ended_event(task: TaskInfo) -> Event:
    """Return the last event of a task: ``result``, ``error``, or ``task`` if it has not ended."""
    if not task.state.final:
        return Event("task", task_form(task))
    if task.state is TaskState.COMPLETED:
        return Event("result", task_form(task))
    return Event("error", problem_of_task(task))


def task_path(request: Request, task_id: str) -> str:
    """Return the path of a task, also where the edge is mounted in another application."""
    return f"{request.scope.get('root_path', '')}/v1/tasks/{task_id}"
