"""An agent of pydantic-ai that runs in workflows and survives every crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.durable_exec import external_event_scope, replay_scope
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model
from pydantic_ai.output import OutputSpec
from pydantic_ai.run import AgentRunResult

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.workflows.flow import Duration, Flow, Retry
from waooaw_celery.workflows.pydantic_ai.durability import WorkflowDurability
from waooaw_celery.workflows.pydantic_ai.events import SignalWaiter
from waooaw_celery.workflows.pydantic_ai.operations import (
    RunningAgent,
    StepOptions,
    is_inside_step,
    running_agent,
)

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")
RunOutputT = TypeVar("RunOutputT")


class DurableAgent(Generic[DepsT, OutputT]):
    """An agent of pydantic-ai whose model requests and tool calls are steps of a workflow.

    What is recorded is not done again after a crash: no model request is paid twice. The tool calls of a
    response run at the same time. Outside of ``run(flow, …)`` the agent is as it was.

    Args:
        agent: the agent. It needs a name; its toolsets need an ``id``.
        name: with what the names of its steps begin; None: the agent's name. Another name strands workflows that
            run.
        models: further models, by the name that ``run(model=...)`` takes.
        event_stream_handler: gets the events of the agent while they happen, such as the parts of a response. It
            runs in the step of the model request.
        retry: when a model request is tried again after an error: a policy, or a number of further attempts.
        timeout: how long an attempt of a model request may take.
        tool_retry: the same for tools. ``metadata={"waooaw": {"retry": 3, "timeout": 10}}`` of a tool is for this
            tool only. With ``metadata={"waooaw": False}`` it runs in the workflow's function, and makes its own
            steps.
        tool_timeout: how long an attempt of a tool call may take.

    Raises:
        ConfigurationError: the agent has no name, or an argument is invalid.

    Example:
        >>> support = DurableAgent(Agent("openai:gpt-5", name="support", tools=[look_up]), retry=3)
        >>> @agent.workflow
        ... async def answer(flow: Flow, question: str) -> str:
        ...     result = await support.run(flow, question)
        ...     return result.output
    """

    def __init__(
        self,
        agent: AbstractAgent[DepsT, OutputT],
        *,
        name: str | None = None,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[DepsT] | None = None,
        retry: Retry = None,
        timeout: Duration | None = None,
        tool_retry: Retry = None,
        tool_timeout: Duration | None = None,
    ) -> None:
        found = name or agent.name
        if not found:
            raise ConfigurationError("a durable agent needs a name: Agent(…, name='support')")
        self.agent, self.name = agent, found
        self._models = models
        self._handler = event_stream_handler
        self._model_options = StepOptions.of(retry, timeout)
        self._tool_options = StepOptions.of(tool_retry, tool_timeout)

    @overload
    async def run(
        self,
        flow: Flow,
        user_prompt: str | Sequence[UserContent] | None = ...,
        *,
        output_type: OutputSpec[RunOutputT],
        event_stream_handler: EventStreamHandler[DepsT] | None = ...,
        **options: Any,
    ) -> AgentRunResult[RunOutputT]: ...

    @overload
    async def run(
        self,
        flow: Flow,
        user_prompt: str | Sequence[UserContent] | None = ...,
        *,
        event_stream_handler: EventStreamHandler[DepsT] | None = ...,
        **options: Any,
    ) -> AgentRunResult[OutputT]: ...

    async def run(
        self,
        flow: Flow,
        user_prompt: str | Sequence[UserContent] | None = None,
        *,
        event_stream_handler: EventStreamHandler[DepsT] | None = None,
        **options: Any,
    ) -> AgentRunResult[Any]:
        """Run the agent in a workflow, and return its result.

        Within a step, such as a tool of another agent, the agent runs without steps of its own.

        Args:
            flow: the steps of the workflow.
            user_prompt: the prompt.
            event_stream_handler: gets the events of this run; None: that of the agent.
            options: the other arguments of ``Agent.run``: ``deps``, ``message_history``, ``output_type``, …

        Raises:
            ConfigurationError: the workflow is a plain ``def``.
            AgentRunError, UserError: a model request failed, or a limit was exceeded.
            StepFailed: a tool raised another error. It has the name of the error's class.
            StepTimeout: a model request or a tool call took too long.
        """
        handler = event_stream_handler or self._handler
        if is_inside_step():
            plain: AgentRunResult[Any] = await self.agent.run(user_prompt, event_stream_handler=handler, **options)
            return plain
        if not isinstance(flow, Flow):
            raise ConfigurationError(
                f"a durable agent runs in a workflow that is an `async def`; run() got {type(flow).__name__}"
            )
        durability = WorkflowDurability[DepsT](
            self.name,
            models=self._models,
            event_stream_handler=handler,
            model=self._model_options,
            tool=self._tool_options,
        )
        capabilities = [*(options.pop("capabilities", None) or ()), durability]
        token = running_agent.set(RunningAgent(flow, self.name))
        try:
            with (
                flow.computation(),
                # Events in the order of the calls: their order is the same in a replay.
                self.agent.parallel_tool_call_execution_mode("parallel_ordered_events"),
                # A call that takes too long can be left. Those of pydantic-ai's own threads are waited for.
                self.agent.using_thread_executor(flow.threads),
                self.agent.using_sleep(flow.sleep),
                external_event_scope(SignalWaiter(flow, self.name)),
                replay_scope(),
            ):
                result: AgentRunResult[Any] = await self.agent.run(
                    user_prompt, capabilities=capabilities, **options
                )
        finally:
            running_agent.reset(token)
        return result
