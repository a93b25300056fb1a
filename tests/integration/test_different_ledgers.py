"""Processes of one system that do not share a ledger: each message, and each worker, says which one it has."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from process_pool import spawn, waooaw
from support import Broker, lone_database, queue_length, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, create_app
from waooaw_celery.errors import LedgerMismatch
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.diagnostics.examination import examine
from waooaw_celery.maintenance.diagnostics.finding import State
from waooaw_celery.maintenance.diagnostics.workers import ledgers_of_the_workers
from waooaw_celery.maintenance.queue_drop import drop
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.testing.embedded import end, end_all, free_port

HANDLED = MessageStatus.HANDLED
#: Heartbeats are frequent, so that what a worker reports is soon visible.
FAST: dict[str, Any] = {"waooaw_heartbeat_seconds": 0.3}


@dataclass
class System:
    """One broker, with a ledger that some processes have and others have not."""

    ledgered: Broker
    plain: Broker
    name: str
    folder: Path
    processes: list[Any] = field(default_factory=list)
    apps: list[AgentApp] = field(default_factory=list)

    def app(self, *, ledger: bool, **settings: Any) -> AgentApp:
        """Return an application with the ledger or without it, which knows the agent from its settings."""
        broker = self.ledgered if ledger else self.plain
        app = broker.app(**({"waooaw_agents": [self.name]} | FAST | settings))
        self.apps.append(app)
        return app

    def start(self, *, ledger: bool, node: str | None = None, **settings: Any) -> Any:
        """Start a worker of the agent with the ledger or without it."""
        broker = self.ledgered if ledger else self.plain
        process = broker.start(self.name, self.app(ledger=ledger), node=node, **(FAST | settings))
        self.processes.append(process)
        return process

    def log(self, node: str | None = None) -> str:
        """Return the log of a worker."""
        return (self.folder / f"{node or self.name}.log").read_text()

    def env(self, *, ledger: bool) -> dict[str, str]:
        """Return the environment of a command with the ledger or without it."""
        env = {"CELERY_BROKER_URL": self.plain.url, "CELERY_RESULT_BACKEND": self.plain.redis_url}
        env |= {"WAOOAW_AGENTS": self.name, "WAOOAW_SPOOL_FOLDER": str(self.plain.spool_folder)}
        return env | ({"WAOOAW_DATABASE_URL": str(self.ledgered.database_url)} if ledger else {})


def _upgraded(url: str) -> str:
    with closing(create_app(waooaw_database_url=url)) as app:
        schema.upgrade(app.database)
    return url


@pytest.fixture
def system(redis_url: str, tmp_path: Path) -> Iterator[System]:
    """A system on Valkey, with a ledger of its own in SQLite."""
    yield from _system(redis_url, redis_url, f"sqlite:///{tmp_path}/ledger.sqlite", tmp_path)


@pytest.fixture(
    params=["valkey-sqlite", "valkey-postgresql", pytest.param("rabbitmq-sqlite", marks=pytest.mark.rabbitmq)]
)
def any_system(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[System]:
    """A system on each broker and each kind of ledger in turn, with its store in Valkey."""
    broker, ledger = request.param.split("-")
    url = redis_url if broker == "valkey" else request.getfixturevalue("amqp_url")
    if ledger == "sqlite":
        yield from _system(url, redis_url, f"sqlite:///{tmp_path}/ledger.sqlite", tmp_path)
        return
    with lone_database(request.getfixturevalue("postgres_url")) as ledger_url:
        yield from _system(url, redis_url, ledger_url, tmp_path)


def _system(url: str, redis_url: str, ledger_url: str, folder: Path) -> Iterator[System]:
    plain = Broker(url, redis_url, folder)
    system = System(Broker(url, redis_url, folder, _upgraded(ledger_url)), plain, plain.name(), folder)
    yield system
    end_all(system.processes)
    for app in system.apps:
        app.close()
    plain.clean()


def send(app: AgentApp, system: System, **payload: Any) -> str:
    """Send a message that marks each handling of it in a file, and return its id."""
    return MessageBus(app).send(message(system, **payload)).message_id


def message(system: System, **payload: Any) -> Message:
    """Return a message that marks each handling of it in a file."""
    payload = {"mark": str(system.folder / "marks")} | payload
    return Message(from_agent="tests", to_agent=system.name, payload=payload, ttl_seconds=None)


def marks(system: System) -> list[str]:
    """Return the ids of the handled messages, one for each handling."""
    path = system.folder / "marks"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def events_of(app: AgentApp, message_id: str) -> list[MessageEvent]:
    """Return the events that the ledger has of a message."""
    [record] = MessageAuditTrail(app.ledger).conversation(message_id)
    return [event.event for event in record.events]


def _workers(app: AgentApp, system: System) -> list[str]:
    """Return the living workers of the agent, as an application sees them."""
    return [node for each in app.registry.everywhere() if each.name == system.name for node in each.workers]


def refused(system: System, node: str | None = None) -> bool:
    """Whether a worker has logged that it leaves messages in its queue."""
    return "this worker leaves message" in system.log(node)


def test_a_worker_without_the_ledger_leaves_its_messages_to_one_with_it(any_system: System) -> None:
    """The message is handled once, the ledger says so, and no recovery publishes it meanwhile."""
    system = any_system
    system.start(ledger=False, node="old")
    app = system.app(ledger=True)
    sent = send(app, system)
    until(lambda: marks(system) or refused(system, "old"), "the worker's decision")
    assert marks(system) == []
    assert "CRITICAL" in system.log("old")
    assert "waooaw_database_url" in system.log("old")
    own = send(system.app(ledger=False), system)  # one such message does not keep the worker from its own
    until(lambda: marks(system) == [own], "the end of the worker's own message")
    assert Recovery(app, after=0.01, pause=0.1).run().recovered == []

    system.start(ledger=True, node="new")  # beside the other one: so a ledger is switched on
    assert settled(app, sent) is HANDLED
    assert marks(system) == [own, sent]
    assert MessageEvent.RECOVERED not in events_of(app, sent)


def test_recovery_leaves_messages_alone_that_a_worker_without_the_ledger_may_have_handled(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of an older version does not refuse: the message is gone from the broker, and its end unknown."""
    app = system.app(ledger=True)
    sent = send(app, system)
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_purge(f"agent.{system.name}")  # as if such a worker had handled it
    system.start(ledger=False)
    with caplog.at_level(logging.WARNING):
        result = Recovery(app, after=0.01, pause=0.1).run()
    assert (result.recovered, result.left) == ([], 1)
    assert "1 open message not recovered" in caplog.text

    end(system.processes.pop())
    until(lambda: not _workers(app, system), "the end of the worker")
    assert Recovery(app, after=0.01, pause=0.1).run().recovered == [sent]


@pytest.mark.parametrize("payload", [{}, {"fail": "no"}], ids=["handled", "failed"])
def test_the_receipt_of_a_sender_without_the_ledger_says_what_the_ledger_says(
    any_system: System, payload: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """So the sender is told once, in its log, and what it reads is never contradicted by the ledger."""
    system = any_system
    system.start(ledger=True)
    plain, ledgered = system.app(ledger=False), system.app(ledger=True)
    with caplog.at_level(logging.WARNING):
        sent = send(plain, system, **payload)
        send(plain, system)
    assert settled(plain, sent) is (MessageStatus.FAILED if payload else HANDLED)
    own, other = MessageBus(plain).receipt(sent), MessageBus(ledgered).receipt(sent)
    assert (own.status, own.attempts, own.error) == (other.status, other.attempts, other.error)
    [told] = [record for record in caplog.records if getattr(record, "action", "") == "ledger_mismatch"]
    assert "waooaw_database_url" in told.message
    assert system.name in told.message


@pytest.mark.slow
def test_a_message_that_a_worker_without_the_ledger_has_handled_is_not_handled_again(system: System) -> None:
    """A rolling change: the old worker handles the message, and the broker redelivers it to a new one."""
    plain = system.app(ledger=False)
    old = system.start(ledger=False)
    sent = send(plain, system)
    assert settled(plain, sent) is HANDLED
    end(old)
    system.processes.remove(old)
    system.start(ledger=True, node="new")
    target = plain.target(f"{system.name}.command")
    assert target is not None
    # The same message again, as a broker redelivers it.
    again = plain.message_factory.complete(target, message(system).evolve(message_id=sent))
    plain.publisher.publish_recorded([(target, again)])
    last = send(plain, system)
    assert settled(plain, last) is HANDLED
    assert marks(system) == [sent, last]
    assert MessageBus(system.app(ledger=True)).receipt(sent).status is HANDLED


def test_a_sender_without_the_ledger_cancels_a_message_of_a_worker_with_it(system: System) -> None:
    """The cancellation holds for a worker that starts later, too."""
    plain, ledgered = system.app(ledger=False), system.app(ledger=True)
    cancelled = send(plain, system)
    MessageBus(plain).cancel(cancelled)
    sent = send(plain, system)
    system.start(ledger=True)
    assert settled(plain, sent) is HANDLED
    assert settled(plain, cancelled) is settled(ledgered, cancelled) is MessageStatus.CANCELLED
    assert marks(system) == [sent]


@pytest.mark.parametrize("has_worker_the_ledger", [False, True], ids=["sender's", "worker's"])
def test_the_commands_show_live_workers_whatever_their_ledger(system: System, has_worker_the_ledger: bool) -> None:
    """Neither of two processes, one with the ledger and one without, calls a live worker away."""
    system.start(ledger=has_worker_the_ledger)
    shown_ledger = system.app(ledger=True).ledger_id if has_worker_the_ledger else None
    for ledger in (True, False):
        done = waooaw("agents", "--json", env=system.env(ledger=ledger))
        [shown] = [each for each in json.loads(done.stdout) if each["agent"]["name"] == system.name]
        assert (shown["state"], shown["alive"]) == ("alive", True)
        assert list(shown["ledgers"].values()) == [shown_ledger]
    done = waooaw("agents", env=system.env(ledger=not has_worker_the_ledger))
    assert "write to different places" in done.stderr
    assert "waooaw_database_url" in done.stderr
    app = system.app(ledger=not has_worker_the_ledger)
    [found] = [each for each in examine(app, [ledgers_of_the_workers]) if system.name in each.name]
    assert found.state is State.WARN
    assert "waooaw_database_url" in found.sentence


def test_doctor_shows_the_queue_in_which_a_worker_leaves_messages(system: System) -> None:
    """The finding is a failure, and the agent's state says that it refuses messages."""
    system.start(ledger=False)
    app = system.app(ledger=True)
    send(app, system)
    queue = f"queue agent.{system.name}"

    def found() -> list[Any]:
        findings = examine(app, [ledgers_of_the_workers])
        return [each for each in findings if each.name == queue and each.state is State.FAIL]

    until(found, "the report of the refusal")
    [agent] = [each for each in app.registry.everywhere() if each.name == system.name]
    assert agent.state(timedelta(seconds=30)) == "refusing"


def test_a_worker_does_not_start_without_the_ledger_of_the_other_workers(system: System) -> None:
    """It ends with one sentence that names the setting."""
    system.start(ledger=True)
    log = system.folder / "refused.log"
    env = os.environ | system.env(ledger=False) | {"PROBE_NAME": system.name}
    command = [sys.executable, "-m", "celery", "-A", "probe", "worker", "-n", "other@%h", "-c", "1"]
    process = spawn(command, log=log, env=env, cwd=Path(__file__).parent)
    system.processes.append(process)
    until(lambda: process.poll() is not None, "the end of the worker")
    assert "Error: this worker writes to no ledger" in log.read_text()
    assert "WAOOAW_DATABASE_URL" in log.read_text()


def test_a_sender_with_another_ledger_is_refused(system: System, tmp_path: Path) -> None:
    """Nothing is recorded or published, whether its ledger knows the agent or not."""
    system.start(ledger=True)
    url = _upgraded(f"sqlite:///{tmp_path}/other.sqlite")
    for agents in ([system.name], []):
        app = system.app(ledger=True, waooaw_database_url=url, waooaw_agents=agents)
        with pytest.raises(LedgerMismatch, match=f"{system.name}.*waooaw_database_url"):
            send(app, system)
        assert app.receipts.recent() == []
    assert queue_length(app, system.name) == 0


def test_what_the_maintenance_of_the_ledger_ends_is_ended_in_the_receipt_of_the_sender(system: System) -> None:
    """The worker dies while it handles a message, and no other one comes."""
    plain, app = system.app(ledger=False), system.app(ledger=True, waooaw_lost_seconds=0.1)
    worker = system.start(ledger=True)
    sent = send(plain, system, gate=str(system.folder / "never"))
    until(lambda: marks(system) == [sent], "the begin of the handler")
    worker.kill()
    until(lambda: app.ledger.reconcile() == [sent], "the end of the message in the ledger")
    own, other = MessageBus(plain).receipt(sent), MessageBus(app).receipt(sent)
    assert (own.status, own.error) == (other.status, other.error)
    assert own.status is MessageStatus.FAILED


def test_messages_of_the_ledger_are_dropped_only_by_a_process_that_has_it(any_system: System) -> None:
    """Another one could not record that they were dropped, and recovery would publish them again."""
    system = any_system
    app = system.app(ledger=True)
    sent = send(app, system)
    for discard in (True, False):
        with pytest.raises(LedgerMismatch, match="waooaw_database_url"):
            drop(system.app(ledger=False), system.name, "tests", by="ada", discard=discard)
    assert queue_length(app, system.name) == 1
    assert MessageBus(app).receipt(sent).status is MessageStatus.SENT
    assert drop(app, system.name, "tests", by="ada", discard=True).total == 1


@pytest.mark.slow
def test_an_expired_message_of_another_ledger_leaves_the_queue(system: System) -> None:
    """Its own ledger says EXPIRED, which is true: no worker has handled it."""
    app = system.app(ledger=True)
    sent = MessageBus(app).send(message(system).evolve(ttl_seconds=1)).message_id
    last = send(app, system)
    system.start(ledger=False)
    until(lambda: refused(system), "the refusal")
    until(lambda: sent in app.ledger.sweep(), "the expiry")
    system.start(ledger=True, node="new")
    assert settled(app, last) is HANDLED
    assert settled(app, sent) is MessageStatus.EXPIRED
    assert marks(system) == [last]
    until(lambda: queue_length(app, system.name) == 0, "the end of the messages in the queue")


def test_a_retry_and_a_recovered_message_keep_their_ledger(system: System) -> None:
    """So their worker does not refuse them."""
    app = system.app(ledger=True)
    lost = send(app, system)
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_purge(f"agent.{system.name}")
    assert Recovery(app, after=0.01, pause=0.1).run().recovered == [lost]
    retried = send(app, system, fail_times=2)
    system.start(ledger=True)
    assert settled(app, lost) is settled(app, retried) is HANDLED
    assert not refused(system)


def test_processes_that_share_a_ledger_need_no_redis_for_it(system: System) -> None:
    """The store's Redis is away: their messages are handled, and what they look up costs no wait."""
    settings = {"waooaw_redis_url": f"redis://127.0.0.1:{free_port()}/0"}
    app = system.app(ledger=True, waooaw_agents=[], **settings)
    system.start(ledger=True, **settings)
    sent = send(app, system)
    assert settled(app, sent) is HANDLED
    assert "receipts of senders without a ledger" not in system.log()
