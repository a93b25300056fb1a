"""A sample agent made with the server of a2a-sdk, which nobody here wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Message,
    Part,
    Role,
    Task,
    TaskState,
    TaskStatus,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


class SampleAgent(AgentExecutor):
    """Answers by what the message says. It notes what it did.

    Attributes:
        messages: the messages that it got.
        cancelled: the tasks that it was asked to cancel.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.cancelled: list[str] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Handle a message."""
        message = context.message
        assert message is not None
        assert context.task_id
        assert context.context_id
        self.messages.append(message)
        text = context.get_user_input()
        skill = MessageToDict(message.metadata).get("skill_id")
        if text == "just a message":
            said = Message(message_id="m", role=Role.ROLE_AGENT, parts=[Part(text="hello")])
            await event_queue.enqueue_event(said)
            return
        status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        await event_queue.enqueue_event(
            Task(id=context.task_id, context_id=context.context_id, status=status, history=[message])
        )
        task = TaskUpdater(event_queue, context.task_id, context.context_id)
        await task.start_work()
        if skill == "forecast":
            city = MessageToDict(message.parts[0].data)["city"]
            data = ParseDict({"city": city, "degrees": 21}, Value())
            await task.add_artifact([Part(data=data)], name="weather")
        elif text == "fail":
            await task.failed(task.new_agent_message([Part(text="no such city")]))
            return
        elif text == "hang" or skill == "think-hard":
            await asyncio.sleep(60)
        elif text == "ask":
            await task.requires_input(task.new_agent_message([Part(text="which city?")]))
            return
        else:
            for number in range(3):
                await task.add_artifact(
                    [Part(text=f"{text}-{number} ")], artifact_id="text", append=number > 0, last_chunk=number == 2
                )
        await task.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Cancel a task."""
        assert context.task_id
        assert context.context_id
        self.cancelled.append(context.task_id)
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def sample_card(url: str, *, streaming: bool = True) -> AgentCard:
    """Return the card of the sample agent."""
    return AgentCard(
        name="sample",
        description="A sample.",
        version="1",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=streaming),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="forecast", name="forecast", description="Tell the weather.", tags=["weather"])],
    )


def sample_app(url: str, executor: SampleAgent, sign: Callable[[AgentCard], AgentCard] = lambda card: card) -> Any:
    """Return the ASGI application of the sample agent, with cards that lie beside its own."""
    card = sign(sample_card(f"{url}/rpc"))
    plain = sample_card(f"{url}/plain", streaming=False)
    handlers = [DefaultRequestHandler(executor, InMemoryTaskStore(), each) for each in (card, plain)]
    changed = sign(sample_card(f"{url}/rpc"))
    changed.description = "Somebody else."

    async def lying(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind == "inner":
            return JSONResponse(MessageToDict(sample_card("http://10.255.255.1:9/rpc")))
        if kind == "changed":
            return JSONResponse(MessageToDict(changed))
        if kind == "huge":
            return Response(b'{"name": "' + b"x" * 2_000_000 + b'"}', media_type="application/json")
        if kind == "redirect":
            return RedirectResponse(f"{url}/.well-known/agent-card.json")
        if kind == "empty":
            return JSONResponse({"name": "nothing"})
        return Response(json.dumps([1]), media_type="application/json")

    return Starlette(
        routes=[
            *create_agent_card_routes(card),
            *create_agent_card_routes(plain, card_url="/plain.json"),
            Route("/lies/{kind}.json", lying),
            *create_jsonrpc_routes(handlers[0], "/rpc"),
            *create_jsonrpc_routes(handlers[1], "/plain"),
            *[each for each in create_rest_routes(handlers[0], path_prefix="/rest") if isinstance(each, Route)],
        ]
    )
