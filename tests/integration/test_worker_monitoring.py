"""The health and the metrics that a worker serves on its port."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.servers import Valkey, lone_valkey
from postgres_server import Server, lone_server
from process_pool import spawn, waooaw
from support import Broker, until

from waooaw_celery import Message, MessageBus, MessageType
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.testing.embedded import end_all, free_port


class Probe:
    """An agent whose worker serves its health and its metrics."""

    def __init__(self, broker: Broker) -> None:
        self.name = broker.name()
        self.app = broker.app(waooaw_agents=[self.name])
        self.broker = broker
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *pool: str, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker of it."""
        settings = {"waooaw_health_port": 0, **settings}
        process = self.broker.start(
            *(self.name, self.app, *(pool or ("-P", "threads", "-c", "2"))), module="health_probe", **settings
        )
        self.processes.append(process)
        return process

    @property
    def port(self) -> int:
        """The port of the worker."""
        reports = self.app.registry.get(self.name).reports
        return int(next(iter(reports.values()))["health_port"])

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Return the status and the body of a page."""
        url = f"http://127.0.0.1:{port or self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def problems(self, what: str, port: int) -> set[str]:
        """Return the names of the problems that a health check shows."""
        status, body = self.get(f"/health/{what}", port)
        found = set(json.loads(body)["problems"])
        assert status == (503 if found else 200)
        return found

    def metrics(self) -> dict[str, float]:
        """Return the values by name and labels."""
        status, text = self.get("/metrics")
        assert status == 200
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def value(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric's values with these labels."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(
            value
            for name, value in self.metrics().items()
            if re.split(r"[{ ]", name)[0] == metric and all(each in name for each in wanted)
        )

    def send(self, message_type: MessageType = MessageType.COMMAND, **payload: Any) -> None:
        """Send it a message."""
        message = Message(from_agent="tests", to_agent=self.name, message_type=message_type, payload=payload)
        MessageBus(self.app).send(message)


@pytest.fixture
def probe(ledger_broker: Broker) -> Iterator[Probe]:
    found = Probe(ledger_broker)
    with closing(found.app):
        yield found
        end_all(found.processes)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[tuple[Probe, Valkey, Server]]:
    """An agent on servers of its own, which the test may freeze and stop."""
    with lone_valkey() as valkey, lone_server() as postgres:
        with closing(Database(database_url(postgres.url))) as database:
            schema.upgrade(database)
        broker = Broker(valkey.url, valkey.url, tmp_path, database_url=postgres.url)
        found = Probe(broker)
        with closing(found.app):
            try:
                yield found, valkey, postgres
            finally:
                end_all(found.processes)


@pytest.mark.parametrize(
    "pool", [("prefork", "2"), ("threads", "2"), ("solo", "1"), ("gevent", "2")], ids=lambda pool: pool[0]
)
def test_a_worker_counts_what_it_handles_and_sends(probe: Probe, pool: tuple[str, str]) -> None:
    """Also what the processes of a pool send, which are recycled after each message."""
    recycled = {"worker_max_tasks_per_child": 1} if pool[0] == "prefork" else {}
    probe.start("-P", pool[0], "-c", pool[1], **recycled)
    for _ in range(5):
        probe.send(send=1)
    probe.send(fails=1)
    probe.send(fails=9)
    name = probe.name
    until(lambda: probe.value("waooaw_outcomes_total", agent=name) == 5 + 5 + 2 + 2, "all outcomes")
    assert probe.value("waooaw_outcomes_total", agent=name, status="handled") == 11
    assert probe.value("waooaw_outcomes_total", agent=name, status="retried") == 2
    assert probe.value("waooaw_outcomes_total", agent=name, status="failed") == 1
    count = "messaging_process_duration_seconds_count"
    assert probe.value(count, agent=name, handler="command", error_type="ValueError") == 3
    assert probe.value(count, agent=name, handler="ack", error_type="") == 5
    assert probe.value("messaging_client_consumed_messages_total", agent=name) == 14
    assert probe.value("waooaw_queue_wait_seconds_count", agent=name, priority="normal") == 12
    until(lambda: probe.value("messaging_client_sent_messages_total", agent=name, operation="send") == 5, "sends")
    assert probe.value("messaging_client_operation_duration_seconds_count", operation="send") == 5
    assert probe.value("waooaw_worker_ready") == 1
    until(lambda: probe.value("waooaw_worker_slots") == int(pool[1]), "the first look of the watchdog")
    assert probe.value("waooaw_ledger_spool_rows") == 0


def test_a_worker_is_live_and_ready_and_tells_unknown_pages(probe: Probe) -> None:
    """`waooaw health` says the same, by the port and by the name of the worker."""
    probe.start()
    port = probe.port
    until(lambda: not probe.problems("ready", port), "the worker's readiness")
    assert not probe.problems("live", port)
    status, body = probe.get("/nothing", port)
    assert (status, body) == (404, "there is no such page; there are: /health/live, /health/ready, /metrics\n")
    worker = f"{probe.name}@{socket.gethostname()}"
    for arguments, code in (
        (("--port", str(port)), 0),
        (("--port", str(port), "--live"), 0),
        (("--worker", worker), 0),
        (("--worker", "nobody@nowhere"), 1),
        (("--port", "1"), 1),
    ):
        done = waooaw(
            *("health", *arguments),
            env={
                "CELERY_BROKER_URL": probe.broker.url,
                "CELERY_RESULT_BACKEND": probe.broker.redis_url,
                "WAOOAW_DATABASE_URL": str(probe.broker.database_url),
            },
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_worker_is_not_ready_while_a_server_is_away(lone: tuple[Probe, Valkey, Server]) -> None:
    """A frozen broker, a stopped database: it stays live, and is ready again by itself."""
    probe, valkey, postgres = lone
    probe.start()
    port = probe.port
    until(lambda: not probe.problems("ready", port), "the worker's readiness")
    postgres.stop()
    until(lambda: probe.problems("ready", port) == {"ledger"}, "the stopped database is seen")
    assert not probe.problems("live", port)
    postgres.start()
    until(lambda: not probe.problems("ready", port), "the database answers again")
    valkey.freeze()
    until(lambda: "broker" in probe.problems("ready", port), "the frozen broker is seen", 60)
    until(lambda: "consumer" in probe.problems("ready", port), "the loop waits for the broker", 60)
    assert not probe.problems("live", port)  # a new worker could not do more
    valkey.thaw()
    until(lambda: not probe.problems("ready", port), "the broker answers again", 60)


@pytest.mark.slow
def test_a_worker_whose_handler_blocks_the_event_loop_is_not_live(probe: Probe) -> None:
    """For ten seconds; it is live again afterwards."""
    probe.start()
    port = probe.port
    probe.send(MessageType.QUERY, seconds=16)
    until(lambda: probe.problems("live", port) == {"handlers"}, "the blocked loop is seen")
    until(lambda: not probe.problems("live", port), "the loop turns again")


def test_a_worker_whose_pool_is_wedged_is_neither_live_nor_ready(probe: Probe) -> None:
    """Its processes hang: messages wait for them."""
    process = probe.start("-P", "prefork", "-c", "1", waooaw_stall_seconds=3, waooaw_on_stall="log")
    port = probe.port
    children = [child for child in psutil.Process(process.pid).children() if child.is_running()]
    for child in children:
        child.suspend()
    try:
        for _ in range(3):
            probe.send()
        until(lambda: "progress" in probe.problems("live", port), "the stall is seen", 60)
        assert "progress" in probe.problems("ready", port)
    finally:
        for child in children:
            child.resume()
    until(lambda: not probe.problems("live", port), "the pool works again", 60)


def test_a_worker_that_ends_is_not_ready(probe: Probe) -> None:
    """While it waits for the last handler, no new message is for it."""
    process = probe.start()
    port = probe.port
    until(lambda: not probe.problems("ready", port), "the worker's readiness")
    probe.send(MessageType.QUERY, seconds=15)
    until(lambda: probe.value("waooaw_worker_running") == 1, "the handler")
    process.terminate()
    until(lambda: "draining" in _problems_or_gone(probe, port), "the end is seen")


def _problems_or_gone(probe: Probe, port: int) -> set[str]:
    try:
        return probe.problems("ready", port)
    except OSError:
        return set()


def test_a_port_that_is_taken_ends_the_start(probe: Probe) -> None:
    """The error says what to do."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(AssertionError, match="Set another waooaw_health_port"):
            probe.start(waooaw_health_port=taken.getsockname()[1])


def test_beat_serves_its_health(probe: Probe, tmp_path: Path) -> None:
    """It is live while it sends in time, and ready while its broker answers."""
    port = free_port()
    env = os.environ | {
        "CELERY_BROKER_URL": probe.broker.url,
        "CELERY_RESULT_BACKEND": probe.broker.redis_url,
        "WAOOAW_HEALTH_PORT": str(port),
        "WAOOAW_DATABASE_URL": str(probe.broker.database_url),
    }
    command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "beat", "-s", str(tmp_path / "beat")]
    probe.processes.append(spawn(command, log=tmp_path / "beat.log", env=env, cwd=Path(__file__).parents[2]))
    until(lambda: _problems_or_none(probe, port) == set(), "beat's health")
    assert not probe.problems("live", port)


def _problems_or_none(probe: Probe, port: int) -> set[str] | None:
    try:
        return probe.problems("ready", port)
    except OSError:
        return None
