"""The ledger's database goes down and comes back: no message is lost, and no caller waits for long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from postgres_server import Server
from support import Broker, queue_length, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import AuditUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.rows import WITHDRAWN, message_row, withdrawal_row
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.ledger.write import spool_drain
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.testing.embedded import end


@pytest.fixture(scope="module")
def broker(server: Server, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Valkey as the broker, with the ledger in the server that the tests stop."""
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("outages"), server.url)
    app = broker.app()
    schema.upgrade(app.database)
    app.close()
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def worker(broker: Broker) -> Iterator[str]:
    """The name of an agent whose worker runs in strict mode through all outages."""
    name, app = broker.name(), broker.app()
    process = broker.start(name, app)
    app.close()
    yield name
    end(process)


@pytest.fixture(params=["strict", "batched"])
def app(request: pytest.FixtureRequest, broker: Broker) -> Iterator[AgentApp]:
    """An application in strict and in batched mode."""
    app = broker.app(waooaw_audit_mode=request.param)
    yield app
    app.close()


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Stop the server."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Freeze the server: it does not answer, and its connections stay open."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """Make the database read-only."""
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
    """Remove a table that every write uses."""
    server.run("ALTER TABLE waooaw_open_messages RENAME TO renamed")
    try:
        yield
    finally:
        server.run("ALTER TABLE renamed RENAME TO waooaw_open_messages")


@contextmanager
def without_the_function(server: Server) -> Iterator[None]:
    """Remove the function that writes."""
    server.run("ALTER FUNCTION waooaw_write RENAME TO renamed")
    try:
        yield
    finally:
        server.run("ALTER FUNCTION renamed RENAME TO waooaw_write")


OUTAGES = [stopped, read_only, without_a_table, without_the_function]


def queued(broker: Broker, name: str) -> int:
    """Return how many messages are in the queue of an agent that does not run."""
    with closing(broker.app()) as app:
        return queue_length(app, name)


def seconds_until_refused(call: Callable[[], object]) -> float:
    """Return the seconds until a call raises AuditUnavailable."""
    began = time.monotonic()
    with pytest.raises(AuditUnavailable):
        call()
    return time.monotonic() - began


def logged(caplog: pytest.LogCaptureFixture, action: str) -> int:
    return sum(getattr(record, "action", None) == action for record in caplog.records)


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_loses_nothing_and_is_logged_once(
    server: Server,
    broker: Broker,
    app: AgentApp,
    outage: Callable[[Server], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Strict mode publishes nothing, batched mode spools and publishes. The log has one line for each end."""
    caplog.set_level(logging.WARNING, "waooaw_celery")
    strict = app.settings.audit_mode.value == "strict"
    name, bus = broker.name(), MessageBus(app)
    app.registry.declare(name, ["command"], f"{name}@h", 600)
    accepted = [bus.send(Message(from_agent="tests", to_agent=name)).message_id]
    app.receipts.flush()
    refused = []
    with outage(server):  # type: ignore[attr-defined]
        started_at = time.monotonic()
        # Long enough for two retries of the database.
        while time.monotonic() - started_at < 1.6:
            message = Message(from_agent="tests", to_agent=name)
            if strict:
                with pytest.raises(AuditUnavailable):
                    bus.send(message)
                refused.append(message.message_id)
            else:
                accepted.append(bus.send(message).message_id)
        assert queued(broker, name) == len(accepted)
        if not strict:
            until(lambda: app.ledger.spool.counts()[0] >= 2 * len(accepted) - 2, "the spool")

    def is_over() -> bool:
        with suppress(AuditUnavailable):
            accepted.append(bus.send(Message(from_agent="tests", to_agent=name)).message_id)
            return app.ledger.spool.counts() == (0, 0)
        return False

    until(is_over, "the end of the outage")
    app.receipts.flush()
    statuses = {receipt.message_id: receipt.status for receipt in app.receipts.recent(limit=100_000)}
    assert {statuses[message_id] for message_id in accepted} == {MessageStatus.SENT}
    assert not set(refused) & set(statuses)
    assert (logged(caplog, "ledger_down"), logged(caplog, "ledger_up")) == (1, 1)


@pytest.mark.slow
def test_calls_to_a_frozen_database_have_deadlines(
    server: Server, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The first send and a query fail at their deadlines. Later sends are refused at once."""
    caplog.set_level(logging.WARNING, "waooaw_celery")
    app = broker.app()
    bus, trail, name = MessageBus(app), MessageAuditTrail(app.ledger), broker.name()
    app.registry.declare(name, ["command"], f"{name}@h", 600)
    bus.send(Message(from_agent="tests", to_agent=name))
    app.receipts.flush()
    messages = [Message(from_agent="tests", to_agent=name) for _ in range(21)]
    with frozen(server):
        first, *following = [
            seconds_until_refused(lambda message=message: bus.send(message)) for message in messages
        ]
        query = seconds_until_refused(trail.query)
    assert first < 8
    assert max(following) < 2  # without waiting for the deadline, also on a busy computer
    assert query < 8
    until(lambda: logged(caplog, "ledger_up"), "the end of the outage")
    assert (logged(caplog, "ledger_down"), logged(caplog, "ledger_up")) == (1, 1)
    assert queued(broker, name) == 1
    app.close()


@pytest.mark.slow
def test_a_refused_message_is_never_published(server: Server, broker: Broker) -> None:
    """A server that was frozen writes the message when it continues. The message is then withdrawn."""
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
    assert queued(broker, name) == 1
    app.close()


def test_a_withdrawal_of_an_unknown_message_expires(
    server: Server, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database crashes before it writes the message. Its withdrawal is tried for a while, then dropped."""
    monkeypatch.setattr(spool_drain, "WITHDRAWAL_SECONDS", 2.0)
    monkeypatch.setattr(spool_drain, "SPOOL_SECONDS", 0.2)
    app = broker.app()
    message = Message(from_agent="tests", to_agent="nobody", retention=RetentionPolicy.DAYS_30)
    app.ledger.spool.append([withdrawal_row(message_row(message, "command", RetentionPolicy.DAYS_30))])
    app.ledger.start()
    assert app.ledger.spool.counts() == (1, 0)
    until(lambda: app.ledger.spool.counts() == (0, 0), "the end of the withdrawal")
    with pytest.raises(UnknownMessage):
        app.ledger.get(message.message_id)
    app.close()


@pytest.mark.slow
def test_a_worker_continues_while_the_database_is_frozen(server: Server, broker: Broker, worker: str) -> None:
    """After its first deadline it spools facts at once. They are in the ledger afterwards."""
    app = broker.app(waooaw_audit_mode="batched")
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=worker))  # so that the registry knows the agent
    app.receipts.flush()
    log = broker.folder / f"{worker}.log"
    lines_before = log.read_text()
    ids: list[str] = []

    def handle_twenty() -> float:
        """Return the seconds until twenty messages are handled. Each spools its row and three facts."""
        began, before = time.monotonic(), app.ledger.spool.counts()[0]
        ids.extend(
            receipt.message_id
            for receipt in bus.send_many([Message(from_agent="tests", to_agent=worker) for _ in range(20)])
        )
        until(lambda: app.ledger.spool.counts()[0] >= before + 80, "the spooled facts", 90)
        return time.monotonic() - began

    with frozen(server):
        first, second = handle_twenty(), handle_twenty()
    # If each of its 60 facts waited for the deadline of two seconds, it would take two minutes.
    assert first < 80
    assert second < 40
    until(lambda: app.ledger.spool.counts() == (0, 0), "an empty spool")
    trail = MessageAuditTrail(app.ledger)
    for message_id in ids:
        events = [event.event for event in trail.receipt(message_id).events]
        # On a busy computer, a lease may end while the database is frozen: a second delivery is a duplicate.
        assert [event for event in events if event != "duplicate"] == ["sent", "delivered", "handled"]

    def lines() -> str:
        return log.read_text()[len(lines_before) :]

    def lines_of_child() -> str:
        return "\n".join(line for line in lines().splitlines() if "/ForkPoolWorker-" in line)

    until(lambda: "the ledger's database answers again" in lines_of_child(), "the end of the outage in the log")
    assert (
        lines_of_child().count("Until it answers")
        == lines_of_child().count("the ledger's database answers again")
        == 1
    )
    # The parent process writes no facts, but it may notice the outage when it drains the spool.
    assert lines().count("Until it answers") <= 2
    app.close()


def handled_ids(app: AgentApp, name: str) -> list[str]:
    """Return the ids of the messages that an agent's handlers received, without using the ledger."""
    return [fact["message_id"] for fact in RequestResponseHandler(app).request(name, "seen", timeout=30)]


@pytest.mark.parametrize(("mode", "number"), [("strict", 1000), ("batched", 300)])
def test_every_message_is_accounted_for(
    server: Server, broker: Broker, worker: str, mode: str, number: int
) -> None:
    """PostgreSQL crashes among many messages and starts again: each message is refused or ends once."""
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
    seen = handled_ids(app, worker)
    assert accepted <= set(seen)
    assert not refused & set(seen)
    records = {record.receipt.message_id: record for record in _records(app, worker)}
    assert set(seen) <= records.keys()
    for message_id in accepted:
        terminal = [event.event for event in records[message_id].events if event.event in ("handled", "failed")]
        assert terminal == ["handled"]
        assert "expired" not in [event.event for event in records[message_id].events]
    assert not refused & {id_ for id_, record in records.items() if record.receipt.status is MessageStatus.HANDLED}
    app.close()


def _records(app: AgentApp, name: str) -> Iterator:  # type: ignore[type-arg]
    trail, after = MessageAuditTrail(app.ledger), None
    while True:
        page = trail.query(to_agent=name, limit=1000, after=after)
        yield from page.records
        if (after := page.after) is None:
            return


@pytest.mark.slow
def test_pool_children_write_their_facts_before_they_exit(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm shutdown in batched mode leaves no message that the worker handled without its end."""
    monkeypatch.setenv("WAOOAW_AUDIT_MODE", "batched")
    app = broker.app()
    name, bus = broker.name(), MessageBus(app)
    with broker.running(name, app) as process:
        messages = [Message(from_agent="tests", to_agent=name) for _ in range(30)]
        ids = [receipt.message_id for receipt in bus.send_many(messages)]
        until(lambda: queued(broker, name) == 0, "an empty queue")
    assert process.returncode == 0
    statuses = [app.receipts.get(message_id).status for message_id in ids]
    assert set(statuses) <= {MessageStatus.HANDLED, MessageStatus.SENT}
    # Messages that it had received and not started are in the queue again.
    assert statuses.count(MessageStatus.SENT) == queued(broker, name)
    app.close()
