"""The agents of pydantic_ai_probe, and others that fail, are limited, or are used wrongly."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ModelRetry, RunContext, UsageLimits
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai_probe import Deps, agent, app, durable_researcher, effect, requests_so_far, scripted

from waooaw_celery.agents import DurableAgent, Flow, RetryPolicy, StepFailed

__all__ = ["app"]


def corrects(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    number = requests_so_far(messages)
    effect(f"model {number}")
    if number < 2:
        return ModelResponse(parts=[ToolCallPart("half", {"n": 3 + number}, "same-id")])
    texts = [str(part.content) for message in messages for part in message.parts if hasattr(part, "content")]
    retried = any("even" in text for text in texts)
    return ModelResponse(parts=[TextPart(f"{retried} {texts[-1]}")])


correcting = Agent(FunctionModel(corrects), name="correcting")


@correcting.tool_plain
def half(n: int) -> int:
    effect(f"tool half {n}")
    if n % 2:
        raise ModelRetry("give an even number")
    return n // 2


@agent.workflow
async def retries_model(flow: Flow) -> str:
    return (await DurableAgent(correcting).run(flow, "go")).output


raising = Agent(scripted([ToolCallPart("explode", {}, "call-1")], "survived"), name="raising")


@raising.tool_plain
def explode() -> str:
    effect("tool explode")
    raise ZeroDivisionError("it went wrong")


@agent.workflow
async def raises(flow: Flow) -> list[str]:
    try:
        await DurableAgent(raising, tool_retry=RetryPolicy.fixed(3, 0.02)).run(flow, "go")
    except StepFailed as error:
        await flow.wait_for("go on")
        return [type(error).__name__, str(error.type), str(error)]
    return ["nothing"]


def failing_until(times: int, status: int) -> FunctionModel:
    def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        effect("model")
        lines = Path(os.environ["PROBE_EFFECTS"]).read_text().splitlines()
        if lines.count("model") <= times:
            raise ModelHTTPError(status, "probe", {"reason": "overloaded"})
        return ModelResponse(parts=[TextPart("at last")])

    return FunctionModel(respond)


@agent.workflow
async def model_fails(flow: Flow, times: int, attempts: int) -> list[Any]:
    unstable = Agent(failing_until(times, 503), name="unstable")
    durable = DurableAgent(unstable, retry=RetryPolicy.fixed(attempts, 0.02, on=(ModelHTTPError,)))
    try:
        return [(await durable.run(flow, "go")).output]
    except ModelHTTPError as error:
        await flow.wait_for("go on")
        return [type(error).__name__, error.status_code, error.model_name, error.body]


@agent.workflow
async def is_limited(flow: Flow) -> str:
    try:
        await durable_researcher.run(flow, "go", deps=Deps(flow), usage_limits=UsageLimits(request_limit=1))
    except UsageLimitExceeded as error:
        return type(error).__name__
    return "no limit"


async def takes_long() -> str:
    await asyncio.sleep(60)
    return "late"


@agent.workflow
async def times_out(flow: Flow) -> str:
    slow_tools = Agent(TestModel(), name="slow", tools=[takes_long])
    try:
        await DurableAgent(slow_tools, tool_timeout=0.1).run(flow, "go")
    except TimeoutError as error:
        return type(error).__name__
    return "no timeout"


misusing = Agent(scripted([ToolCallPart("uses_flow", {}, "call-1")], "never"), name="misusing", deps_type=Deps)


@misusing.tool
async def uses_flow(context: RunContext[Deps]) -> Any:
    return await context.deps.flow.wait_for("never")


@agent.workflow
async def misuses(flow: Flow) -> str:
    return (await DurableAgent(misusing).run(flow, "go", deps=Deps(flow))).output


def takes_a_thread() -> str:
    time.sleep(2)
    return "late"


@agent.workflow
async def leaves_thread(flow: Flow) -> str:
    slow_tools = Agent(TestModel(), name="slow", tools=[takes_a_thread])
    begun = time.monotonic()
    try:
        await DurableAgent(slow_tools, tool_timeout=0.1).run(flow, "go")
    except TimeoutError as error:
        return type(error).__name__ if time.monotonic() - begun < 1.5 else "it was waited for"
    return "no timeout"


helping = DurableAgent(Agent(scripted("helped"), name="helping"))
delegating = Agent(
    scripted([ToolCallPart("delegate", {}, "call-1")], "delegated"), name="delegating", deps_type=Deps
)


@delegating.tool
async def delegate(context: RunContext[Deps]) -> str:
    return (await helping.run(context.deps.flow, "help")).output


@agent.workflow
async def delegates(flow: Flow) -> str:
    return (await DurableAgent(delegating).run(flow, "go", deps=Deps(flow))).output


@agent.workflow
def is_plain(flow: Any) -> str:
    return asyncio.run(helping.run(flow, "help")).output


patient = Agent(scripted([ToolCallPart("wait", {}, "call-1")], "done"), name="patient", deps_type=Deps)


@patient.tool(metadata={"waooaw": False})
async def wait(context: RunContext[Deps]) -> Any:
    try:
        return await context.deps.flow.wait_for("go on")
    except asyncio.CancelledError:
        effect("put down")
        raise


@agent.workflow
async def is_put_down(flow: Flow) -> str:
    return (await DurableAgent(patient).run(flow, "go", deps=Deps(flow))).output
