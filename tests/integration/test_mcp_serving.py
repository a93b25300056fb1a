"""MCP, serving: the client of the package ``mcp`` calls agents, by HTTP and by standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast
from uuid import uuid4

import httpx2 as httpx
import pytest
import uvicorn
from edge_world import EdgeWorld, edge_world
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from support import until

from waooaw_celery.edges.access.authentication import ApiKeys
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.access.principals_file import Principals, hash_key
from waooaw_celery.edges.application import EdgeOptions, Protocol, create_edge
from waooaw_celery.edges.gateway.gateway import task_id_of
from waooaw_celery.edges.gateway.task import TaskState
from waooaw_celery.edges.gateway.task_reader import TaskReader
from waooaw_celery.testing.embedded import free_port, valkey

ADMIN, GUEST = "admin-key-" + "a" * 32, "guest-key-" + "b" * 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("mcp")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


def principals_of(world: EdgeWorld) -> Principals:
    admin = Principal(name="admin", from_agent="portal", may_read=True)
    guest = Principal(name="guest", from_agent="visitor", may_call=(f"{world.agent}.echo",))
    return Principals(by_key={hash_key(ADMIN): admin, hash_key(GUEST): guest}, by_proxy_user={}, by_subject={})


@contextmanager
def served(world: EdgeWorld, **options: Any) -> Iterator[str]:
    """Serve an edge with uvicorn, and yield the address of MCP."""
    edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.MCP], **options))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(edge.asgi, port=port, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the start of the edge")
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        edge.stop()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(world: EdgeWorld) -> Iterator[str]:
    with served(world, authentication=ApiKeys(principals_of(world)), timeout=30.0) as address:
        yield address


@asynccontextmanager
async def client_of(url: str, key: str = ADMIN, mode: str = "auto") -> AsyncIterator[Client]:
    """Connect the package's client."""
    async with (
        httpx.AsyncClient(headers={"X-API-Key": key}, timeout=30.0) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


both_eras = pytest.mark.parametrize("mode", ["auto", "legacy"])


@both_eras
def test_operations_are_tools_and_results_are_structured(world: EdgeWorld, url: str, mode: str) -> None:
    """A tool has the schemas of its method; a call is recorded with the principal; an object is the result."""

    async def run() -> None:
        async with client_of(url, mode=mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            forecast = tools[f"{world.agent}-forecast"]
            assert forecast.description == "Tell the weather of a city."
            assert forecast.input_schema["properties"] == {"city": {"type": "string"}}
            assert forecast.output_schema is not None
            assert forecast.output_schema["type"] == "object"
            assert {"task_get", "task_signal", "task_cancel", f"{world.agent}-review"} <= set(tools)
            answer = await client.call_tool(forecast.name, {"city": "Turin"})
            assert answer.structured_content == {"city": "Turin", "degrees": 21}
            assert json.loads(cast(Any, answer.content[0]).text) == answer.structured_content
            record = world.trail.receipt((answer.meta or {})["waooaw/taskId"])
            assert (record.receipt.from_agent, record.identity) == ("portal", "mcp:admin")
            text = await client.call_tool(f"{world.agent}-echo", {"text": "hello"})
            assert (cast(Any, text.content[0]).text, text.structured_content) == ("hello", {"result": "hello"})

    asyncio.run(run())


def test_a_principal_sees_and_calls_only_what_it_may(world: EdgeWorld, url: str) -> None:
    """Tools, tasks and resources of others do not exist for it."""

    async def run() -> None:
        async with client_of(url, GUEST) as guest:
            names = {tool.name for tool in (await guest.list_tools()).tools}
            assert names == {f"{world.agent}-echo", "task_get", "task_signal", "task_cancel"}
            with pytest.raises(MCPError, match="guest may not call"):
                await guest.call_tool(f"{world.agent}-forecast", {"city": "Rome"})
            assert (await guest.list_resources()).resources == []
            assert (await guest.list_resource_templates()).resource_templates == []
            with pytest.raises(MCPError, match="may not read the ledger"):
                await guest.read_resource("waooaw://dead-letters")
            async with client_of(url) as admin:
                secret = await admin.call_tool(f"{world.agent}-echo", {"text": "secret"})
            task = await guest.call_tool("task_get", {"task_id": (secret.meta or {})["waooaw/taskId"]})
            assert task.is_error
            assert "there is no task" in cast(Any, task.content[0]).text

    asyncio.run(run())


@both_eras
def test_errors_have_the_form_of_the_protocol(world: EdgeWorld, url: str, mode: str) -> None:
    """What a model can correct is a result with isError; an unknown tool is an error of the protocol."""

    async def run() -> None:
        async with client_of(url, mode=mode) as client:
            failed = await client.call_tool(f"{world.agent}-fail", {"text": "no such city"})
            assert failed.is_error
            assert cast(Any, failed.content[0]).text == "ValueError: no such city"
            wrong = await client.call_tool(f"{world.agent}-forecast", {"town": "Rome"})
            assert wrong.is_error
            assert "city" in cast(Any, wrong.content[0]).text
            for name, why in ((f"{world.agent}-nothing", "it has"), ("nothing", "tools/list")):
                with pytest.raises(MCPError, match=why) as error:
                    await client.call_tool(name, {})
                assert error.value.code == -32602
            for arguments, told in (({}, "needs the text"), ({"task_id": "x", "a": 1}, "no argument 'a'")):
                refused = await client.call_tool("task_get", cast(Any, arguments))
                assert refused.is_error
                assert told in cast(Any, refused.content[0]).text
            with pytest.raises(MCPError, match="there is no resource"):
                await client.read_resource("waooaw://secrets")

    asyncio.run(run())


@both_eras
def test_a_stream_tells_progress_and_ends_with_its_parts(world: EdgeWorld, url: str, mode: str) -> None:
    """The number of parts grows; the result has all of them."""
    told: list[tuple[float, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async def run() -> None:
        async with client_of(url, mode=mode) as client:
            arguments = {"topic": "tides", "words": 5, "pause": 0.1}
            answer = await client.call_tool(f"{world.agent}-write", arguments, progress_callback=note)
            assert answer.structured_content == {"result": [f"tides-{number} " for number in range(5)]}

    asyncio.run(run())
    numbers = [number for number, _ in told]
    assert len(numbers) >= 2
    assert numbers == sorted(set(numbers))
    assert told[-1] == (5.0, "tides-4 ")


@both_eras
def test_a_workflow_that_needs_input_is_answered_with_its_task(world: EdgeWorld, url: str, mode: str) -> None:
    """The answer says what it waits for; any connection sends the signal, and gets the result later."""

    async def run() -> None:
        async with client_of(url, mode=mode) as client:
            waiting = await client.call_tool(f"{world.agent}-review", {"document": "plan"})
            task = cast(Any, waiting.structured_content)
            assert (task["state"], task["waits_for"]) == ("input required", "approval")
            assert task["progress"] == {"stage": "waiting for approval"}
        async with client_of(url, mode=mode) as other:
            signal_ = {"task_id": task["task_id"], "signal": "approval", "payload": {"by": "Ada"}}
            assert not (await other.call_tool("task_signal", signal_)).is_error
            until_ended = {"task_id": task["task_id"], "wait": 20}
            while (ended := cast(Any, (await other.call_tool("task_get", until_ended)).structured_content))[
                "state"
            ] == "input required":
                await asyncio.sleep(0.02)
            assert ended["state"] == "completed"
            assert ended["result"] == {"document": "plan", "decision": {"by": "Ada"}}

    asyncio.run(run())


def running_task(world: EdgeWorld, before: int) -> str:
    """Return the id of a task that has just begun."""
    until(lambda: world.happened().count("slow begins") > before, "the begin of the handler")
    receipt = world.trail.query(to_agent=world.agent, handler="slow", limit=1).records[0].receipt
    return str(receipt.message_id)


def state_of(world: EdgeWorld, task_id: str) -> TaskState:
    return TaskReader(world.app).read(task_id).state


@both_eras
def test_a_cancelled_call_cancels_its_task(world: EdgeWorld, url: str, mode: str) -> None:
    """By the notification of the older revisions, and by the end of the stream in the newer one."""

    async def run() -> str:
        async with client_of(url, mode=mode) as client:
            before = world.happened().count("slow begins")
            call = asyncio.ensure_future(client.call_tool(f"{world.agent}-slow", {"seconds": 60}))
            task_id = await asyncio.to_thread(running_task, world, before)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.to_thread(
                until, lambda: state_of(world, task_id) is TaskState.CANCELLED, "the end of the cancelled task"
            )
            return task_id

    assert "cancelled" in world.trail.receipt(asyncio.run(run())).receipt.status.value


def test_any_edge_cancels_what_another_was_asked(world: EdgeWorld, url: str) -> None:
    """The id of the session and of the request name the task: a second edge finds it."""
    session, request_id, before = uuid4().hex, 7, world.happened().count("slow begins")
    headers = {
        "X-API-Key": ADMIN,
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
        "Mcp-Session-Id": session,
    }
    call = {"name": f"{world.agent}-slow", "arguments": {"seconds": 60}}
    body = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": call}
    other = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
    with served(world, authentication=ApiKeys(principals_of(world))) as second, httpx.Client() as http:
        with http.stream("POST", url, json=body, headers=headers, timeout=30.0) as answer:
            task_id = running_task(world, before)
            guest = httpx.post(second, json=other, headers={**headers, "X-API-Key": GUEST})
            assert guest.status_code == 202  # and it cancels nothing
            assert httpx.post(second, json=other, headers=headers).status_code == 202
            text = "".join(answer.iter_text())
        assert "was cancelled" in text
    until(lambda: state_of(world, task_id) is TaskState.CANCELLED, "the end of the task")


@pytest.mark.parametrize("cancel", [True, False])
def test_a_client_that_goes_away(world: EdgeWorld, cancel: bool) -> None:
    """Before 2026-07-28 that is no cancellation: the task is cancelled, or goes on, by the setting."""
    before = world.happened().count("slow begins")
    options = {"authentication": ApiKeys(principals_of(world)), "cancel_when_gone": cancel}
    headers = {"X-API-Key": ADMIN, "Accept": "application/json, text/event-stream"}
    params = {"name": f"{world.agent}-slow", "arguments": {"seconds": 1.5}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    with served(world, **options) as address:
        with httpx.Client() as http, http.stream("POST", address, json=body, headers=headers):
            task_id = running_task(world, before)
        wanted = TaskState.CANCELLED if cancel else TaskState.COMPLETED
        until(lambda: state_of(world, task_id) is wanted, f"the task to be {wanted}")


def test_an_edge_that_stops_answers_with_the_task(world: EdgeWorld) -> None:
    """The open call ends at once; the task goes on, and another edge gives its result."""
    before = world.happened().count("slow begins")
    edge_options = {"authentication": ApiKeys(principals_of(world))}

    async def call(address: str) -> Any:
        async with client_of(address) as client:
            return await client.call_tool(f"{world.agent}-slow", {"seconds": 3})

    answers: list[Any] = []
    with served(world, **edge_options) as address:
        thread = threading.Thread(target=lambda: answers.append(asyncio.run(call(address))))
        thread.start()
        task_id = running_task(world, before)
        began = time.monotonic()
    thread.join(10)
    assert time.monotonic() - began < 2.5
    assert answers[0].is_error
    assert task_id in answers[0].content[0].text
    until(lambda: state_of(world, task_id) is TaskState.COMPLETED, "the end of the task")


def test_conversations_and_dead_letters_are_resources(world: EdgeWorld, url: str) -> None:
    """They are JSON, for a principal that may read."""

    async def run() -> None:
        async with client_of(url) as client:
            [listed] = (await client.list_resources()).resources
            templates = {each.uri_template for each in (await client.list_resource_templates()).resource_templates}
            assert templates == {"waooaw://conversations/{id}", "waooaw://dead-letters/{id}"}
            answer = await client.call_tool(f"{world.agent}-echo", {"text": "remember"})
            task_id = (answer.meta or {})["waooaw/taskId"]
            found = await client.read_resource(f"waooaw://conversations/{task_id}")
            content = json.loads(cast(Any, found.contents[0]).text)
            assert content["messages"][0]["payload"] == {"text": "remember"}
            world.app.dead_letters.add(f"agent.{world.agent}", "it cannot be read", b"{broken")
            letters = json.loads(cast(Any, (await client.read_resource(listed.uri)).contents[0]).text)
            [letter] = letters["dead_letters"]
            assert letter["reason"] == "it cannot be read"
            one = await client.read_resource(f"waooaw://dead-letters/{letter['id']}")
            assert "unreadable" in json.loads(cast(Any, one.contents[0]).text)
            large = await client.call_tool(f"{world.agent}-echo", {"text": "x" * 40_000})
            found = await client.read_resource(f"waooaw://conversations/{(large.meta or {})['waooaw/taskId']}")
            assert len(cast(Any, found.contents[0]).text) < 20_000
            with pytest.raises(MCPError, match="no message"):
                await client.read_resource(f"waooaw://conversations/{uuid4()}")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[" * 200 + b"]" * 200, 400),
        (b"x" * (5 * 1024 * 1024), 413),
        (b'{"jsonrpc":"2.0","id":1}', 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}', 200),
        (b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}', 202),
        (b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":[]}', 400),
    ],
)
def test_bad_input_is_refused(url: str, content: bytes, status: int) -> None:
    """The status or the protocol's error says what is wrong, and the edge goes on."""
    headers = {
        "X-API-Key": ADMIN,
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "Mcp-Session-Id": "s1",
    }
    answer = httpx.post(url, content=content, headers=headers, timeout=20.0)
    assert answer.status_code == status
    if status == 200:
        assert "-32602" in answer.text
    assert httpx.get(url, headers=headers).status_code == 405
    assert httpx.post(url, content=b"{}").status_code == 401


@pytest.mark.slow
def test_stdio_serves_one_client(world: EdgeWorld, tmp_path: Any) -> None:
    """Tools work; a cancelled call cancels its task; what the application prints is not in the way."""
    (tmp_path / "chatty.py").write_text(
        "from waooaw_celery import create_app\nprint('I am loaded')\napp = create_app('edges')\n"
    )
    env = {**os.environ, **world.env, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = ["-m", "waooaw_celery", "-A", "chatty", "serve", "--stdio", "--agent", world.agent]
    server = StdioServerParameters(command=sys.executable, args=command, env=env, cwd=tmp_path)

    async def run() -> None:
        async with Client(server) as client:
            answer = await client.call_tool(f"{world.agent}-forecast", {"city": "Como"})
            assert answer.structured_content == {"city": "Como", "degrees": 21}
            before = world.happened().count("slow begins")
            call = asyncio.ensure_future(client.call_tool(f"{world.agent}-slow", {"seconds": 60}))
            task_id = await asyncio.to_thread(running_task, world, before)
            call.cancel()
            await asyncio.wait([call])
            await asyncio.to_thread(
                until, lambda: state_of(world, task_id) is TaskState.CANCELLED, "the end of the cancelled task"
            )
            assert (await client.list_resources()).resources

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("end", ["eof", "sigterm"])
def test_stdio_ends(world: EdgeWorld, end: str) -> None:
    """At the end of standard input, and at SIGTERM although standard input is open; bad lines end nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "waooaw_celery", "serve", "--stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **world.env},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"no JSON\n" + b"[" * 1000 + b"\n" + b"x" * (5 * 1024 * 1024) + b"\n")
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline())]
        while answers[-1].get("id") != 1:
            answers.append(json.loads(process.stdout.readline()))
        assert answers[-1]["result"]["serverInfo"]["name"] == "waooaw"
        if end == "eof":
            process.stdin.close()
        else:
            before = world.happened().count("slow begins")
            params = {"name": f"{world.agent}-slow", "arguments": {"seconds": 3}}
            call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            process.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in (ready, call)))
            process.stdin.flush()
            task_id = running_task(world, before)
            process.send_signal(signal.SIGTERM)
            assert task_id in process.stdout.readline().decode()  # the open call is answered with its task
        assert process.wait(10) == 0
        assert process.stdout.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_request_that_is_sent_again_is_one_task(world: EdgeWorld, url: str) -> None:
    """The id of the session and of the request name the task, so that a client may repeat a lost request."""
    city = f"city-{uuid4().hex}"
    headers = {"X-API-Key": ADMIN, "Accept": "application/json, text/event-stream", "Mcp-Session-Id": uuid4().hex}
    call = {"name": f"{world.agent}-forecast", "arguments": {"city": city}}
    body = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": call}
    first, second = (httpx.post(url, json=body, headers=headers, timeout=20.0).text for _ in range(2))
    assert city in first
    assert city in second
    assert world.happened().count(f"forecast {city}") == 1
    write = {
        "name": f"{world.agent}-write",
        "arguments": {"topic": city, "words": 2},
        "_meta": {"progressToken": 1},
    }
    streamed = {"jsonrpc": "2.0", "id": "b", "method": "tools/call", "params": write}
    answers = [httpx.post(url, json=streamed, headers=headers, timeout=20.0).text for _ in range(2)]
    assert all(f"{city}-1" in answer for answer in answers[:1])
    assert not any('"isError":true' in answer for answer in answers)
    assert len(world.trail.query(to_agent=world.agent, handler="write", text=city).records) == 1
    key = f"mcp\x00{headers['Mcp-Session-Id']}\x00'a'"
    admin = Principal(name="admin", from_agent="portal")
    until(lambda: state_of(world, task_id_of(admin, key)) is TaskState.COMPLETED, "the end of the task")
