"""The ledger's database goes away and comes back: nothing is lost, and nobody waits for long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from outages import Server, lone_server
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.embedded import end
from waooaw_celery.errors import AuditUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.rows import WITHDRAWN, message_row, withdrawal_row
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.ledger.write import spool_drain as shipping
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.queues import agent_queue, queue_depth


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with lone_server() as server:
        yield server


@pytest.fixture(scope="module")
def broker(server: Server, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Valkey, with the ledger in the server that goes away."""
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("outages"), server.url)
    app = broker.app()
    schema.upgrade(app.database)
    app.close()
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def worker(broker: Broker) -> Iterator[str]:
    """Name of an agent whose worker, in strict mode, lives through all outages."""
    name, app = broker.name(), broker.app()
    process = broker.start(name, app)
    app.close()
    yield name
    end(process)


@pytest.fixture(params=["strict", "batched"])
def app(request: pytest.FixtureRequest, broker: Broker) -> Iterator[AgentApp]:
    """An application in each of the modes."""
    app = broker.app(waooaw_audit_mode=request.param)
    yield app
    app.close()


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """No server."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """A server that does not answer and closes nothing."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """A server that answers questions and takes nothing."""
    server.run("ALTER DATABASE postgres SET default_transaction_read_only = on")
    server.cut()
    try:
        yield
    finally:
        setting = "default_transaction_read_only"
        server.run(f"SET {setting} = off", f"ALTER DATABASE postgres RESET {setting}")
        server.cut()


@contextmanager
def without_a_table(server: Server) -> Iterator[None]:
    """A table is missing."""
    server.run("ALTER TABLE waooaw_open_messages RENAME TO elsewhere")
    try:
        yield
    finally:
        server.run("ALTER TABLE elsewhere RENAME TO waooaw_open_messages")


@contextmanager
def of_an_older_schema(server: Server) -> Iterator[None]:
    """A schema from before the function that writes."""
    server.run("ALTER FUNCTION waooaw_write RENAME TO elsewhere")
    try:
        yield
    finally:
        server.run("ALTER FUNCTION elsewhere RENAME TO waooaw_write")


OUTAGES = [stopped, read_only, without_a_table, of_an_older_schema]


def published(broker: Broker, name: str) -> int:
    """Return how many messages wait for an agent that does not run."""
    with closing(broker.app()) as app, app.connection_for_read() as connection:
        return queue_depth(connection, agent_queue(name)).total


def seconds(do: Callable[[], object]) -> float:
    """Return how long it took until AuditUnavailable was raised."""
    began = time.monotonic()
    with pytest.raises(AuditUnavailable):
        do()
    return time.monotonic() - began


def told(caplog: pytest.LogCaptureFixture, action: str) -> int:
    return sum(getattr(record, "action", None) == action for record in caplog.records)


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_loses_nothing_and_is_told_once(
    server: Server,
    broker: Broker,
    app: AgentApp,
    outage: Callable[[Server], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Strict publishes nothing, batched spools and publishes; one line tells the beginning and one the end."""
    caplog.set_level(logging.WARNING, "waooaw_celery")
    strict = app.settings.audit_mode.value == "strict"
    name, bus = broker.name(), MessageBus(app)
    app.registry.declare(name, ["command"], f"{name}@h", 600)
    accepted = [bus.send(Message(from_agent="tests", to_agent=name)).message_id]
    app.receipts.flush()
    refused = []
    with outage(server):  # type: ignore[attr-defined]
        away_since = time.monotonic()
        # Longer than it takes until the database is tried again, and again.
        while time.monotonic() - away_since < 1.6:
            message = Message(from_agent="tests", to_agent=name)
            if strict:
                with pytest.raises(AuditUnavailable):
                    bus.send(message)
                refused.append(message.message_id)
            else:
                accepted.append(bus.send(message).message_id)
        assert published(broker, name) == len(accepted)
        if not strict:
            until(lambda: app.ledger.spool.counts()[0] >= 2 * len(accepted) - 2, "the spool")

    def sent_again() -> bool:
        with suppress(AuditUnavailable):
            accepted.append(bus.send(Message(from_agent="tests", to_agent=name)).message_id)
            return app.ledger.spool.counts() == (0, 0)
        return False

    until(sent_again, "the end of the outage")
    app.receipts.flush()
    statuses = {receipt.message_id: receipt.status for receipt in app.receipts.recent(limit=100_000)}
    assert {statuses[message_id] for message_id in accepted} == {MessageStatus.SENT}
    assert not set(refused) & set(statuses)
    assert (told(caplog, "ledger_away"), told(caplog, "ledger_back")) == (1, 1)


def test_a_frozen_database_keeps_nobody_waiting(
    server: Server, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The first send meets its deadline, the next ones are refused at once, and questions have deadlines too."""
    caplog.set_level(logging.WARNING, "waooaw_celery")
    app = broker.app()
    bus, trail, name = MessageBus(app), MessageAuditTrail(app.ledger), broker.name()
    app.registry.declare(name, ["command"], f"{name}@h", 600)
    bus.send(Message(from_agent="tests", to_agent=name))
    app.receipts.flush()
    messages = [Message(from_agent="tests", to_agent=name) for _ in range(21)]
    with frozen(server):
        first, *following = [seconds(lambda message=message: bus.send(message)) for message in messages]
        question = seconds(trail.query)
    assert first < 8
    assert max(following) < 0.5
    assert question < 8
    until(lambda: told(caplog, "ledger_back"), "the end of the outage")
    assert (told(caplog, "ledger_away"), told(caplog, "ledger_back")) == (1, 1)
    assert published(broker, name) == 1
    app.close()


def test_what_was_refused_is_never_published(server: Server, broker: Broker) -> None:
    """A server that froze carries out, when it thaws, what it was given before: that message is withdrawn."""
    app, name = broker.app(), broker.name()
    bus = MessageBus(app)
    app.registry.declare(name, ["command"], f"{name}@h", 600)
    bus.send(Message(from_agent="tests", to_agent=name))
    app.receipts.flush()
    message = Message(from_agent="tests", to_agent=name)
    with frozen(server), pytest.raises(AuditUnavailable):
        bus.send(message)

    def withdrawn() -> bool:
        with suppress(AuditUnavailable, UnknownMessage):
            return bus.receipt(message.message_id).status is MessageStatus.FAILED
        return False

    until(withdrawn, "the withdrawal")
    assert bus.receipt(message.message_id).error == WITHDRAWN
    assert Recovery(app, after=0, pause=0).run(agent=name).recovered == []
    assert published(broker, name) == 1
    app.close()


def test_what_the_ledger_never_took_need_not_be_withdrawn(
    server: Server, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database crashes before it has answered: it is looked for the message a while, and then no more."""
    monkeypatch.setattr(shipping, "WITHDRAWAL_SECONDS", 2.0)
    monkeypatch.setattr(shipping, "SPOOL_SECONDS", 0.2)
    app = broker.app()
    message = Message(from_agent="tests", to_agent="nobody", retention=RetentionPolicy.DAYS_30)
    app.ledger.spool.append([withdrawal_row(message_row(message, "command", RetentionPolicy.DAYS_30))])
    app.ledger.start()
    assert app.ledger.spool.counts() == (1, 0)
    until(lambda: app.ledger.spool.counts() == (0, 0), "the end of the search")
    with pytest.raises(UnknownMessage):
        app.ledger.get(message.message_id)
    app.close()


def test_a_worker_goes_on_while_the_database_is_frozen(server: Server, broker: Broker, worker: str) -> None:
    """What it handles meanwhile is spooled at once after its first deadline, and in the ledger afterwards."""
    app = broker.app(waooaw_audit_mode="batched")
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=worker))  # the registry is asked for the agent once
    app.receipts.flush()
    log = broker.folder / f"{worker}.log"
    lines_before = log.read_text()
    ids: list[str] = []

    def handle_twenty() -> float:
        """Return the seconds until twenty messages are handled: each is spooled with three facts."""
        began, before = time.monotonic(), app.ledger.spool.counts()[0]
        ids.extend(
            receipt.message_id
            for receipt in bus.send_many([Message(from_agent="tests", to_agent=worker) for _ in range(20)])
        )
        until(lambda: app.ledger.spool.counts()[0] >= before + 80, "the spooled facts")
        return time.monotonic() - began

    with frozen(server):
        first, second = handle_twenty(), handle_twenty()
    assert first < 20
    assert second < 5
    until(lambda: app.ledger.spool.counts() == (0, 0), "an empty spool")
    trail = MessageAuditTrail(app.ledger)
    for message_id in ids:
        events = [event.event for event in trail.receipt(message_id).events]
        assert events == ["sent", "delivered", "handled"]

    def lines() -> str:
        return log.read_text()[len(lines_before) :]

    def of_child() -> str:
        return "\n".join(line for line in lines().splitlines() if "/ForkPoolWorker-" in line)

    until(lambda: "the ledger is back" in of_child(), "the word that it is back")
    assert of_child().count("Until it is back") == of_child().count("the ledger is back") == 1
    # Its parent writes nothing; when it comes to ship what was spooled, it notices too.
    assert lines().count("Until it is back") <= 2
    app.close()


def handled_by(app: AgentApp, name: str) -> list[str]:
    """Ask an agent which messages it handled: what its handlers saw, and not what the ledger says."""
    return [fact["message_id"] for fact in RequestResponseHandler(app).request(name, "seen", timeout=30)]


@pytest.mark.parametrize(("mode", "number"), [("strict", 1000), ("batched", 300)])
def test_every_message_is_accounted_for(
    server: Server, broker: Broker, worker: str, mode: str, number: int
) -> None:
    """PostgreSQL crashes in the middle of many messages and comes back: each was refused, or has one end."""
    app = broker.app(waooaw_audit_mode=mode)
    bus = MessageBus(app)
    accepted: set[str] = set()
    refused: set[str] = set()

    def send() -> bool:
        message = Message(from_agent="tests", to_agent=worker, payload={"n": len(accepted) + len(refused)})
        try:
            bus.send(message)
        except AuditUnavailable:
            refused.add(message.message_id)
            return False
        accepted.add(message.message_id)
        return True

    def total() -> int:
        return len(accepted) + len(refused)

    while total() < number * 0.4:
        send()
    server.stop()
    while total() < number * 0.6:
        send()
    until(lambda: app.ledger.spool.counts()[0] > 0, "facts in the spool")
    server.start()
    until(lambda: send() and app.ledger.spool.counts() == (0, 0), "the end of the outage")
    while total() < number:
        send()
    if mode == "batched":
        assert not refused
    else:
        assert len(refused) >= number * 0.2

    def ended() -> bool:
        with suppress(AuditUnavailable):
            found = {receipt.message_id: receipt for receipt in app.receipts.recent(limit=100_000)}
            return all(found[message_id].status.final for message_id in accepted if message_id in found) and (
                accepted <= found.keys()
            )
        return False

    until(ended, "the end of every message", 60)
    until(lambda: app.ledger.spool.counts() == (0, 0), "an empty spool")
    seen = handled_by(app, worker)
    assert accepted <= set(seen)
    assert not refused & set(seen)
    records = {record.receipt.message_id: record for record in _all(app, worker)}
    assert set(seen) <= records.keys()
    for message_id in accepted:
        terminal = [event.event for event in records[message_id].events if event.event in ("handled", "failed")]
        assert terminal == ["handled"]
        assert "expired" not in [event.event for event in records[message_id].events]
    assert not refused & {id_ for id_, record in records.items() if record.receipt.status is MessageStatus.HANDLED}
    app.close()


def _all(app: AgentApp, name: str) -> Iterator:  # type: ignore[type-arg]
    trail, after = MessageAuditTrail(app.ledger), None
    while True:
        page = trail.query(to_agent=name, limit=1000, after=after)
        yield from page.records
        if (after := page.after) is None:
            return


def test_pool_children_write_what_they_have_before_they_end(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is told to stop in batched mode leaves no message of its own without its end."""
    monkeypatch.setenv("WAOOAW_AUDIT_MODE", "batched")
    app = broker.app()
    name, bus = broker.name(), MessageBus(app)
    process = broker.start(name, app)
    ids = [
        receipt.message_id
        for receipt in bus.send_many([Message(from_agent="tests", to_agent=name) for _ in range(30)])
    ]
    until(lambda: published(broker, name) == 0, "the last message to be taken")
    end(process)
    assert process.returncode == 0
    statuses = [app.receipts.get(message_id).status for message_id in ids]
    assert set(statuses) <= {MessageStatus.HANDLED, MessageStatus.SENT}
    # What it had fetched and not begun went back to the queue.
    assert statuses.count(MessageStatus.SENT) == published(broker, name)
    app.close()
