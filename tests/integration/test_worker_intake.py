"""A worker that can record events nowhere stops consuming, and resumes by itself."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from postgres_server import Server
from process_pool import waooaw
from support import Broker, pass_time, queue_length, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.testing.embedded import end

RABBITMQ = pytest.mark.rabbitmq
#: Messages to each kind of handler.
MESSAGES_PER_HANDLER = 8


@pytest.fixture
def broker(request: pytest.FixtureRequest, server: Server, redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    """A broker with a ledger that the tests can stop."""
    url = request.getfixturevalue("amqp_url") if request.param == "rabbitmq" else redis_url
    broker = Broker(url, redis_url, tmp_path, server.url)
    with closing(broker.app()) as app:
        schema.upgrade(app.database)
    yield broker
    broker.clean()


@pytest.fixture
def app(broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with another spool than its worker."""
    app = broker.app(waooaw_spool_folder=str(tmp_path / "spool-of-the-tests"))
    yield app
    app.close()


class UnwritableFolder:
    """A spool folder that a test can replace by a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fail(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.write_text("no folder")

    def recover(self) -> None:
        if self.folder.is_file():
            self.folder.unlink()


class FullDisk:
    """A spool folder on a separate disk that a test can fill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a file system")

    def fail(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    def recover(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Probe:
    """A worker whose handlers write the ids of their messages to a file."""

    def __init__(self, broker: Broker, app: AgentApp, *options: str, **env: str) -> None:
        self.name, self.app = broker.name(), app
        self.runs = broker.folder / f"{self.name}.runs"
        self.runs.touch()
        self._broker, self._options, self._env = broker, options, env
        self.start()

    def start(self) -> None:
        env = {"PROBE_RUNS": str(self.runs), **self._env}
        self.process = self._broker.start(self.name, self.app, *self._options, module="intake_probe", env=env)

    def send(self) -> list[str]:
        bus, name = MessageBus(self.app), self.name
        ids = []
        for kind in (MessageType.COMMAND, MessageType.ACK):
            messages = [
                Message(from_agent="tests", to_agent=name, message_type=kind) for _ in range(MESSAGES_PER_HANDLER)
            ]
            ids += [receipt.message_id for receipt in bus.send_many(messages)]
        for method in ("parts", "parts_later", "fail"):
            ids += [
                self.app.send_task(f"{name}.{method}", ignore_result=True).id for _ in range(MESSAGES_PER_HANDLER)
            ]
        self.app.receipts.flush()
        return ids

    def handled(self) -> list[str]:
        return self.runs.read_text().split()

    @property
    def log(self) -> str:
        return (self._broker.folder / f"{self.name}.log").read_text()

    def not_taking(self) -> str | None:
        node = f"{self.name}@{socket.gethostname()}"
        answers = self.app.control.inspect([node], timeout=2).stats() or {}
        found: str | None = answers.get(node, {}).get("not_taking")
        return found

    def depth(self) -> int:
        return queue_length(self.app, self.name)


@contextmanager
def nothing_writable(server: Server, spool: UnwritableFolder | FullDisk, *probes: Probe) -> Iterator[None]:
    """Neither the database nor the spool can be written, after the first messages were handled."""
    until(lambda: all(probe.handled() for probe in probes), "the first handled messages")
    spool.fail()
    server.stop()
    try:
        yield
    finally:
        server.start()
        spool.recover()


@contextmanager
def facts_not_writable(server: Server, spool: UnwritableFolder | FullDisk, *probes: Probe) -> Iterator[None]:
    """The database accepts heartbeats but no facts, and the spool cannot be written."""
    until(lambda: all(probe.handled() for probe in probes), "the first handled messages")
    spool.fail()
    server.run("ALTER TABLE waooaw_open_messages RENAME TO renamed")
    try:
        yield
    finally:
        server.run("ALTER TABLE renamed RENAME TO waooaw_open_messages")
        spool.recover()


def check_that_it_stops_consuming(probe: Probe) -> None:
    """Check that the worker has stopped consuming. Running handlers end; then none begins for two seconds."""
    until(lambda: "takes no more messages" in probe.log, "the pause in the log")
    until(probe.not_taking, "the reason in the answer to inspect")
    until(lambda: probe.depth() > 0, "messages that stay in the queue")
    quiet = Unchanged(lambda: len(probe.handled()))
    until(lambda: quiet.seconds() > 2, "two seconds in which nothing is handled", 20)
    handled, depth = len(probe.handled()), probe.depth()
    assert depth > 0
    pass_time(2)
    assert len(probe.handled()) == handled
    assert probe.depth() >= depth  # messages that were received and not started are returned


class Unchanged:
    """How long a value has not changed, at the moments when it was asked."""

    def __init__(self, value: Callable[[], int]) -> None:
        self._value = value
        self._last, self._since = value(), time.monotonic()

    def seconds(self) -> float:
        if (value := self._value()) != self._last:
            self._last, self._since = value, time.monotonic()
        return time.monotonic() - self._since


def check_that_each_ended_once(probe: Probe, ids: list[str]) -> None:
    """Check that each message has one final status in the ledger, and that its handler ran once."""

    def ended() -> bool:
        with suppress(StoreUnavailable):
            statuses = [probe.app.receipts.get(id_).status for id_ in ids]
            return all(status.final for status in statuses)
        return False

    until(ended, "the end of all messages", 60)
    assert probe.not_taking() is None
    runs = Counter(probe.handled())
    assert set(runs) == set(ids)
    assert sum(runs.values()) == len(ids)
    statuses = Counter(probe.app.receipts.get(id_).status for id_ in ids)
    assert statuses == {
        MessageStatus.HANDLED: 4 * MESSAGES_PER_HANDLER,
        MessageStatus.FAILED: MESSAGES_PER_HANDLER,
    }
    assert Recovery(probe.app, after=0, pause=0).run(agent=probe.name).recovered == []
    assert "not recorded" not in probe.log


SOLO, PREFORK, THREADS, GEVENT = (
    [("-P", pool, "-c", "1"), {}] for pool in ("solo", "prefork", "threads", "gevent")
)
#: In batched mode, it keeps in memory the facts that it noted before it detected the failure.
BATCHED = [("-P", "prefork", "-c", "2"), {"WAOOAW_AUDIT_MODE": "batched"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "workers", "spool"),
    [
        ("valkey", [SOLO, THREADS, BATCHED], UnwritableFolder),
        ("valkey", [PREFORK, GEVENT], FullDisk),
        pytest.param("rabbitmq", [PREFORK, THREADS], UnwritableFolder, marks=RABBITMQ),
    ],
    indirect=["broker"],
    ids=["valkey", "valkey and a full disk", "rabbitmq"],
)
def test_a_worker_that_can_record_nowhere_stops_consuming(
    server: Server,
    broker: Broker,
    app: AgentApp,
    workers: list[Any],
    spool: type[UnwritableFolder] | type[FullDisk],
) -> None:
    """Started handlers end, other messages stay in the queue. Once the database is up, each is handled once."""
    spool_folder = spool(broker.spool_folder)
    with ExitStack() as stack:
        if isinstance(spool_folder, FullDisk):
            stack.callback(spool_folder.close)
        probes = [Probe(broker, app, *options, **env) for options, env in workers]
        for probe in probes:
            stack.callback(end, probe.process)
        sent = [probe.send() for probe in probes]
        with nothing_writable(server, spool_folder, *probes):
            for probe in probes:
                check_that_it_stops_consuming(probe)
        for probe, ids in zip(probes, sent, strict=True):
            check_that_each_ended_once(probe, ids)
            assert "takes messages again" in probe.log


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_the_pause_is_reported_and_a_writable_spool_ends_it(server: Server, broker: Broker, app: AgentApp) -> None:
    """The worker's heartbeat has the reason of the pause. It resumes once the spool can be written."""
    spool_folder = UnwritableFolder(broker.spool_folder)
    probe = Probe(broker, app, "-c", "2", WAOOAW_HEARTBEAT_SECONDS="1")
    try:
        ids = probe.send()
        with facts_not_writable(server, spool_folder, probe):
            check_that_it_stops_consuming(probe)

            def is_reported() -> bool:
                record = app.registry.get(probe.name)
                assert record.alive(timedelta(seconds=30))
                return any(
                    "neither in the ledger nor" in str(report.get("not_taking"))
                    for report in record.reports.values()
                )

            until(is_reported, "the report of the worker")
            [row] = [
                line
                for line in waooaw("agents", env=environment(broker)).stdout.splitlines()
                if probe.name in line
            ]
            assert "not taking" in row
            spool_folder.recover()
            until(lambda: set(probe.handled()) == set(ids), "the last message", 60)
            until(lambda: probe.not_taking() is None, "the answer to inspect")
        check_that_each_ended_once(probe, ids)

        def has_resumed() -> bool:
            reports = app.registry.get(probe.name).reports.values()
            return not any("not_taking" in report for report in reports)

        until(has_resumed, "a report without a reason")
    finally:
        end(probe.process)


def environment(broker: Broker) -> dict[str, str]:
    return {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "killed"),
    [("valkey", True), pytest.param("rabbitmq", False, marks=RABBITMQ)],
    indirect=["broker"],
)
def test_a_handled_message_that_was_not_recorded_is_redelivered(
    server: Server, broker: Broker, app: AgentApp, tmp_path: Path, killed: bool
) -> None:
    """A worker or pool process ends with facts in memory. Their messages were not acknowledged."""
    spool_folder, gate = UnwritableFolder(broker.spool_folder), tmp_path / "gate"
    probe = Probe(broker, app, "-c", "2", PROBE_GATE=str(gate))
    bus = MessageBus(app)
    try:
        ids = [bus.send(Message(from_agent="tests", to_agent=probe.name)).message_id for _ in range(4)]
        until(lambda: len(list(tmp_path.glob("gate-*"))) == 2, "two running handlers")
        server.stop()
        spool_folder.fail()
        gate.touch()
        try:
            until(lambda: "wait in memory" in probe.log, "facts that wait in memory")
            until(lambda: "takes no more messages" in probe.log, "the pause in the log")
            until(lambda: len(probe.handled()) == 2, "the end of the two handlers")
            until(lambda: probe.depth() == 2, "the others in the queue")
            if killed:
                for child in psutil.Process(probe.process.pid).children():
                    child.kill()
            else:
                end(probe.process)
                assert probe.process.returncode == 0
                until(lambda: probe.depth() == 4, "all four in the queue")
        finally:
            server.start()
            spool_folder.recover()
        if not killed:
            probe.start()

        def ended() -> bool:
            with suppress(StoreUnavailable):
                return {app.receipts.get(id_).status for id_ in ids} == {MessageStatus.HANDLED}
            return False

        until(ended, "the end of all messages", 90)
        runs = Counter(probe.handled())
        assert set(runs) == set(ids)
        assert sorted(runs.values()) == [1, 1, 2, 2]
        assert not killed or "died before it recorded the outcome" in probe.log
    finally:
        end(probe.process)
