"""MCP, calling: tools of servers made with the package ``mcp`` are methods of an agent, in a real worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, RequestResponseHandler, create_app
from waooaw_celery.discovery.contracts.documents import newest_contracts
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.edges.mcp.mcp_agent import McpAgent
from waooaw_celery.errors import ConfigurationError, InvalidArguments, RemoteError, RequestTimeout, UnknownAgent
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.testing import embedded
from waooaw_celery.testing.embedded import end, free_port, valkey

FOLDER = Path(__file__).parent
LOCAL = ["127.0.0.0/8"]


@dataclass
class World:
    """A worker with agents that stand for outside servers, and who asks them.

    Attributes:
        broker, app: the servers, and an application that uses them.
        agents: the names of the agents, by what they are.
        folder: for the files of effects.
        port, web: the port and the process of the server at an address.
    """

    broker: Broker
    app: AgentApp
    agents: dict[str, str]
    folder: Path
    port: int
    web: list[subprocess.Popen[bytes]]

    def request(
        self, agent: str, method: str, arguments: dict[str, Any] | None = None, timeout: float = 20
    ) -> Any:
        """Send a request, and return its result."""
        asker = RequestResponseHandler(self.app)
        return asker.request(self.agents.get(agent, agent), method, arguments or {}, timeout=timeout)

    def started(self, name: str) -> list[int]:
        """Return the ids of the processes of a server that were started."""
        file = self.folder / name
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def command(script: str, effects: Path, *options: str) -> list[str]:
    return [sys.executable, str(FOLDER / script), str(effects), *options]


def start_http_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the outside server by streamable HTTP, and wait until it listens."""
    log = folder / "http.log"
    process = embedded.spawn(command("mcp_tool_server.py", folder / "http", str(port)), log=log)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    until(listens, "the outside server")
    return process


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """Run the outside server by streamable HTTP, and yield its port and its process, which a test may replace."""
    port = free_port()
    process = [start_http_server(folder, port)]
    try:
        yield port, process
    finally:
        end(process[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tools")
    with valkey() as url, http_server(folder) as (port, web):
        broker = Broker(url, url, folder, f"sqlite:///{folder / 'ledger.db'}")
        app = broker.app()
        schema.upgrade(app.database)
        name = broker.name()
        agents = {each: f"{name}-{each}" for each in ("files", "raw", "dead", "web", "inner", "away", "absent")}
        broker.names.update(agents.values())
        arguments: dict[str, dict[str, Any]] = {
            "files": {"command": command("mcp_tool_server.py", folder / "files")},
            "raw": {"command": command("mcp_raw_server.py", folder / "raw"), "tools": ["ok", "garbage", "lie"]},
            "dead": {
                "command": command("mcp_raw_server.py", folder / "dead", "dead"),
                "tools": ["ok"],
                "max_restarts": 2,
            },
            "web": {"url": f"http://127.0.0.1:{port}/mcp", "allowed_networks": LOCAL},
            "inner": {"url": f"http://127.0.0.1:{port}/mcp", "tools": ["add"]},
            "absent": {"command": ["no-such-program-of-tools"]},
            "away": {"url": f"http://127.0.0.1:{free_port()}/mcp", "tools": ["add"], "allowed_networks": LOCAL},
        }
        env = {"PROBE_AGENTS": json.dumps({agents[each]: given for each, given in arguments.items()})}
        try:
            with broker.running(name, app, module="mcp_agent_probe", env=env):
                wait_for(app, *agents.values())
                yield World(broker, app, agents, folder, port, web)
        finally:
            app.close()
            broker.clean()


def wait_for(app: AgentApp, *agents: str) -> None:
    """Wait until agents are known: a worker declares them one after the other."""

    def known() -> bool:
        with suppress(UnknownAgent):
            return all(app.registry.get(each) for each in agents)
        return False

    until(known, "the agents")


def is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie, which only waits for its parent, does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("agent", ["files", "web"])
def test_tools_are_methods(world: World, agent: str) -> None:
    """A worker declares each tool with its schemas; results are structured, by a process and by HTTP."""
    assert world.request(agent, "add", {"a": 2, "b": 3}) == {"result": 5}
    assert world.request(agent, "read_file", {"path": "/a"}) == {"path": "/a", "text": "hello"}
    assert world.request(agent, "call_tool", {"name": "read-file", "arguments": {"path": "/b"}})["path"] == "/b"
    names = {tool["name"] for tool in world.request(agent, "list_tools")}
    assert {"add", "read-file", "hang"} <= names
    contracts = newest_contracts(Registry(world.app).get(world.agents[agent]))
    assert contracts["add"]["parameters"]["required"] == ["a", "b"]
    assert contracts["add"]["description"] == "Add two numbers."


def test_a_tool_that_fails_raises_its_text(world: World) -> None:
    """The caller and the ledger get the error, as of any handler."""
    with pytest.raises(RemoteError, match="no such city") as error:
        world.request("files", "fail", {"text": "no such city"})
    assert error.value.type == "ToolError"
    [record] = MessageAuditTrail(world.app.ledger).query(to_agent=world.agents["files"], handler="fail").records
    assert settled(world.app, record.receipt.message_id) is MessageStatus.FAILED
    with pytest.raises(RemoteError, match="nothing"):
        world.request("files", "call_tool", {"name": "nothing"})


def test_a_big_answer_arrives(world: World) -> None:
    """All of it."""
    assert world.request("files", "big", {"size": 2_000_000}) == {"result": "x" * 2_000_000}


@pytest.mark.slow
def test_an_answer_that_no_message_can_carry_is_an_error(world: World) -> None:
    """The error names the limit, and the next call works."""
    with pytest.raises(RemoteError, match=r"limit|large|bytes"):
        world.request("files", "big", {"size": 17 * 1024 * 1024}, timeout=60)
    assert world.request("files", "add", {"a": 2, "b": 3}) == {"result": 5}


def test_a_tool_that_never_answers_ends_at_the_deadline(world: World) -> None:
    """The next call works, in the same process of the server."""
    before = world.request("files", "pid")
    with pytest.raises(RequestTimeout):
        world.request("files", "hang", timeout=1)
    assert world.request("files", "pid") == before


def test_a_server_that_hangs_is_started_again(world: World) -> None:
    """A tool that keeps the whole server from answering: the next call gets a new process."""
    before = world.request("files", "pid")["result"]
    with pytest.raises(RequestTimeout):
        world.request("files", "block", timeout=1)
    assert world.request("files", "pid")["result"] != before
    until(lambda: not is_running(before), "the end of the server that hangs")


def test_a_killed_server_is_started_again(world: World) -> None:
    """The next call works, in a new process; a call that was open fails."""
    before = world.request("files", "pid")["result"]
    os.kill(before, signal.SIGKILL)
    until(lambda: not is_running(before), "the end of the server")
    assert world.request("files", "pid")["result"] not in (before, None)


def test_a_server_that_dies_at_each_start_is_bounded(world: World) -> None:
    """It is started so often and no more; each call fails with the reason."""
    texts = []
    for _ in range(6):
        with pytest.raises(RemoteError) as error:
            world.request("dead", "ok")
        assert error.value.type == "ToolServerUnavailable"
        texts.append(error.value.message)
    assert "cannot be started or reached" in texts[0]
    assert "not started for another" in texts[-1]
    assert len(world.started("dead")) == 3


def test_a_server_that_is_not_installed_keeps_no_worker_from_starting(world: World) -> None:
    """Its agent has the two methods that are always there, and they tell why."""
    handlers = world.app.registry.get(world.agents["absent"]).handlers
    assert sorted(handlers or ()) == ["call_tool", "list_tools"]
    with pytest.raises(RemoteError, match="there is no program 'no-such-program-of-tools'"):
        world.request("absent", "list_tools")


def test_an_answer_that_is_no_json_is_bounded(world: World) -> None:
    """The call ends at its deadline; an answer that is no result is an error; the next call works."""
    with pytest.raises(RequestTimeout):
        world.request("raw", "garbage", timeout=1)
    with pytest.raises(RemoteError, match="not valid"):
        world.request("raw", "lie")
    assert int(world.request("raw", "ok")) == world.started("raw")[-1]
    assert len(world.started("raw")) == 1


def test_an_address_of_an_inner_network_is_refused(world: World) -> None:
    """Unless it is allowed. A server that does not listen is told as that."""
    with pytest.raises(RemoteError, match="an address of an inner network"):
        world.request("inner", "add", {"a": 1, "b": 2})
    with pytest.raises(RemoteError, match="cannot be started or reached"):
        world.request("away", "add", {"a": 1, "b": 2})


@pytest.mark.slow
def test_a_server_at_an_address_that_was_away_is_connected_again(world: World) -> None:
    """Calls fail while it is away, and work once it is there; nobody has to start the worker again."""
    assert world.request("web", "add", {"a": 1, "b": 1}) == {"result": 2}
    end(world.web[0])
    with pytest.raises(RemoteError) as error:
        world.request("web", "add", {"a": 1, "b": 1})
    assert error.value.type in ("ToolServerUnavailable", "ToolError")
    world.web[0] = start_http_server(world.folder, world.port)

    def works() -> bool:
        with suppress(RemoteError):
            return bool(world.request("web", "add", {"a": 2, "b": 2}) == {"result": 4})
        return False

    until(works, "the server at the address")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_no_server_outlives_its_worker(world: World, pool: str) -> None:
    """Also one that goes on after the end of its input, and a worker that was killed."""
    name = world.broker.name()
    effects = f"orphan-{pool}"
    arguments = {
        name + "-raw": {"command": command("mcp_raw_server.py", world.folder / effects), "tools": ["ok"]},
    }
    world.broker.names.update(arguments)
    worker = world.broker.start(
        name, world.app, "--pool", pool, module="mcp_agent_probe", env={"PROBE_AGENTS": json.dumps(arguments)}
    )
    try:
        wait_for(world.app, *arguments)
        server = int(world.request(f"{name}-raw", "ok"))
        assert is_running(server)
        worker.kill()
        worker.wait(10)
        until(lambda: not is_running(server), "the end of the server of a killed worker")
    finally:
        end(worker)


def test_a_server_ends_at_the_end_of_its_input(tmp_path: Path) -> None:
    """What the package's own server does when the worker is gone, on systems where nothing kills it."""
    process = subprocess.Popen(
        command("mcp_tool_server.py", tmp_path / "effects"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: (tmp_path / "effects").exists(), "the start of the server")
        assert process.stdin is not None
        process.stdin.close()
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 15
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "needs either a command or a url"),
        ({"command": ["a"], "url": "https://a"}, "needs either a command or a url"),
        ({"command": "npx server"}, "must be a list of texts"),
        ({"command": []}, "must be a list of texts"),
        ({"url": "ftp://a"}, "must be the address"),
        ({"command": ["a"], "tools": "read"}, "must be a list of names"),
        ({"command": ["a"], "tools": ["query"]}, "message type"),
        ({"command": ["a"], "tools": ["a-b", "a.b"]}, "already has a handler"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], told: str) -> None:
    """When the module is imported, with what to do."""
    app = create_app("wrong", broker_url="memory://", result_backend="cache+memory://")
    with pytest.raises(ConfigurationError, match=told):
        McpAgent("files", app, **arguments)


def test_wrong_arguments_of_a_tool_are_refused_by_its_schema(world: World) -> None:
    """The server says what is wrong, and the error has its text."""
    with pytest.raises((RemoteError, InvalidArguments), match="b"):
        world.request("files", "add", {"a": 1})
