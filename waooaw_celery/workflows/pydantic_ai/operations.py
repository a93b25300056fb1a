"""Operations of an agent as steps: a model request, a tool call, the list of a server's tools."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pydantic_ai.durable_exec import (
    CallableOperationBackend,
    DurableOperationId,
    JournalOperationNamer,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    ToolsetValidateToolArgumentsId,
    record_durable_unit,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.toolsets import ToolsetTool

from waooaw_celery.errors import ConfigurationError, HandlerExited, InvalidMessage, StepFailed
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.engine.branch import Branch, current_branch
from waooaw_celery.workflows.flow import ONCE, Duration, Flow, Retry, timeout_of
from waooaw_celery.workflows.pydantic_ai.errors import add_fields, original

#: The key of a tool's metadata with the options of its steps.
METADATA = "waooaw"
#: Characters that have a meaning in the path of a step.
_RESERVED = str.maketrans("#/[]", "____")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How often and how long a step is tried."""

    retry: RetryPolicy
    timeout: float | None

    @classmethod
    def of(cls, retry: Retry, timeout: Duration | None) -> StepOptions:
        """Return the options for the arguments of a step. Errors that another attempt cannot mend are not retried.

        Raises:
            ConfigurationError, InvalidMessage: an argument is invalid.
        """
        policy = ONCE if retry is None else RetryPolicy.of(retry)
        never = (*policy.never, UserError, ConfigurationError, InvalidMessage)
        return cls(retry=replace(policy, never=never), timeout=timeout_of(timeout))


class ToolCall(NamedTuple):
    """A tool that is being called, and the id of the call, which the model's response has."""

    tool: str
    id: str

    def __str__(self) -> str:
        return f"{step_part(self.tool)} {step_part(self.id)}"


class RunningAgent(NamedTuple):
    """An agent that runs in a workflow."""

    flow: Flow
    name: str


#: The agent that runs; None outside of a workflow, and within a step.
running_agent: ContextVar[RunningAgent | None] = ContextVar("running_agent", default=None)
#: The tool that is being called.
current_call: ContextVar[ToolCall | None] = ContextVar("current_call", default=None)


class InsideStep(Branch):
    """The branch of code that runs within a step: it makes no steps, because a replay would not reach them."""

    def next_path(self, name: str, key: str | None = None) -> str:
        """Refuse a step."""
        raise ConfigurationError(
            f"a tool made the step {key or name!r}, but its call is a step itself. Give the tool "
            f"metadata={{{METADATA!r}: False}}: then it runs in the workflow's function, and makes its own steps"
        )


class StepBackend(CallableOperationBackend[StepOptions]):
    """Runs each operation of an agent as a step.

    Args:
        agent: name of the agent.
        default_model: id of its model.
        model: options of model requests.
        tool: options of tool calls.
    """

    def __init__(self, agent: str, default_model: str | None, model: StepOptions, tool: StepOptions) -> None:
        self._agent, self._tool = agent, tool
        options = RoleBasedOperationConfig(
            model=model,
            event=StepOptions.of(None, None),
            capability=tool,
            tool=tool,
            resolve_tool=self._options_of_tool,
        )
        namer = JournalOperationNamer(agent, default_model_id=default_model or "default")
        super().__init__(namer=namer, config=options)

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: StepOptions,
    ) -> object:
        """Return the recorded result of an operation, or let it happen and record it."""
        return await in_step(step_name(self._agent, operation_id, name), body, config)

    def _options_of_tool(
        self, operation_id: DurableOperationId, tool: object | None, name: str
    ) -> StepOptions | Literal[False]:
        given = (tool.tool_def.metadata or {}).get(METADATA) if isinstance(tool, ToolsetTool) else None
        if given is None:
            return self._tool
        if given is False:
            return False
        if not isinstance(given, dict) or not given.keys() <= {"retry", "timeout"}:
            raise ConfigurationError(
                f"metadata[{METADATA!r}] of tool {name!r} must be False, or a dict with retry and timeout, "
                f"not {given!r:.80}"
            )
        own = StepOptions.of(given.get("retry"), given.get("timeout"))
        return StepOptions(
            retry=own.retry if "retry" in given else self._tool.retry,
            timeout=own.timeout if "timeout" in given else self._tool.timeout,
        )


def step_name(agent: str, operation_id: DurableOperationId, name: str) -> str:
    """Return the name of the step of an operation. It is recorded: another name strands workflows that run.

    Args:
        agent: name of the agent.
        operation_id: the operation.
        name: the name that pydantic-ai gives to it.
    """
    call = current_call.get()
    if isinstance(operation_id, ModelRequestId):
        name = name.removeprefix(f"{agent}__model.request").removeprefix("_stream")
        return f"{step_part(agent)} model{step_part(name)}"
    if isinstance(operation_id, ToolsetCallToolId) and call is not None:
        return f"{step_part(agent)} tool {call}"
    if isinstance(operation_id, ToolsetValidateToolArgumentsId) and call is not None:
        return f"{step_part(agent)} check {call}"
    return step_part(name)


def step_part(text: str) -> str:
    """Return a text as it may stand in the name of a step: short, and without characters of its path."""
    plain = text.translate(_RESERVED)
    if plain == text and len(text) <= 100:
        return text
    return f"{plain[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


async def in_step(name: str, body: Callable[[], Awaitable[object]], options: StepOptions) -> object:
    """Call a function in a step, and return its recorded result.

    Args:
        name: name of the step.
        body: the function.
        options: how often and how long it is tried.

    Raises:
        AgentRunError, UserError: the function raised an error of pydantic-ai.
        StepFailed: it raised another one.
        StepTimeout: it took too long.
    """
    running = running_agent.get()
    if running is None:
        raise ConfigurationError(f"{name} is not in a workflow: run the agent with DurableAgent.run(flow, …)")
    # The step may begin in another task, such as after a replay or a pause. The function gets the context of here.
    context = copy_context()
    executed = False

    async def call() -> object:
        nonlocal executed
        executed = True
        return await asyncio.get_running_loop().create_task(_within(body), context=context.copy())

    call.__name__ = name
    try:
        return await running.flow.step(call, retry=options.retry, timeout=options.timeout)
    except StepFailed as failed:
        error = original(failed)
        if error is failed:
            raise
        raise error from failed
    finally:
        record_durable_unit(executed=executed)  # spans of what a replay did not do are not exported again


async def _within(body: Callable[[], Awaitable[object]]) -> object:
    running_agent.set(None)
    current_branch.set(InsideStep())
    try:
        return await body()
    except (SystemExit, KeyboardInterrupt) as error:  # they would end the event loop of the worker
        raise HandlerExited(f"an agent's step raised {type(error).__name__}") from error
    except Exception as error:
        add_fields(error)
        raise


def is_inside_step() -> bool:
    """Whether the running code is a part of an agent's step."""
    return isinstance(current_branch.get(None), InsideStep)
