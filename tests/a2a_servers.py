"""Servers and clients of A2A for the tests: an edge in a thread, and the client of a2a-sdk."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import Message, Part, Role, SendMessageRequest, StreamResponse, Task, TaskState
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value
from support import until

from waooaw_celery import AgentApp
from waooaw_celery.edges import EdgeOptions, Protocol, create_edge

#: What an edge of a test may reach.
LOOPBACK = [ip_network("127.0.0.0/8")]


@contextmanager
def served(make: Callable[[str], Any]) -> Iterator[str]:
    """Serve an ASGI application in a thread, and yield its address.

    Args:
        make: returns the application; it is given the address.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(make(url), log_config=None, lifespan="on", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started, "the start of the server")
            yield url
        finally:
            server.should_exit = True
            thread.join(15)
            assert not thread.is_alive()


@contextmanager
def a2a_edge(app: AgentApp, **options: Any) -> Iterator[str]:
    """Serve an edge that speaks A2A, and yield its address."""

    def make(url: str) -> Any:
        given = {"protocols": [Protocol.A2A], "public_url": url, "timeout": 30.0, "allowed_networks": LOOPBACK}
        return create_edge(app, EdgeOptions(**{**given, **options})).asgi

    with served(make) as url:
        yield url


@asynccontextmanager
async def a2a_client(
    url: str, *, binding: str = "JSONRPC", streaming: bool = True, headers: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    """Connect the client of a2a-sdk to the agent whose card is below an address."""
    async with httpx.AsyncClient(timeout=30.0, headers=headers) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        config = ClientConfig(streaming=streaming, httpx_client=http, supported_protocol_bindings=[binding])
        yield ClientFactory(config).create(card)


def message_of(skill: str | None, *contents: Any, **fields: Any) -> SendMessageRequest:
    """Return a request with a message: its texts and data, for a skill."""
    parts = [
        Part(text=each) if isinstance(each, str) else Part(data=ParseDict(each, Value())) for each in contents
    ]
    message = Message(**{"message_id": str(uuid4()), "role": Role.ROLE_USER, "parts": parts, **fields})
    if skill is not None:
        message.metadata["skill_id"] = skill
    return SendMessageRequest(message=message)


async def sent(client: Client, request: SendMessageRequest) -> list[StreamResponse]:
    """Send a message, and return all events of the answer."""
    async with asyncio.timeout(30):
        return [event async for event in client.send_message(request)]


async def task_of(client: Client, request: SendMessageRequest) -> Task:
    """Send a message, and return the task of the only event."""
    [event] = await sent(client, request)
    return event.task


def state(task: Task) -> str:
    """Return the name of a task's state."""
    name: str = TaskState.Name(task.status.state)
    return name


def values(task: Any) -> list[Any]:
    """Return the values in the artifacts of a task."""
    return [value for artifact in task.artifacts for value in part_values(artifact)]


def part_values(artifact: Any) -> list[Any]:
    """Return the values in an artifact."""
    return [each.text or MessageToDict(each.data) for each in artifact.parts]
