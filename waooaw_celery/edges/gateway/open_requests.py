"""The requests that this process has sent for calls from outside, and whose answers it awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from waooaw_celery.agents.requests.operations import RequestOperations
from waooaw_celery.agents.requests.response import Response
from waooaw_celery.agents.waiting import RequestSteps, awaited
from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.gateway.task import Call, TaskInfo
from waooaw_celery.edges.gateway.task_stream import TaskStream
from waooaw_celery.errors import InvalidMessage, NotPermitted
from waooaw_celery.messages.validation import NewId
from waooaw_celery.settings import AuditMode

#: Seconds within which the ledger is surely told of an answer in batched mode.
_TOLD_SECONDS = 1.0


class OpenRequests:
    """Sends the request of each call once in this process, and keeps it while it has no answer.

    Args:
        app: the application.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self.operations = RequestOperations(app, TaskStream)
        #: By the id of the task. They go on when their callers have gone. (The event loop itself holds its tasks
        #: only weakly.)
        self._asked: dict[str, tuple[Call, asyncio.Future[Response]]] = {}
        #: The calls whose answers are read in parts.
        self._streamed: set[str] = set()

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._asked or task_id in self._streamed

    def is_streamed(self, task_id: str) -> bool:
        """Whether the answer of a task is read in parts."""
        return task_id in self._streamed

    def ask(self, call: Call) -> asyncio.Future[Response]:
        """Return the request of a call, which is sent now unless it was sent before.

        Raises:
            NotPermitted: another call with the same id is being made.
        """
        if (known := self._asked.get(call.task_id)) is not None:
            check_same(call, known[0])
            return known[1]
        asking = asyncio.ensure_future(self._request(call))
        self._asked[call.task_id] = call, asking
        asking.add_done_callback(lambda _: self._answer_came(call))
        return asking

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[TaskStream]:
        """Send a call whose answer comes in parts, and give them during the block.

        Raises:
            InvalidMessage: the call is being made now. A second request with its id would take the answer away.
        """
        if call.task_id in self:
            raise InvalidMessage(f"the call {call.task_id} is being made already: ask for its task")
        stream = self.operations.stream(
            call.agent,
            call.method,
            dict(call.arguments),
            from_agent=call.principal.from_agent,
            timeout=call.timeout,
            priority=call.priority,
            ids=call.ids,
        )
        self._streamed.add(call.task_id)
        try:
            async with stream:
                yield stream
        finally:
            self._streamed.discard(call.task_id)

    def _answer_came(self, call: Call) -> None:
        """Forget a request; in batched mode, not before the ledger has surely been told of it.

        Until then a repeat that has just read the ledger would send it again.
        """
        if self._app.settings.audit_mode is AuditMode.STRICT or isinstance(call.task_id, NewId):
            del self._asked[call.task_id]
        else:
            asyncio.get_running_loop().call_later(_TOLD_SECONDS, self._asked.pop, call.task_id)

    async def _request(self, call: Call) -> Response:
        responses: list[Response] = await _ask(
            self,
            [call.agent],
            call.method,
            dict(call.arguments),
            from_agent=call.principal.from_agent,
            timeout=call.timeout,
            priority=call.priority,
            ids=call.ids,
        )
        return responses[0]


def check_same(call: Call, known: Call | TaskInfo) -> None:
    """Check that a call is one that was made before with the same id.

    Raises:
        NotPermitted: it is another one.
    """
    from_agent = known.principal.from_agent if isinstance(known, Call) else known.from_agent
    one = call.principal.from_agent, call.agent, call.method
    if one != (from_agent, known.agent, known.method):
        raise NotPermitted(f"the id {call.task_id} belongs to another call: choose another")


def _ask_steps(operations: RequestOperations[Any], *args: Any, **kwargs: Any) -> RequestSteps[list[Response]]:
    return operations.ask(*args, **kwargs)


_ask: Any = awaited(_ask_steps)
