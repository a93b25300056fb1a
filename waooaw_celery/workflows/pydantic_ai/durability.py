"""The capability with which an agent of pydantic-ai runs in a workflow."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import datetime
from typing import Any, ClassVar, get_args

from pydantic import ValidationError
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.capabilities.abstract import WrapToolExecuteHandler, WrapToolValidateHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityCodec,
    DurabilityEngineSpec,
    conversation_id_from_run_id,
)
from pydantic_ai.messages import AgentStreamEvent, HandleResponseEvent, ModelResponseStreamEvent, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.tools import AgentDepsT, RunContext, ToolDefinition

from waooaw_celery.errors import WorkflowChanged
from waooaw_celery.workflows.engine.branch import Branch, current_branch
from waooaw_celery.workflows.pydantic_ai.operations import (
    METADATA,
    StepBackend,
    StepOptions,
    ToolCall,
    current_call,
    in_step,
    running_agent,
    step_part,
)

#: The events of a model's response, which the handler gets within the step of the request.
_MODEL_EVENTS = get_args(get_args(ModelResponseStreamEvent)[0])
#: The events of an agent that a replay makes again.
_REPEATED_EVENTS = get_args(get_args(HandleResponseEvent)[0])
_ONCE = StepOptions.of(None, None)


class _Codec(DurabilityCodec):
    """JSON. A result that cannot be read is no invalid argument of a tool, for which the model would be asked."""

    def dump(self, tp: Any, value: Any) -> Any:
        return JSON_CODEC.dump(tp, value)

    def load(self, tp: Any, payload: Any) -> Any:
        try:
            return JSON_CODEC.load(tp, payload)
        except ValidationError as error:
            raise WorkflowChanged(f"this version of the agent cannot read a recorded result: {error}") from error


class WorkflowDurability(BaseDurabilityCapability[AgentDepsT]):
    """Records what an agent does as steps of the workflow in which it runs.

    Args:
        name: name of the agent, with which the names of its steps begin.
        models: further models, by the name that ``run(model=...)`` takes.
        event_stream_handler: gets the events of the agent.
        model: options of model requests.
        tool: options of tool calls.
    """

    engine_spec: ClassVar[DurabilityEngineSpec] = DurabilityEngineSpec(
        engine_name="waooaw_celery",
        durable_unit_noun="step",
        durable_container_noun="workflow",
        codec=_Codec(),
        wrapped_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        # A server of tools is connected in the first step that needs it: a replay does not connect.
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        tool_config_key=METADATA,
    )

    def __init__(
        self,
        name: str,
        *,
        models: Mapping[str, Model] | None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None,
        model: StepOptions,
        tool: StepOptions,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._handler = event_stream_handler
        self._model_options, self._tool_options = model, tool

    @property
    def in_durable_context(self) -> bool:
        """Whether the running code is a workflow's function."""
        return running_agent.get() is not None

    def get_durable_operation_backend(self) -> StepBackend:
        """Return what runs the operations as steps."""
        return StepBackend(self.name, self.default_model_id, self._model_options, self._tool_options)

    # --- what differs in each run, and must be the same in a replay

    def get_default_run_id(self) -> str | None:
        """Return the id of a run of the agent."""
        running = running_agent.get()
        return None if running is None else str(running.flow.uuid())

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Return the id of the conversation of a run."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        """Return when a run with a timeout began."""
        running = running_agent.get()
        return None if running is None else running.flow.now()

    # --- tool calls: each is named by its id, so that they may run at the same time

    async def wrap_tool_validate(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: str | dict[str, Any],
        handler: WrapToolValidateHandler,
    ) -> dict[str, Any]:
        """Check the arguments of a call."""
        token = current_call.set(ToolCall(call.tool_name, call.tool_call_id))
        try:
            return await handler(args)
        finally:
            current_call.reset(token)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[AgentDepsT],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Call a tool: in a step, or in a branch of its own if it makes steps itself."""
        running = running_agent.get()
        if running is None:
            return await handler(args)
        named = ToolCall(call.tool_name, call.tool_call_id)
        branch = current_branch.get()
        if (tool_def.metadata or {}).get(METADATA) is False:
            branch = Branch(f"{branch.next_path(f'{step_part(running.name)} tool {named}')}[0]/")
        call_token, branch_token = current_call.set(named), current_branch.set(branch)
        try:
            with running.flow.computation():
                return await handler(args)
        finally:
            current_branch.reset(branch_token)
            current_call.reset(call_token)

    # --- events

    async def wrap_run_event_stream(
        self, ctx: RunContext[AgentDepsT], *, stream: AsyncIterable[AgentStreamEvent]
    ) -> AsyncIterable[AgentStreamEvent]:
        """Give the events to the handler, except those of the model's response, which it has had already."""
        if not self.in_durable_context:
            async for event in super().wrap_run_event_stream(ctx, stream=stream):
                yield event
            return
        try:
            async for event in stream:
                if self._handler is not None and not isinstance(event, _MODEL_EVENTS):
                    await self._give(ctx, event)
                yield event
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _give(self, ctx: RunContext[AgentDepsT], event: AgentStreamEvent) -> None:
        """Give an event to the handler: in a step, if a replay makes the event again."""
        handler, running = self._handler, running_agent.get()
        if handler is None or running is None:
            return
        if not isinstance(event, _REPEATED_EVENTS):
            await handler(ctx, _only(event))
            return

        async def give() -> None:
            await handler(ctx, _only(event))

        part = getattr(event, "part", None)
        id_ = getattr(part, "tool_call_id", "")
        name = f"{step_part(running.name)} event {event.event_kind} {step_part(id_)}".rstrip()
        await in_step(name, give, _ONCE)


async def _only(event: AgentStreamEvent) -> AsyncIterator[AgentStreamEvent]:
    yield event
