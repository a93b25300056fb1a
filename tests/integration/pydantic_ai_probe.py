"""A test agent whose workflows run agents of pydantic-ai, with models that are functions.

PROBE_NAME is its name. PROBE_EFFECTS is a file to which each model request and each tool call appends a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    Span,
    Tracer,
)
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
    ToolDenied,
)
from pydantic_ai.capabilities import HandleDeferredToolCalls, Instrumentation, RequestInput
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings

from waooaw_celery import Agent as MessagingAgent
from waooaw_celery import create_app
from waooaw_celery.agents import DurableAgent, Flow

app = create_app("agents", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
NAME = os.environ.get("PROBE_NAME", "agents")
agent = MessagingAgent(NAME, app)


def effect(line: str) -> str:
    """Append a line to the file of effects."""
    with Path(os.environ["PROBE_EFFECTS"]).open("a") as file:
        file.write(line + "\n")
    return line


@dataclass
class Deps:
    flow: Flow


def requests_so_far(messages: list[ModelMessage]) -> int:
    return sum(isinstance(message, ModelResponse) for message in messages)


def tool_results(messages: list[ModelMessage]) -> list[Any]:
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def scripted(*script: list[ToolCallPart] | str) -> FunctionModel:
    """Return a model whose responses are these; a text has the results of all tools."""

    def respond(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        number = requests_so_far(messages)
        effect(f"model {number}")
        answer = script[number]
        if isinstance(answer, str):
            return ModelResponse(parts=[TextPart(f"{answer} {tool_results(messages)}")])
        return ModelResponse(parts=list(answer))

    return FunctionModel(respond)


# --- tools in parallel, and a wait between model requests

researcher = Agent(
    scripted(
        [ToolCallPart("look_up", {"word": word}, f"call/{word}") for word in ("a", "b", "c")],
        [ToolCallPart("ask", {"question": "more?"}, "call-ask")],
        "found",
    ),
    name="researcher",
    deps_type=Deps,
)


@researcher.tool_plain
async def look_up(word: str) -> str:
    await asyncio.sleep({"a": 0.2, "b": 0.1}.get(word, 0.0))  # they end in another order than they begin
    return effect(f"tool {word}")


@researcher.tool(metadata={"waooaw": False})
async def ask(context: RunContext[Deps], question: str) -> str:
    flow = context.deps.flow
    doubled = await flow.request(NAME, "double", {"n": 21})
    answer = await flow.wait_for("answer")
    return f"{question} {answer} {doubled}"


@agent.method
def double(n: int) -> int:
    return 2 * n


durable_researcher = DurableAgent(researcher)


@agent.workflow
async def researches(flow: Flow) -> dict[str, Any]:
    result = await durable_researcher.run(flow, "go", deps=Deps(flow))
    again = await durable_researcher.run(flow, message_history=result.all_messages()[:2], deps=Deps(flow))
    return {"output": result.output, "again": again.output, "requests": result.usage.requests, "id": result.run_id}


# --- a request that takes long


def slow(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    number = requests_so_far(messages)
    effect(f"model {number}")
    if number == 0:
        return ModelResponse(parts=[ToolCallPart("note", {}, "call-1")])
    deadline = time.monotonic() + 60
    while not Path(os.environ["PROBE_EFFECTS"] + ".gate").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return ModelResponse(parts=[TextPart("done")])


noting = Agent(FunctionModel(slow), name="noting")


@noting.tool_plain
def note() -> str:
    return effect("tool note")


@agent.workflow
async def waits_for_model(flow: Flow) -> str:
    return (await DurableAgent(noting).run(flow, "go")).output


# --- streaming


async def streamed(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    number = requests_so_far(messages)
    effect(f"model {number}")
    if number == 0:
        yield {0: DeltaToolCall("look_up", '{"word": "x"}', tool_call_id="call-x")}
    else:
        for word in ("one ", "two ", "three"):
            yield word


streaming = Agent(FunctionModel(stream_function=streamed), name="streaming", tools=[look_up], deps_type=Deps)


@streaming.tool(metadata={"waooaw": False})
async def wait(context: RunContext[Deps]) -> Any:
    return await context.deps.flow.wait_for("go on")


async def handle(context: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
    async for event in events:
        effect(f"event {event.event_kind}")


@agent.workflow
async def streams(flow: Flow) -> str:
    first = await DurableAgent(streaming, event_stream_handler=handle).run(flow, "go", deps=Deps(flow))
    await flow.wait_for("go on")
    return first.output


# --- approval


def deletes(script_name: str, **options: Any) -> Agent[Deps, str | DeferredToolRequests]:
    made = Agent(
        scripted(
            [ToolCallPart("delete", {"path": path}, f"call-{path}") for path in ("x", "y")],
            "deleted",
        ),
        name=script_name,
        output_type=[str, DeferredToolRequests],
        deps_type=Deps,
        **options,
    )

    @made.tool
    def delete(context: RunContext[Deps], path: str) -> str:
        if not context.tool_call_approved:
            raise ApprovalRequired(metadata={"path": path})
        return effect(f"delete {path}")

    return made


deleting = DurableAgent(deletes("deleting"))


@agent.workflow
async def approves(flow: Flow) -> str:
    result = await deleting.run(flow, "go", deps=Deps(flow))
    while isinstance(result.output, DeferredToolRequests):
        approved = await flow.wait_for("approval")
        answers: dict[str, bool | ToolDenied] = {
            call.tool_call_id: call.tool_call_id in approved or ToolDenied("no")
            for call in result.output.approvals
        }
        result = await deleting.run(
            flow,
            message_history=result.all_messages(),
            deferred_tool_results=DeferredToolResults(approvals=dict(answers)),
            deps=Deps(flow),
        )
    return str(result.output)


async def ask_somebody(context: RunContext[Deps], requests: DeferredToolRequests) -> DeferredToolResults:
    approved = await context.deps.flow.wait_for("approval")
    return requests.build_results(
        approvals={call.tool_call_id: call.tool_call_id in approved for call in requests.approvals}
    )


deleting_inline = DurableAgent(deletes("inline", capabilities=[HandleDeferredToolCalls(handler=ask_somebody)]))


@agent.workflow
async def approves_inline(flow: Flow) -> str:
    return str((await deleting_inline.run(flow, "go", deps=Deps(flow))).output)


# --- a server of tools


@agent.workflow
async def uses_server(flow: Flow) -> str:
    from pydantic_ai.mcp import MCPToolset, StdioTransport

    script = str(Path(__file__).with_name("mcp_probe.py"))
    # Celery replaces sys.stderr by an object that is no file.
    log = Path(os.environ["PROBE_EFFECTS"] + ".mcp.log")
    transport = StdioTransport(sys.executable, [script, os.environ["PROBE_EFFECTS"]], log_file=log)
    asking = Agent(
        scripted(
            [ToolCallPart("weather", {"city": city}, f"call-{city}") for city in ("Rome", "Oslo")],
            [ToolCallPart("wait", {}, "call-wait")],
            "sunny",
        ),
        name="asking",
        deps_type=Deps,
        toolsets=[MCPToolset(transport, id="weather", init_timeout=60)],
    )

    @asking.tool(metadata={"waooaw": False})
    async def wait(context: RunContext[Deps]) -> Any:
        return await context.deps.flow.wait_for("go on")

    return (await DurableAgent(asking).run(flow, "go", deps=Deps(flow))).output


# --- an answer from outside, and spans


class SpanOfProbe(NonRecordingSpan):
    """A span that writes its end to the file of effects."""

    def __init__(self, name: str) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self._name = name

    def end(self, end_time: int | None = None) -> None:
        effect(f"span {self._name}")


class TracerOfProbe(NoOpTracer):
    def start_span(self, name: str, *args: Any, **kwargs: Any) -> Span:
        return SpanOfProbe(name)


class ProviderOfProbe(NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        return TracerOfProbe()


def ask_by_mail(context: RunContext[Deps], requests: DeferredToolRequests, token: str) -> None:
    effect(f"mail {token}")


mailing = DurableAgent(
    deletes(
        "mailing",
        capabilities=[
            RequestInput(ask=ask_by_mail),
            Instrumentation(settings=InstrumentationSettings(tracer_provider=ProviderOfProbe())),
        ],
    )
)


@agent.workflow
async def is_answered(flow: Flow) -> str:
    return str((await mailing.run(flow, "go", deps=Deps(flow))).output)
