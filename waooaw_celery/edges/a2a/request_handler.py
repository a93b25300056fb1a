"""Handles the requests of A2A. The ledger is the store of tasks: any edge of the application can tell of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, cast

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils.errors import (
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from waooaw_celery.edges.a2a.card import agent_card
from waooaw_celery.edges.a2a.messages import arguments_of, choose_operation, input_of
from waooaw_celery.edges.a2a.protocol_errors import protocol_errors
from waooaw_celery.edges.a2a.push.settings import PushSettings
from waooaw_celery.edges.a2a.streaming import Event, Streaming
from waooaw_celery.edges.a2a.task_list import TaskList
from waooaw_celery.edges.a2a.tasks import EndedTasks, a2a_task
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.gateway.catalogue import Operation, operations_of
from waooaw_celery.edges.gateway.gateway import task_id_of
from waooaw_celery.edges.gateway.task import Call, TaskInfo, TaskState
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.messages.validation import check_id
from waooaw_celery.worker.execution.threads import run_in_thread

#: The keys of the call's context: who asks, which agent, and the HTTP request.
PRINCIPAL, AGENT, REQUEST = "principal", "agent", "request"
#: Seconds between two looks whether a client is still there.
_GONE_PERIOD = 0.25
#: Seconds within which the ledger has a task that is being sent.
_RECORDED_SECONDS = 10.0


class LedgerRequestHandler(RequestHandler):
    """Handles the requests of A2A for all agents of an edge; the context of a call names the agent.

    Args:
        edge: what the edge gives to its protocols.
        push: takes the push-notification settings.
    """

    def __init__(self, edge: EdgeContext, push: PushSettings) -> None:
        self._edge, self._gateway, self._options = edge, edge.gateway, edge.options
        self._push = push
        self._ended = EndedTasks()
        self._list = TaskList(edge.gateway, self._ended)
        self.streaming = Streaming(edge.gateway, self._ended, cancel_when_gone=edge.options.cancel_when_gone)

    @validate_request_params
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task | Message:
        """Call a method or workflow, or give a workflow its input; wait for the end unless told otherwise."""
        configuration = params.configuration
        with protocol_errors():
            principal = _principal(context)
            task: TaskInfo | None = None
            if params.message.task_id:
                task = await self._give_input(params.message, context)
            else:
                call, _ = await self._call(params.message, context)
                await self._push.check(configuration)
                if (
                    configuration.return_immediately
                    or configuration.HasField("task_push_notification_config")
                    or self.streaming.is_answering(call.task_id)
                ):
                    task = await self._start(call)
            if task is None:
                task = await self._unless_gone(self._gateway.run(call), principal, call.task_id, context)
            else:
                await self._push.keep_with(configuration, principal, task.task_id)
            if not configuration.return_immediately and not task.state.final:
                end = self._gateway.wait(principal, task.task_id, self._options.timeout)
                task = await self._unless_gone(end, principal, task.task_id, context)
        return a2a_task(self._ended.note(task), _history_length(configuration))

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Do as ``on_message_send``, and yield the task and each change of it."""
        with protocol_errors():
            principal = _principal(context)
            if params.message.task_id:
                task = await self._give_input(params.message, context)
                events = self.streaming.changes(principal, task, self._options.timeout)
            else:
                call, operation = await self._call(params.message, context)
                await self._push.check(params.configuration)
                events = self._events(call, operation)
            is_told = False
            async with aclosing(events):  # type: ignore[type-var]  # it is a generator
                async for event in events:
                    if not is_told:
                        await self._push.keep_with(params.configuration, principal, event.id)
                        is_told = True
                    yield event

    @validate_request_params
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task | None:
        """Return a task, as the ledger knows it."""
        with protocol_errors():
            task = await self._task(params.id, context)
        return a2a_task(task, params.history_length if params.HasField("history_length") else None)

    @validate_request_params
    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        """Return the tasks of the principal at this agent, newest first."""
        with protocol_errors():
            return await self._list.read(_principal(context), context.state[AGENT], params)

    @validate_request_params
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task | None:
        """Cancel a task."""
        with protocol_errors():
            task = await self._task(params.id, context)
            if task.state.final:
                raise TaskNotCancelableError(f"the task has ended already: it is {task.state}")
            found = await self._gateway.cancel(_principal(context), task.task_id)
            if not found.state.final:  # a workflow undoes first what it has done
                found = await self._gateway.wait(_principal(context), task.task_id, 5.0)
        return a2a_task(found)

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event]:
        """Yield a task that has not ended, and its changes until its end. The parts of a stream come last."""
        with protocol_errors():
            task = await self._task(params.id, context)
            if task.state.final:
                raise UnsupportedOperationError(f"the task has ended already, it is {task.state}: get it instead")
            seconds = self._options.timeout
            changes = self.streaming.changes(_principal(context), task, seconds, watched=True)
            async with aclosing(changes):  # type: ignore[type-var]
                async for event in changes:
                    yield event

    @validate_request_params
    async def on_create_task_push_notification_config(
        self, params: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Keep the push-notification settings of a task, and send it notifications from now on."""
        with protocol_errors():
            task = await self._task(params.task_id, context)
            if task.state.final:
                raise UnsupportedOperationError(f"the task has ended already, it is {task.state}: nothing follows")
            return await self._push.keep(params, _principal(context))

    @validate_request_params
    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """Return push-notification settings of a task."""
        with protocol_errors():
            await self._task(params.task_id, context)
            return await self._push.get(params.task_id, params.id)

    @validate_request_params
    async def on_list_task_push_notification_configs(
        self, params: ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        """Return all push-notification settings of a task."""
        with protocol_errors():
            await self._task(params.task_id, context)
            return ListTaskPushNotificationConfigsResponse(configs=await self._push.all(params.task_id))

    @validate_request_params
    async def on_delete_task_push_notification_config(
        self, params: DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Remove push-notification settings of a task."""
        with protocol_errors():
            await self._task(params.task_id, context)
            await self._push.remove(params.task_id, params.id)

    async def on_get_extended_agent_card(
        self, params: GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> AgentCard:
        """Return the card with the skills that the principal may use."""
        with protocol_errors():
            principal = _principal(context)
            info = await asyncio.wrap_future(run_in_thread(self._gateway.catalogue.agent, context.state[AGENT]))
            operations = operations_of(info, principal)
            return agent_card(info, operations, self._options.public_url, self._edge.authentication.schemes())

    async def _call(self, message: Message, context: ServerCallContext) -> tuple[Call, Operation]:
        """Return the call that a message asks for. The same message of the same principal is the same call."""
        principal, agent = _principal(context), context.state[AGENT]
        operation = choose_operation(message, await self._gateway.operations_for(principal, agent))
        call = Call(
            principal=principal,
            protocol="a2a",
            agent=agent,
            method=operation.method,
            arguments=arguments_of(message, operation),
            task_id=task_id_of(principal, f"a2a:{agent}:{message.message_id}"),
            conversation_id=check_id(message.context_id, "contextId") if message.context_id else None,
            timeout=self._options.timeout,
        )
        return call, operation

    async def _start(self, call: Call) -> TaskInfo:
        """Start a call, which may be one that is being answered as a stream."""
        if self.streaming.is_answering(call.task_id):
            return await self._recorded(call)
        return await self._gateway.start(call)

    async def _events(self, call: Call, operation: Operation) -> AsyncIterator[Event]:
        """Yield the events of a new call; of one that was made before, what the ledger knows."""
        principal = call.principal
        try:
            known: TaskInfo | None = await self._gateway.task(principal, call.task_id)
        except UnknownMessage:
            known = None
        is_asking = self.streaming.is_answering(call.task_id) or self._gateway.is_asking(call.task_id)
        if known is None and operation.streams and not is_asking:
            is_begun = False
            try:
                async with aclosing(self.streaming.answer(call)) as events:  # type: ignore[type-var]
                    async for event in events:
                        is_begun = True
                        yield event
            except InvalidMessage:
                if is_begun:
                    raise
                # Another process was faster, or the message is invalid: then nothing is recorded.
                known = await self._gateway.task(principal, call.task_id)
            else:
                return
        if known is None or (known.agent, known.method) != (call.agent, call.method):
            known = await self._start(call)
        async with aclosing(self.streaming.changes(principal, known, call.timeout)) as news:  # type: ignore[type-var]
            async for event in news:
                yield event

    async def _recorded(self, call: Call) -> TaskInfo:
        """Return a task that is being sent, once the ledger has it.

        Raises:
            UnknownMessage: it is not recorded in time.
        """
        deadline = asyncio.get_running_loop().time() + _RECORDED_SECONDS
        while True:
            try:
                return await self._gateway.task(call.principal, call.task_id)
            except UnknownMessage:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.02)

    async def _give_input(self, message: Message, context: ServerCallContext) -> TaskInfo:
        """Give a workflow the input for which it waits, and return it as it goes on."""
        task = await self._task(message.task_id, context)
        if message.context_id and message.context_id != task.conversation_id:
            raise InvalidParamsError(
                f"the task belongs to the contextId {task.conversation_id}: send that, or leave it out"
            )
        if task.state is not TaskState.INPUT_REQUIRED or task.waits_for is None:
            raise UnsupportedOperationError(
                f"the task takes no message: it is {task.state}. A message without taskId begins another"
            )
        principal = _principal(context)
        id_ = task_id_of(principal, f"a2a:{task.task_id}:{message.message_id}")
        await self._gateway.signal(principal, task.task_id, task.waits_for, input_of(message), signal_id=id_)
        return await self._after_input(principal, task)

    async def _after_input(self, principal: Principal, before: TaskInfo) -> TaskInfo:
        """Return a workflow once it has taken its input: until then the ledger still says that it waits."""
        deadline = asyncio.get_running_loop().time() + self._options.timeout
        while (task := await self._gateway.task(principal, before.task_id)) == before:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        return task

    async def _unless_gone(
        self,
        waiting: Coroutine[Any, Any, TaskInfo],
        principal: Principal,
        task_id: str,
        context: ServerCallContext,
    ) -> TaskInfo:
        """Wait for a task; if its client goes away before, the task is cancelled where that is set."""
        if not self._options.cancel_when_gone:
            return await waiting
        future = asyncio.ensure_future(waiting)
        try:
            while not (await asyncio.wait([future], timeout=_GONE_PERIOD))[0]:
                if await context.state[REQUEST].is_disconnected():
                    await self.streaming.cancel(principal, task_id)
                    break
            return await future
        finally:
            future.cancel()

    async def _task(self, task_id: str, context: ServerCallContext) -> TaskInfo:
        """Return a task of the principal at this agent.

        Raises:
            TaskNotFoundError: there is none, or it is no valid id.
        """
        try:
            task = await self._gateway.task(_principal(context), task_id)
        except InvalidMessage as error:
            raise TaskNotFoundError(str(error)) from error
        if task.agent != context.state[AGENT]:
            raise TaskNotFoundError(f"there is no task {task_id} at {context.state[AGENT]}")
        return self._ended.newest(task)


def _principal(context: ServerCallContext) -> Principal:
    return cast(Principal, context.state[PRINCIPAL])


def _history_length(configuration: SendMessageConfiguration) -> int | None:
    return configuration.history_length if configuration.HasField("history_length") else None
