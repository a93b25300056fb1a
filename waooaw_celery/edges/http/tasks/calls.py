"""Calls of methods and workflows by HTTP: waited for, with a link, or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.gateway.task import Call, TaskInfo, TaskState
from waooaw_celery.edges.gateway.task_stream import AGAIN, TaskStream
from waooaw_celery.edges.http import reading
from waooaw_celery.edges.http.problems import Problem, ProblemResponse, problem_of_task
from waooaw_celery.edges.http.task_forms import task_form
from waooaw_celery.edges.http.tasks.abandoned import Abandoned
from waooaw_celery.edges.http.tasks.event_stream import Event, EventStream, Streams, until_gone
from waooaw_celery.edges.http.tasks.idempotency import Keys
from waooaw_celery.edges.http.tasks.task_routes import ended_event, events_of, task_path
from waooaw_celery.errors import InvalidMessage, RequestError
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import NewId

#: Seconds that the ledger may take to learn of an end that the caller knows already.
_LEDGER_SECONDS = 5.0


class Calls:
    """Answers calls.

    Args:
        context: the edge.
        streams: the open streams of the edge.
        abandoned: takes care of tasks whose clients have gone.
    """

    def __init__(self, context: EdgeContext, streams: Streams, abandoned: Abandoned) -> None:
        self._gateway, self._options = context.gateway, context.options
        self._streams, self._abandoned = streams, abandoned
        self._keys = Keys(context.gateway)

    async def call(self, request: Request) -> Response:
        """Answer ``POST /v1/agents/{agent}/methods/{method}``."""
        call, key = await self._read(request)
        if key is None:
            return await self._answer(request, call, is_known=False)
        with self._keys.using(call):
            return await self._answer(request, call, is_known=await self._keys.is_known(call))

    async def _read(self, request: Request) -> tuple[Call, str | None]:
        principal = reading.principal_of(request)
        agent, method = request.path_params["agent"], request.path_params["method"]
        principal.check_may_call(agent, method)
        arguments = await reading.json_of(request, default={})
        if not isinstance(arguments, dict):
            raise Problem(422, "the body must be a JSON object with the arguments by name")
        key = reading.idempotency_key(request)
        call = Call(
            principal=principal,
            protocol="http",
            agent=agent,
            method=method,
            arguments=arguments,
            task_id=self._gateway.new_task_id() if key is None else reading.id_for(principal, key),
            conversation_id=reading.conversation_of(request),
            priority=reading.priority_of(request),
            timeout=reading.timeout_of(request, self._options.timeout),
        )
        return call, key

    async def _answer(self, request: Request, call: Call, *, is_known: bool) -> Response:
        if reading.wants_events(request):
            return await self._stream(request, call, is_known=is_known)
        wanted = reading.preferences(request)
        wait = wanted.wait
        if wait is None:
            wait = 0.0 if wanted.respond_async else call.timeout
        if wait > 0:
            task = await self._while_there(request, call, self._run(call, wait))
        else:
            task = await self._gateway.start(call)
        self._keys.check_same(call, task)
        return self._response(request, task, wanted.applied)

    async def _run(self, call: Call, wait: float) -> TaskInfo:
        task = await self._gateway.run(call, wait=wait)
        if task.state.final or wait < call.timeout:
            return task
        # Its whole time is over: at this moment its worker stops it.
        return await self._gateway.wait(call.principal, call.task_id, _LEDGER_SECONDS)

    def _response(self, request: Request, task: TaskInfo, applied: str) -> Response:
        headers = {"Preference-Applied": applied} if applied else {}
        if task.state is TaskState.COMPLETED:
            return JSONResponse(task_form(task), 200, headers)
        if task.state.final:
            return ProblemResponse(problem_of_task(task), headers)
        return JSONResponse(task_form(task), 202, headers | {"Location": task_path(request, task.task_id)})

    async def _while_there(self, request: Request, call: Call, work: Coroutine[Any, Any, TaskInfo]) -> TaskInfo:
        """Return the task of a call, as it is if this edge stops; the work ends if the client goes away."""
        noted = self._streams.open()
        working, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request.receive))
        stopping = asyncio.ensure_future(noted[1].wait())
        try:
            await asyncio.wait({working, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                self._left(call, is_gone=True)
                raise Problem(499, "the client went away")  # nobody reads it
        finally:
            self._streams.close(noted)
            for each in (working, gone, stopping):
                each.cancel()
            await asyncio.gather(working, gone, stopping, return_exceptions=True)
        return await self._gateway.task(call.principal, call.task_id)

    def _left(self, call: Call, *, is_gone: bool) -> None:
        """Note that nobody waits for a task any more: its client has gone, or this edge stops."""
        if is_gone and self._options.cancel_when_gone:
            self._abandoned.cancel(call.principal, call.task_id)

    async def _stream(self, request: Request, call: Call, *, is_known: bool) -> Response:
        operation = await self._gateway.operation(call.principal, call.agent, call.method)
        headers = {"Location": task_path(request, call.task_id)}
        if is_known or not operation.streams:
            return await self._follow(call, headers)
        stack = AsyncExitStack()
        try:
            stream = await stack.enter_async_context(self._gateway.stream(call))
        except InvalidMessage:
            if isinstance(call.task_id, NewId):
                raise
            return await self._follow(call, headers)  # it is being made already; if it is invalid, this raises

        def left_stream(is_gone: bool) -> None:
            stream.detach()
            self._left(call, is_gone=is_gone)

        events = self._parts(call, stack, stream)
        return EventStream(events, self._streams, headers=headers, left=left_stream)

    async def _follow(self, call: Call, headers: dict[str, str]) -> Response:
        """Return the changes of a call, which may have been made before."""
        task = await self._gateway.start(call)
        self._keys.check_same(call, task)
        events = events_of(self._gateway, call.principal, call.task_id, call.timeout)
        left = lambda is_gone: self._left(call, is_gone=is_gone)  # noqa: E731
        return EventStream(events, self._streams, headers=headers, left=left)

    async def _parts(self, call: Call, stack: AsyncExitStack, stream: TaskStream) -> AsyncGenerator[Event, None]:
        """Yield the parts of an answer, and then the task."""
        async with stack:
            number = 0
            ended = False
            try:
                async for part in stream:
                    if part is AGAIN:
                        number = 0
                        yield Event("restart", {"reason": "the worker died: all parts follow again"})
                        continue
                    yield Event("part", as_json(part, str), number)
                    number += 1
                ended = True
            except RequestError:  # the ledger knows how it ended
                pass
        task = await self._gateway.wait(call.principal, call.task_id, _LEDGER_SECONDS)
        if ended and not task.state.final:
            task = replace(task, state=TaskState.COMPLETED, result=stream.result)
        yield ended_event(task)
