"""Purges, legal holds and erasure, on PostgreSQL and on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from support import lone_database, note

from waooaw_celery import Message, MessageStatus
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database import engine, partitions
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow, PurgeRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention import purge as purge_module
from waooaw_celery.ledger.retention.erasure import erase_rows
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.purge import Purge
from waooaw_celery.ledger.retention.removal import Removal, removing
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent

NOW = datetime.now(UTC)
DAYS_91 = timedelta(days=91)


@pytest.fixture(scope="module")
def own_postgresql(postgres_url: str) -> Iterator[Database]:
    """A PostgreSQL database for this module, so that purges remove nothing of other tests."""
    with lone_database(postgres_url) as url:
        database = Database(database_url(url))
        schema.upgrade(database)
        yield database
        database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database of an empty ledger."""
    if request.param == "sqlite":
        database = Database(database_url(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
        schema.upgrade(database)
        yield database
        database.close()
        return
    database = request.getfixturevalue("own_postgresql")
    yield database
    tables = ("messages", "message_events", "open_messages", "cancels", "holds", "purges")
    with database.begin("empty the ledger") as connection:
        connection.execute(text(f"TRUNCATE {', '.join(f'waooaw_{table}' for table in tables)}"))
        for month in partitions.existing(connection):
            if month > Month.of(NOW).plus(partitions.MONTHS_AHEAD):
                partitions.drop(connection, month)
    schema.upgrade(database)


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(database)


def record_handled(ledger: Ledger, **fields: Any) -> Message:
    """Record a message that was sent 91 days ago, unless the fields name another time, and handled."""
    message = Message(**({"from_agent": "boss", "to_agent": "worker-1", "sent_at": NOW - DAYS_91} | fields))
    ledger.begin_recording([(message, "command")])()
    note(ledger, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    return message


def counts(database: Database) -> tuple[int, int]:
    """Return how many messages and events the ledger has."""
    with database.begin("count") as connection:
        messages, events = (
            connection.scalar(select(func.count()).select_from(table)) for table in (MessageRow, MessageEventRow)
        )
    return messages or 0, events or 0


def test_a_purge_removes_messages_whose_retention_has_ended(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """Messages kept for 30 and 90 days are removed; those kept for 365 days and FOREVER stay."""
    removed = [record_handled(ledger), record_handled(ledger, retention=RetentionPolicy.DAYS_30)]
    kept = [
        record_handled(ledger, retention=RetentionPolicy.DAYS_365),
        record_handled(ledger, retention=RetentionPolicy.FOREVER),
        record_handled(ledger, sent_at=NOW),
    ]
    removal = retention.purge(NOW)
    assert (removal.messages, removal.events) == (2, 4)
    assert counts(database) == (3, 6)
    trail = MessageAuditTrail(ledger)
    remaining = {record.receipt.message_id for record in trail.query().records}
    assert remaining == {message.message_id for message in kept}
    assert not remaining & {message.message_id for message in removed}
    with database.begin("read") as connection:
        [row] = connection.execute(select(PurgeRow.__table__)).all()
    assert (row.rule, row.messages, row.events) == (removal.rule, 2, 4)
    assert retention.purge(NOW).messages == 0


def test_a_purge_deletes_several_batches(
    database: Database, ledger: Ledger, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of several months and batches are removed; a message on hold among them stays."""
    monkeypatch.setattr(purge_module, "BATCH_SIZE", 2)
    held = record_handled(ledger)
    for days in (91, 150, 210, 91, 150):
        record_handled(ledger, sent_at=NOW - timedelta(days=days))
    retention.hold(HoldKind.MESSAGE, held.message_id, "why")
    removal = retention.purge(NOW)
    assert (removal.messages, removal.events) == (5, 10)
    assert counts(database) == (1, 2)


def test_a_dry_run_only_counts(database: Database, ledger: Ledger, retention: Retention) -> None:
    """It returns the same numbers as the purge after it, and removes nothing."""
    record_handled(ledger)
    counted = retention.purge(NOW, dry_run=True)
    assert counts(database) == (1, 2)
    removed = retention.purge(NOW)
    assert (counted.messages, counted.events) == (removed.messages, removed.events) == (1, 2)


def test_an_open_message_is_not_purged(database: Database, ledger: Ledger, retention: Retention) -> None:
    """A message without a final event is never purged, however old it is."""
    open_ = Message(from_agent="boss", to_agent="worker-1", sent_at=NOW - timedelta(days=5000), ttl_seconds=None)
    ledger.begin_recording([(open_, "command")])()
    note(ledger, open_, MessageEvent.DELIVERED)
    record_handled(ledger, sent_at=open_.sent_at)
    assert retention.purge(NOW).messages == 1
    assert counts(database) == (1, 1)


@pytest.mark.parametrize("status", [None, MessageStatus.SENT, MessageStatus.DELIVERED])
def test_a_message_that_was_only_logged_is_purged_by_its_age(
    database: Database, ledger: Ledger, retention: Retention, status: MessageStatus | None
) -> None:
    """It need not have ended. One on hold stays, and so does one whose retention is not over."""
    trail = MessageAuditTrail(ledger)
    over, held, fresh = (
        Message(from_agent="boss", to_agent="by-mail", sent_at=sent_at, ttl_seconds=None)
        for sent_at in (NOW - DAYS_91, NOW - DAYS_91, NOW)
    )
    for message in (over, held, fresh):
        assert trail.log_message(message)
        if status is not None:
            assert trail.update_status(message.message_id, status).status is status
    retention.hold(HoldKind.MESSAGE, held.message_id, "why")
    counted = retention.purge(NOW, dry_run=True)
    removed = retention.purge(NOW)
    assert (counted.messages, counted.events) == (removed.messages, removed.events) == (1, 1 if not status else 2)
    assert {record.receipt.message_id for record in trail.query().records} == {held.message_id, fresh.message_id}
    is_open = MessageStatus.PENDING if status is None else status
    assert len(trail.query(status=is_open).records) == 2
    retention.release(HoldKind.MESSAGE, held.message_id)
    assert retention.purge(NOW).messages == 1
    with database.begin("read") as connection:
        assert connection.scalar(select(func.count()).select_from(OpenMessageRow)) == 1


@pytest.mark.parametrize("kind", list(HoldKind))
def test_a_hold_prevents_purge_and_erasure_until_it_is_released(
    database: Database, ledger: Ledger, retention: Retention, kind: HoldKind
) -> None:
    """A hold on a message, its conversation or one of its agents protects that message only."""
    held = record_handled(ledger, conversation_id="case-7", to_agent="suspect")
    record_handled(ledger)
    value = {
        HoldKind.MESSAGE: held.message_id,
        HoldKind.CONVERSATION: "case-7",
        HoldKind.AGENT: "suspect",
    }[kind]
    retention.hold(kind, value, "lawsuit 12/26")
    assert [(hold.kind, hold.value, hold.reason) for hold in retention.holds()] == [(kind, value, "lawsuit 12/26")]
    assert retention.purge(NOW).messages == 1
    assert counts(database)[0] == 1
    assert erase_rows(database, agent="suspect").messages == 0
    assert retention.release(kind, value)
    assert not retention.release(kind, value)
    assert retention.purge(NOW).messages == 1


def test_a_hold_needs_a_reason_and_a_valid_name(retention: Retention) -> None:
    """An empty reason and an invalid agent name are refused."""
    with pytest.raises(InvalidMessage, match="needs a reason"):
        retention.hold(HoldKind.MESSAGE, "m-1", " ")
    with pytest.raises(InvalidMessage, match="agent must be"):
        retention.hold(HoldKind.AGENT, "Not A Name", "why")


def test_erasing_an_agent_keeps_the_facts(database: Database, ledger: Ledger) -> None:
    """Payloads and error texts of its messages are blanked; agents, times, events and digests stay."""
    trail = MessageAuditTrail(ledger)
    received = record_handled(ledger, payload={"name": "Ada"})
    failed = Message(from_agent="worker-1", to_agent="boss", payload={"name": "Ada"})
    ledger.begin_recording([(failed, "command")])()
    note(ledger, failed, MessageEvent.FAILED, error="ValueError: Ada is unknown")
    other = record_handled(ledger, to_agent="worker-2", payload={"name": "Ada"})
    before = trail.receipt(received.message_id)
    assert erase_rows(database, agent="worker-1").messages == 2
    after = trail.receipt(received.message_id)
    assert (after.payload, after.payload_digest) == (None, before.payload_digest)
    assert after.receipt == before.receipt
    assert after.erased_at is not None
    assert trail.receipt(failed.message_id).receipt.error is None
    assert trail.receipt(failed.message_id).receipt.status is MessageStatus.FAILED
    assert trail.receipt(other.message_id).payload == {"name": "Ada"}


def test_erasing_by_text_finds_payloads_that_contain_it(database: Database, ledger: Ledger) -> None:
    """Every payload that contains the text is blanked, and the text itself is not recorded."""
    found = record_handled(ledger, payload={"to": "ada@example.org"})
    kept = record_handled(ledger, payload={"to": "bob@example.org"})
    assert erase_rows(database, containing="ADA@example.org").messages == 1
    trail = MessageAuditTrail(ledger)
    assert trail.receipt(found.message_id).payload is None
    assert trail.receipt(kept.message_id).payload == {"to": "bob@example.org"}
    with database.begin("read") as connection:
        assert "ada" not in str(connection.execute(select(PurgeRow.__table__)).all()).lower()


@pytest.mark.parametrize("arguments", [{}, {"agent": "a", "containing": "b"}, {"containing": ""}])
def test_an_erasure_takes_one_criterion(database: Database, arguments: dict[str, str]) -> None:
    """None, both, and an empty text, which every payload contains, are refused."""
    with pytest.raises(InvalidMessage, match="erase takes an agent, or a text"):
        erase_rows(database, **arguments)


postgresql_only = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@postgresql_only
def test_a_past_month_is_dropped(database: Database, ledger: Ledger, retention: Retention) -> None:
    """On PostgreSQL a message is in the partition of the month in which its retention ends; a purge drops it."""
    messages = [record_handled(ledger, sent_at=NOW) for _ in range(5)]
    month = Month.of(NOW + timedelta(days=90))
    with database.begin("look") as connection:
        table = month.table("waooaw_messages")
        assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == len(messages)
    removal = retention.purge(month.end)
    assert (removal.messages, removal.events) == (5, 10)
    assert removal.partitions >= 1
    with database.begin("look") as connection:
        assert month not in partitions.existing(connection)
    assert counts(database) == (0, 0)


@postgresql_only
def test_the_month_of_a_logged_message_is_dropped(
    ledger: Ledger, database: Database, retention: Retention
) -> None:
    """Its partition is dropped although the message has not ended."""
    message = Message(from_agent="boss", to_agent="by-mail", sent_at=NOW, ttl_seconds=None)
    assert MessageAuditTrail(ledger).log_message(message)
    removal = retention.purge(Month.of(NOW + timedelta(days=90)).end)
    assert (removal.messages, removal.events) == (1, 1)
    assert removal.partitions >= 1
    assert counts(database) == (0, 0)


@postgresql_only
def test_a_month_with_a_held_message_is_not_dropped(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """The purge deletes the other messages of its partition by rows."""
    held = record_handled(ledger, sent_at=NOW)
    record_handled(ledger, sent_at=NOW)
    month = Month.of(NOW + timedelta(days=90))
    retention.hold(HoldKind.MESSAGE, held.message_id, "why")
    removal = retention.purge(month.end)
    assert removal.messages == 1
    assert counts(database) == (1, 2)
    with database.begin("look") as connection:
        assert month in partitions.existing(connection)


@postgresql_only
def test_a_month_that_is_being_read_is_not_dropped(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """While a reader locks its partition, the purge deletes rows instead, and does not block writers."""
    record_handled(ledger, sent_at=NOW)
    month = Month.of(NOW + timedelta(days=90))
    reader = Database(database.url)
    with reader.begin("keep reading") as connection:
        connection.execute(text(f"SELECT FROM {month.table('waooaw_messages')}"))
        removal = retention.purge(month.end)
    reader.close()
    assert (removal.messages, removal.events) == (1, 2)
    with database.begin("look") as connection:
        assert month in partitions.existing(connection)
    assert counts(database) == (0, 0)


@postgresql_only
def test_a_purge_has_a_longer_deadline_than_a_query(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that holds the lock of the purge outlives the deadline of a query."""
    monkeypatch.setattr(engine, "DEADLINE_SECONDS", 0)  # the watchdog adds a second
    with Purge(database, {})._lock() as is_locked, removing(database, "take longer") as connection:
        assert is_locked
        connection.execute(text("SELECT pg_sleep(1.6)"))


@postgresql_only
def test_partitions_are_created_ahead(database: Database, retention: Retention) -> None:
    """The upgrade creates partitions for the coming months; ``prepare`` creates those that are missing."""
    with database.begin("look") as connection:
        assert len(partitions.existing(connection)) == partitions.MONTHS_AHEAD + 1
    assert retention.prepare() == 0
    assert retention.prepare(NOW + timedelta(days=31 * 2)) in (1, 2)


@postgresql_only
def test_only_one_purge_runs_at_a_time(database: Database, retention: Retention) -> None:
    """While one holds the lock, another returns ``busy`` and removes nothing."""
    with Purge(database, {})._lock() as is_locked:
        assert is_locked
        second = Retention(Database(database.url))
        assert second.purge(NOW) == Removal(rule=second.purge(NOW).rule, busy=True)
        second._database.close()
    assert not retention.purge(NOW).busy
