"""The messaging gateway: calls from outside become requests and workflows, and are answered from the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar
from uuid import NAMESPACE_OID, uuid5

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.requests.response import Response
from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.catalogue import Catalogue, Operation
from waooaw_celery.edges.gateway.open_requests import OpenRequests, check_same
from waooaw_celery.edges.gateway.outcome import task_of_response
from waooaw_celery.edges.gateway.task import Call, TaskInfo, TaskState
from waooaw_celery.edges.gateway.task_reader import TaskReader
from waooaw_celery.edges.gateway.task_stream import TaskStream
from waooaw_celery.errors import (
    ConfigurationError,
    InvalidMessage,
    StoreUnavailable,
    UnknownMessage,
    WaooawError,
)
from waooaw_celery.messages.validation import JSON, NewId, check_id
from waooaw_celery.settings import AuditMode
from waooaw_celery.worker.execution.threads import run_in_thread
from waooaw_celery.workflows.workflows import Workflows, pause_before_look

#: Seconds between two looks at a task that takes long, or whose only answer another edge may get.
_LOOK_SECONDS = 1.0
#: Seconds after which a task takes long: many may be followed at once.
_QUICK_SECONDS = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class Gateway:
    """Calls methods and workflows for principals, and reads what became of the calls.

    A principal sees only the tasks that were called in the name of its agent.

    Args:
        app: the application, with a ledger.
        agents: only these agents can be called; empty: all.

    Raises:
        ConfigurationError: the application has no ledger, from which tasks are read.
    """

    def __init__(self, app: AgentApp, agents: tuple[str, ...] = ()) -> None:
        if not app.components.has_ledger:
            raise ConfigurationError(
                "an edge needs the ledger, from which it answers: set waooaw_database_url (or "
                "WAOOAW_DATABASE_URL), such as sqlite:////path or postgresql://user@host/name"
            )
        self.app = app
        self.catalogue = Catalogue(app, agents)
        self._requests = OpenRequests(app)
        self._bus, self._workflows, self._reader = MessageBus(app), Workflows(app), TaskReader(app)

    def new_task_id(self) -> str:
        """Return the id of a new task. Its answer comes with those of all requests of this process."""
        return self.app.result_collector.new_id()

    def is_asking(self, task_id: str) -> bool:
        """Whether this process waits for the answer of a task. Another request with its id would take it away."""
        return task_id in self._requests

    async def operation(self, principal: Principal, agent: str, method: str) -> Operation:
        """Return a method or workflow that a principal may call.

        Raises:
            NotPermitted: it may not.
            UnknownAgent: the agent is not known, or this edge does not serve it.
            UnknownMethod: the agent has no such method or workflow.
            NoWorker: no worker of it runs, and this process has seen none before.
            StoreUnavailable: the registry does not answer.
        """
        principal.check_may_call(agent, method)
        if method in (self.catalogue.known(agent) or ()):
            return self.catalogue.operation(agent, method)
        return await _in_thread(self.catalogue.operation, agent, method)

    async def operations_for(self, principal: Principal, agent: str) -> list[Operation]:
        """Return the methods and workflows of an agent that a principal may call.

        Raises:
            UnknownAgent: the agent is not known, or this edge does not serve it.
            NoWorker: no worker of it runs, and this process has seen none before.
            StoreUnavailable: the registry does not answer.
        """
        found = self.catalogue.known(agent)
        if found is None:
            found = await _in_thread(self.catalogue.operations, agent)
        return [each for each in found.values() if principal.can_call(agent, each.method)]

    async def start(self, call: Call) -> TaskInfo:
        """Call a method or workflow without waiting for its result. The same id again changes nothing.

        The request goes on, and expires, whether or not this process lives.

        Args:
            call: the call.

        Raises:
            NotPermitted: the principal may not call it, or the task is another principal's.
            UnknownAgent, UnknownMethod, InvalidArguments, RateLimitExceeded, QueueFull, CircuitOpen,
                TooManyInFlight, BrokerUnavailable, StoreUnavailable, BackendUnavailable, InvalidMessage: nothing
                was sent.
        """
        operation = await self.operation(call.principal, call.agent, call.method)
        if (known := await self._known(call)) is not None:
            return known
        if operation.is_workflow:
            await self._start_workflow(call)
            return await self.task(call.principal, call.task_id)
        await self._until_sent(call, self._requests.ask(call))
        return await self.task(call.principal, call.task_id)

    async def run(self, call: Call, *, wait: float | None = None) -> TaskInfo:
        """Call a method or workflow, and wait until it has ended or needs input, or ``wait`` seconds have passed.

        If the caller is cancelled, the task goes on.

        Args:
            call: the call.
            wait: longest time to wait, in seconds; None: ``call.timeout``.

        Raises:
            As ``start``.
        """
        operation = await self.operation(call.principal, call.agent, call.method)
        seconds = call.timeout if wait is None else min(wait, call.timeout)
        # In strict mode the ledger refuses an id that it has, so that asking it before would only cost time.
        asks_first = (
            operation.is_workflow
            or self.app.settings.audit_mode is not AuditMode.STRICT
            or self._requests.is_streamed(call.task_id)
        )
        if asks_first and (known := await self._known(call)) is not None:
            return known if known.state.final else await self.wait(call.principal, call.task_id, seconds)
        if operation.is_workflow:
            await self._start_workflow(call)
            return await self.wait(call.principal, call.task_id, seconds)
        began = datetime.now(UTC)
        asking = self._requests.ask(call)
        if (elsewhere := await self._answered(call, asking, seconds, looks=asks_first)) is not None:
            return elsewhere
        if not asking.done():
            await self._until_sent(call, asking)
            return await self.task(call.principal, call.task_id)
        try:
            response = asking.result()
        except WaooawError:
            if await self._known(call) is None:
                raise
            return await self.wait(call.principal, call.task_id, seconds)  # it was called before
        return task_of_response(call, response, began)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[TaskStream]:
        """Call a method whose answer comes in parts: ``async with gateway.stream(call) as parts: async for …``.

        Leaving the block before the end leaves the task running. When its worker has died and another one begins
        the answer again, ``AGAIN`` is the next part, and all parts follow once more.

        Args:
            call: the call.

        Raises:
            StreamBroken: while you iterate: a part was lost. The task goes on; ``wait`` for its end.
            InvalidMessage: the call was made before, or is being made now. The rest as ``start``.
        """
        await self.operation(call.principal, call.agent, call.method)
        async with self._requests.stream(call) as parts:
            yield parts

    async def task(self, principal: Principal, task_id: str) -> TaskInfo:
        """Return a task.

        Raises:
            UnknownMessage: the principal has no such task.
            StoreUnavailable: the ledger does not answer.
        """
        found = await _in_thread(self._reader.read, check_id(task_id, "the id of a task"))
        if found.from_agent != principal.from_agent:
            raise UnknownMessage(f"there is no task {task_id}")  # whether another has it is nobody's business
        return found

    async def wait(self, principal: Principal, task_id: str, seconds: float) -> TaskInfo:
        """Return a task once it has ended or needs input, or as it is after some seconds.

        Args:
            principal: who asks.
            task_id: the task.
            seconds: longest time to wait.

        Raises:
            As ``task``.
        """
        found = None
        async for task in self.changes(principal, task_id, seconds):
            found = task
        return found or await self.task(principal, task_id)

    async def changes(self, principal: Principal, task_id: str, seconds: float) -> AsyncIterator[TaskInfo]:
        """Yield a task now and after each change, until it has ended or needs input, or some seconds have passed.

        Args:
            principal: who asks.
            task_id: the task.
            seconds: longest time.

        Raises:
            As ``task``.
        """
        began = time.monotonic()
        deadline = began + seconds
        last: TaskInfo | None = None
        while True:
            found = await self.task(principal, task_id)
            if found != last:
                yield found
                last = found
            left = deadline - time.monotonic()
            if found.state.final or found.state is TaskState.INPUT_REQUIRED or left <= 0:
                return
            waited = time.monotonic() - began
            pause = pause_before_look(waited) if waited < _QUICK_SECONDS else _LOOK_SECONDS
            await asyncio.sleep(min(pause, left))

    async def signal(
        self, principal: Principal, task_id: str, signal: str, payload: JSON, *, signal_id: str
    ) -> None:
        """Send a signal to a workflow.

        Args:
            principal: who sends it.
            task_id: the workflow.
            signal: its name.
            payload: any JSON value.
            signal_id: its id; the same id again changes nothing.

        Raises:
            WorkflowEnded: the workflow has ended. The rest as ``task``.
        """
        await self.task(principal, task_id)
        await _in_thread(
            self._workflows.signal, task_id, signal, payload, from_agent=principal.from_agent, signal_id=signal_id
        )

    async def cancel(self, principal: Principal, task_id: str) -> TaskInfo:
        """Cancel a task, and return it. A handler that runs is stopped where it can be.

        Raises:
            NotStoppable: the handler runs in a thread.
            WorkflowEnded: the workflow has ended. The rest as ``task``.
        """
        task = await self.task(principal, task_id)
        if task.state.final:
            return task
        if task.is_workflow:
            await _in_thread(self._workflows.cancel, task_id, by=principal.from_agent)
        else:
            await _in_thread(self._bus.cancel, task_id, running=True, from_agent=principal.from_agent)
        return await self.task(principal, task_id)

    async def _known(self, call: Call) -> TaskInfo | None:
        """Return the task of a call that was made before with the same id; None: it is new."""
        if isinstance(call.task_id, NewId):
            return None
        began = time.monotonic()
        while True:
            try:
                found = await _in_thread(self._reader.read, check_id(call.task_id, "the id of a task"))
            except UnknownMessage:
                if not self._requests.is_streamed(call.task_id):
                    return None
                await asyncio.sleep(pause_before_look(time.monotonic() - began))  # it is being sent
            else:
                break
        check_same(call, found)
        return found

    async def _start_workflow(self, call: Call) -> None:
        await _in_thread(
            self._workflows.start,
            f"{call.agent}.{call.method}",
            call.arguments,
            workflow_id=call.task_id,
            priority=call.priority,
            deadline=timedelta(seconds=call.timeout),
            from_agent=call.principal.from_agent,
            conversation_id=call.conversation_id,
            identity=call.principal.identity(call.protocol),
        )

    async def _answered(
        self, call: Call, asking: asyncio.Future[Response], seconds: float, *, looks: bool
    ) -> TaskInfo | None:
        """Wait until a request is answered here, or some seconds have passed.

        Args:
            call: the call.
            asking: its request.
            seconds: longest time.
            looks: whether another edge may send the same message at the same time. Then its caller may get the
                only answer.

        Returns:
            The task, if the ledger says that it has ended, and no answer has come here. None otherwise.
        """
        deadline = time.monotonic() + seconds
        looks = looks and not isinstance(call.task_id, NewId)
        while (left := deadline - time.monotonic()) > 0:
            done, _ = await asyncio.wait([asking], timeout=min(left, _LOOK_SECONDS) if looks else left)
            if done:
                return None
            if looks and (known := await self._known(call)) is not None and known.state.final:
                return known
        return None

    async def _until_sent(self, call: Call, asking: asyncio.Future[Response]) -> None:
        """Wait until the ledger has a request, or it could not be sent."""
        began = time.monotonic()
        while not asking.done():
            try:
                await _in_thread(self._reader.read, call.task_id)
            except (UnknownMessage, StoreUnavailable):  # its own error tells whether it was sent
                await asyncio.wait([asking], timeout=pause_before_look(time.monotonic() - began))
            else:
                return
        if isinstance(asking.exception(), InvalidMessage) and await self._known(call) is not None:
            return  # another process was faster
        asking.result()


def task_id_of(principal: Principal, key: str) -> str:
    """Return the id of a task for a key that a client chose, such as an ``Idempotency-Key``.

    Two principals may choose the same key.

    Args:
        principal: whose client it is.
        key: any text.
    """
    return str(uuid5(NAMESPACE_OID, f"{principal.name}\x00{key}"))


async def _in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.wrap_future(run_in_thread(function, *args, **kwargs))
