"""Measures what an edge adds to a request, and how many streams it carries at the same time.

python -m benchmarks.edges [--rounds 300] [--streams 200]

An agent, the edge and this program are processes of their own, with an embedded PostgreSQL and Valkey. A request
of this program to the agent, and the same request by each protocol of the edge, take turns: with plain HTTP, and
with the clients of the protocols' own packages. The streams are opened together, over HTTP and over A2A; each must
bring all its parts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.helpers import new_data_message
from a2a.types import SendMessageRequest
from mcp import Client
from rich.console import Console
from rich.table import Table

from benchmarks.report import Goal, print_goals
from waooaw_celery import AgentApp, aio, create_app
from waooaw_celery.edges.mcp.tool_names import tool_name
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end, postgres, spawn, valkey

AGENT = "receiver"
#: Milliseconds that an edge may add to the median of a request.
ADDED_MS = 3.0
#: Parts of each stream, and seconds after which a stream has failed.
PARTS, PATIENCE = 10, 120.0
_WARM_UP = 20

#: Of a call by MCP without a session.
MCP_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}

Ask = Callable[[], Awaitable[object]]


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(valkey())
        env = {
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            "WAOOAW_DATABASE_URL": stack.enter_context(postgres()),
            "WAOOAW_SPOOL_FOLDER": str(folder / "spool"),
        }
        app = create_app(
            waooaw_sender="bench",
            broker_url=url,
            result_backend=url,
            waooaw_database_url=env["WAOOAW_DATABASE_URL"],
            waooaw_spool_folder=env["WAOOAW_SPOOL_FOLDER"],
        )
        stack.enter_context(closing(app))
        schema.upgrade(app.database)
        worker = ["celery", "-A", "benchmarks.agent_worker", "worker", "-P", "solo", "-l", "WARNING"]
        start(stack, folder / "agent.log", worker, {**env, "BENCH_AGENT": AGENT})
        wait_until(lambda: any(record.workers for record in app.registry.all()), "the agent")
        address = served(stack, folder / "edge.log", env)
        goals = asyncio.run(measure(console, app, address, options.rounds, options.streams))
        print_goals(console, "Edges", goals)


def start(stack: ExitStack, log: Path, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program of this environment, which ends with the block."""
    process = spawn([sys.executable, "-m", *command], log=log, env=os.environ | env)
    stack.callback(end, process)
    return process


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds."""
    ends_at = time.monotonic() + 60
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.1)


def served(stack: ExitStack, log: Path, env: dict[str, str]) -> str:
    """Start `waooaw serve`, and return its address."""
    command = ["waooaw_celery", "serve", "--a2a", "--mcp", "--http", f"--agent={AGENT}", "--port", "0"]
    process = start(stack, log, command, env)
    found: list[str] = []

    def is_ready() -> bool:
        if process.poll() is not None:
            raise SystemExit(f"the edge did not start: {log.read_text()}")
        found[:] = re.findall(r"(http://\S+?)/?\s", log.read_text())
        return bool(found)

    wait_until(is_ready, "the edge")
    return found[0]


async def measure(console: Console, app: AgentApp, address: str, rounds: int, streams: int) -> list[Goal]:
    """Measure requests and streams, print tables, and return what was wanted."""
    limits = httpx.Limits(max_connections=None)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, limits=limits, trust_env=False))
        card = await A2ACardResolver(http, address).get_agent_card()
        a2a = ClientFactory(ClientConfig(streaming=False, httpx_client=http)).create(card)
        mcp = await stack.enter_async_context(Client(f"{address}/mcp"))
        direct = aio.RequestResponseHandler(app)
        tool = tool_name(AGENT, "echo")
        assert tool is not None  # noqa: S101
        path = f"{address}/v1/agents/{AGENT}/methods"

        async def by_http() -> None:
            (await http.post(f"{path}/echo", json={"value": 1})).raise_for_status()

        async def by_a2a() -> None:
            message = {"messageId": uuid4().hex, "role": "ROLE_USER", "parts": [{"data": {"value": 1}}]}
            params = {"message": {**message, "metadata": {"skill_id": "echo"}}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params}
            answer = await http.post(f"{address}/a2a/{AGENT}", json=body, headers={"A2A-Version": "1.0"})
            assert "artifacts" in answer.json()["result"]["task"], answer.text  # noqa: S101

        async def by_a2a_client() -> None:
            message = new_data_message({"value": 1})
            message.metadata["skill_id"] = "echo"
            async for event in a2a.send_message(SendMessageRequest(message=message)):
                assert event.task.artifacts, event  # noqa: S101

        async def by_mcp() -> None:
            body = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": tool, "arguments": {"value": 1}},
            }
            answer = await http.post(f"{address}/mcp", json=body, headers=MCP_HEADERS)
            assert "waooaw/taskId" in answer.text, answer.text  # noqa: S101

        async def by_mcp_client() -> None:
            result = await mcp.call_tool(tool, {"value": 1})
            assert not result.is_error, result  # noqa: S101

        ways: dict[str, Ask] = {
            "a request": lambda: direct.request(AGENT, "echo", {"value": 1}),
            "by HTTP": by_http,
            "by A2A": by_a2a,
            "by MCP": by_mcp,
            "with a2a-sdk's client": by_a2a_client,
            "with mcp's client": by_mcp_client,
        }
        medians = await measure_requests(ways, rounds)
        table = Table("request", "p50", "added", title=f"{rounds} rounds, the ways take turns")
        for name, median in medians.items():
            table.add_row(name, f"{median:.1f} ms", f"{median - medians['a request']:.1f} ms")
        console.print(table)
        base = medians.pop("a request")
        goals = [
            Goal(f"{name}: added to the p50", median - base, ADDED_MS, at_most=True, unit="ms")
            for name, median in medians.items()
            if name.startswith("by ")
        ]
        for name, stream in (("HTTP", stream_by_http), ("A2A", stream_by_a2a)):
            # A client of its own: the edge closes connections that were idle for a while.
            async with httpx.AsyncClient(timeout=PATIENCE, limits=limits, trust_env=False) as fresh:
                opened = await stream(fresh, address, card)
                began = time.monotonic()
                parts = await asyncio.wait_for(asyncio.gather(*(opened() for _ in range(streams))), PATIENCE)
            whole = sum(count == PARTS for count in parts)
            console.print(f"{streams} streams at once by {name}: {time.monotonic() - began:.1f} s")
            goals.append(Goal(f"streams at once by {name} that brought all parts", whole, streams))
        return goals


async def measure_requests(ways: dict[str, Ask], rounds: int) -> dict[str, float]:
    """Return the median of each way, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_WARM_UP + rounds):
        for name, ask in ways.items():
            began = time.perf_counter()
            await ask()
            if number >= _WARM_UP:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) * 1000 for name, each in times.items()}


async def stream_by_http(http: httpx.AsyncClient, address: str, _: Any) -> Callable[[], Awaitable[int]]:
    """Return a function that returns how many parts a stream of server-sent events has brought."""

    async def stream() -> int:
        count = 0
        url, headers = f"{address}/v1/agents/{AGENT}/methods/count", {"Accept": "text/event-stream"}
        async with http.stream("POST", url, json={"to": PARTS}, headers=headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                count += line.startswith("event: part")
        return count

    return stream


async def stream_by_a2a(http: httpx.AsyncClient, _: str, card: Any) -> Callable[[], Awaitable[int]]:
    """Return a function that returns how many parts a stream of A2A has brought."""
    client = ClientFactory(ClientConfig(streaming=True, httpx_client=http)).create(card)

    async def stream() -> int:
        message = new_data_message({"to": PARTS})
        message.metadata["skill_id"] = "count"
        count = 0
        async for event in client.send_message(SendMessageRequest(message=message)):
            if event.HasField("artifact_update"):
                count += bool(event.artifact_update.artifact.parts)
        return count

    return stream


if __name__ == "__main__":
    main()
