"""Agents of pydantic-ai whose process is lost after every write of their journal: the result is the same."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, RunContext, ToolDefinition
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from test_workflow_replay import act, app, effects, run_once

from waooaw_celery import Agent as MessagingAgent
from waooaw_celery import AgentApp
from waooaw_celery.agents import DurableAgent, Flow, Workflows

__all__ = ["app"]  # a fixture


@dataclass
class Deps:
    flow: Flow


async def respond(messages: list[ModelMessage], _: AgentInfo) -> Any:
    """Call tools at the same time, then one that makes steps itself; then say what they returned."""
    number = sum(isinstance(message, ModelResponse) for message in messages)
    effects[f"model {number}"] += 1
    if number == 0:
        for index, word in enumerate("abc"):
            yield {index: DeltaToolCall("look_up", f'{{"word": "{word}"}}', tool_call_id=f"call {word}")}
        yield {3: DeltaToolCall("plan", '{"goal": "g"}', tool_call_id="call plan")}
        yield {4: DeltaToolCall("plan", '{"goal": "h"}', tool_call_id="call other plan")}
    else:
        parts = [part for message in messages for part in message.parts]
        yield str([part.content for part in parts if isinstance(part, ToolReturnPart)])


async def whole(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Respond at once."""
    number = sum(isinstance(message, ModelResponse) for message in messages)
    if number == 0:
        effects["model 0"] += 1
        calls = [ToolCallPart("look_up", {"word": word}, f"call {word}") for word in "abc"]
        plans = [ToolCallPart("plan", {"goal": goal}, f"call {goal}") for goal in "gh"]
        return ModelResponse(parts=[*calls, *plans])
    return ModelResponse(parts=[TextPart("".join([part async for part in respond(messages, info)]))])


class Shuffled(AbstractCapability[Deps]):
    """Lets tool calls go on in another order each time."""

    async def before_tool_execute(
        self, ctx: RunContext[Deps], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        """Wait for some time."""
        await asyncio.sleep(random.random() / 50)  # noqa: S311 - nothing here is secret
        return args


planner = Agent(
    FunctionModel(whole, stream_function=respond), name="planner", deps_type=Deps, capabilities=[Shuffled()]
)


@planner.instructions
def instruct() -> str:
    """Return the instructions, in a thread, more slowly than a branch that waits."""
    time.sleep(0.02)
    return "plan"


def check(context: RunContext[Deps], word: str) -> None:
    effects[f"check {word}"] += 1


@planner.tool(args_validator=check)
async def look_up(context: RunContext[Deps], word: str) -> str:
    await asyncio.sleep({"a": 0.03, "b": 0.015}.get(word, 0.0))
    effects[f"tool {word}"] += 1
    if word == "b" and context.retry == 0:
        raise ModelRetry("again")
    return f"found {word}"


@planner.tool(metadata={"waooaw": False})
async def plan(context: RunContext[Deps], goal: str) -> str:
    flow = context.deps.flow
    one, two = await flow.gather(flow.step(act, f"{goal} one"), flow.step(act, f"{goal} two"))
    await asyncio.sleep(random.random() / 50)  # noqa: S311 - nothing here is secret
    await flow.sleep(0.001)
    return f"{one} {two} {await flow.step(act, f'{goal} three')}"


async def handle(context: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
    async for event in events:
        effects[f"event {event.event_kind}"] += 1


async def plans(flow: Flow, program: dict[str, Any]) -> list[Any]:
    durable = DurableAgent(planner, event_stream_handler=handle if program["streams"] else None)

    async def other() -> list[Any]:
        return [await flow.step(act, f"other {number}") for number in range(6)]

    result, others = await flow.gather(durable.run(flow, "go", deps=Deps(flow)), other())
    return [result.output, result.run_id, others]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_a_crash_at_any_write_changes_no_result(app: AgentApp, streams: bool) -> None:
    """Each call that was recorded is made once; one whose record was lost is made once more."""
    MessagingAgent("planner", app).workflow(plans)
    given = {"streams": streams}
    expected, writes = run_once(app, "whole", given, [], "planner.plans")
    once = dict(effects)
    assert expected[0].count("found") == 2
    for crash in range(writes):
        result, _ = run_once(app, f"crashed-{crash}", given, [crash], "planner.plans")
        assert [result[0], result[2]] == [expected[0], expected[2]]
        assert set(effects) == set(once)
        assert all(count <= 2 * once[text] for text, count in effects.items())
        requests = [text for text in once if text.startswith("model ")]
        assert sum(effects[text] for text in requests) <= sum(once[text] for text in requests) + 1
        assert Workflows(app).get(f"crashed-{crash}").error is None
