"""A stream by A2A and by HTTP when its edge or its worker is killed: its task is found again, and ends once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from a2a.types import GetTaskRequest, StreamResponse, SubscribeToTaskRequest, Task
from a2a_servers import a2a_client, a2a_edge, message_of, part_values, state
from support import Broker, until

from waooaw_celery import AgentApp
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.testing.embedded import end_all, free_port, spawn, valkey

#: A worker that is killed loses its messages to another one within this time, in seconds.
LEASE = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}
WORDS = [f"tides-{number} " for number in range(20)]
pytestmark = pytest.mark.slow


class World:
    """An application whose worker and edge can be killed."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.app: AgentApp = broker.app(broker_transport_options=LEASE)
        self.agent = broker.name()
        self.started: list[subprocess.Popen[bytes]] = []

    def worker(self, node: str) -> subprocess.Popen[bytes]:
        """Start a worker: one process, which SIGKILL ends whole."""
        process = self.broker.start(
            self.agent,
            self.app,
            *("-P", "solo"),
            node=node,
            module="edge_probe",
            env={"PROBE_EFFECTS": str(self.broker.folder / "effects")},
            broker_transport_options=LEASE,
            waooaw_record_stream_parts=True,
        )
        self.started.append(process)
        return process

    def edge(self) -> tuple[subprocess.Popen[bytes], str]:
        """Start `waooaw serve`, and return its process and the agent's address."""
        port = free_port()
        env = os.environ | {
            "CELERY_BROKER_URL": self.broker.url,
            "CELERY_RESULT_BACKEND": self.broker.redis_url,
            "WAOOAW_DATABASE_URL": str(self.broker.database_url),
        }
        command = [sys.executable, "-m", "waooaw_celery", "serve", "--a2a", "--http", f"--port={port}"]
        process = spawn(command, log=self.broker.folder / "edge.log", env=env)
        self.started.append(process)
        url = f"http://127.0.0.1:{port}/a2a/{self.agent}"

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/.well-known/agent-card.json").status_code == 200
            except httpx.TransportError:
                assert process.poll() is None, (self.broker.folder / "edge.log").read_text()
                return False

        until(answers, "the start of the edge")
        return process, url

    def ends(self, task_id: str) -> list[str]:
        """Return the events that end a message, of which there must be one."""
        record = MessageAuditTrail(self.app.ledger).receipt(task_id)
        final = ("handled", "failed", "expired", "dead", "cancelled")
        return [each.event for each in record.events if each.event in final]


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    with valkey() as url:
        made = World(Broker(url, url, folder, f"sqlite:///{folder / 'ledger.db'}"))
        schema.upgrade(made.app.database)
        try:
            yield made
        finally:
            end_all(made.started)
            made.app.close()
            made.broker.clean()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process."""
    process.send_signal(signal.SIGKILL)
    process.wait(10)


async def first_parts(events: AsyncIterator[StreamResponse], number: int) -> str:
    """Read some parts of a stream, and return the id of its task."""
    async with asyncio.timeout(30):
        async for event in events:
            number -= event.HasField("artifact_update")
            if not number:
                return event.artifact_update.task_id
    raise AssertionError("the stream ended early")


def test_a_task_outlives_its_edge_and_its_worker(world: World) -> None:
    """Both are killed during the stream; another edge and worker bring the task to its one end, with all parts."""
    worker = world.worker("first")
    edge, url = world.edge()

    async def begin() -> str:
        async with a2a_client(url) as client:
            events = client.send_message(message_of("write", "tides", {"words": len(WORDS), "pause": 0.1}))
            task_id = await first_parts(aiter(events), 3)
            kill(edge)
            kill(worker)
            return task_id

    task_id = asyncio.run(begin())
    world.worker("second")

    async def find(own: str) -> tuple[list[StreamResponse], Task]:
        async with a2a_client(f"{own}/a2a/{world.agent}") as client, asyncio.timeout(60):
            seen = [event async for event in client.subscribe(SubscribeToTaskRequest(id=task_id))]
            return seen, await client.get_task(GetTaskRequest(id=task_id))

    with a2a_edge(world.app, timeout=60.0) as own:
        seen, task = asyncio.run(find(own))
    ends = [each for each in seen if each.HasField("status_update") and "COMPLETED" in state(each.status_update)]
    assert len(ends) == 1
    assert seen[-1] == ends[0]
    parts: list[Any] = [
        part_values(each.artifact_update.artifact) for each in seen if each.HasField("artifact_update")
    ]
    assert parts == [WORDS]
    assert (state(task), [part_values(each) for each in task.artifacts]) == ("TASK_STATE_COMPLETED", [WORDS])
    assert world.ends(task_id) == ["handled"]


def test_a_stream_begins_again_when_its_worker_dies(world: World) -> None:
    """The client is told to replace the artifact, and has all parts at the one end."""
    worker = world.worker("first")

    async def ask(own: str) -> tuple[list[str], list[str], str]:
        artifact: list[str] = []
        ends: list[str] = []
        killed = 0
        async with a2a_client(f"{own}/a2a/{world.agent}") as client, asyncio.timeout(60):
            async for event in client.send_message(
                message_of("write", "tides", {"words": len(WORDS), "pause": 0.05})
            ):
                if event.HasField("artifact_update"):
                    if not event.artifact_update.append:
                        artifact.clear()
                        killed += 1
                    artifact += part_values(event.artifact_update.artifact)
                    if len(artifact) == 3 and killed == 1:
                        kill(worker)
                        await asyncio.to_thread(world.worker, "second")
                elif event.HasField("status_update") and state(event.status_update) != "TASK_STATE_WORKING":
                    ends.append(state(event.status_update))
                    task_id = event.status_update.task_id
        return artifact, ends, task_id

    with a2a_edge(world.app, timeout=60.0) as own:
        artifact, ends, task_id = asyncio.run(ask(own))
    assert (artifact, ends) == (WORDS, ["TASK_STATE_COMPLETED"])
    until(lambda: world.ends(task_id) == ["handled"], "the end in the ledger")


def test_a_stream_by_http_begins_again_when_its_worker_is_killed(world: World) -> None:
    """The client is told, gets all parts once more, and the task has one end: it is not cancelled."""
    first = world.worker("first")
    _, url = world.edge()
    address = f"{url.partition('/a2a/')[0]}/v1/agents/{world.agent}/methods/write"
    body = {"topic": "tides", "words": len(WORDS), "pause": 0.1}
    events: list[tuple[str, str]] = []
    with httpx.stream("POST", address, json=body, headers={"Accept": "text/event-stream"}, timeout=60) as answer:
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, line.removeprefix("data: ")))
                if len(events) == 3:
                    kill(first)
                    world.worker("second")
    names = [name for name, _ in events]
    again = names.index("restart")
    assert names[again + 1 :] == ["part"] * len(WORDS) + ["result"]
    assert [json.loads(data) for _, data in events[again + 1 : -1]] == WORDS
    until(lambda: world.ends(json.loads(events[-1][1])["task_id"]) == ["handled"], "the end in the ledger")
