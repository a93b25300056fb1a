"""What the ledger forgets and what it must not, on PostgreSQL and on SQLite."""

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
from waooaw_celery.ledger import retention as retention_module
from waooaw_celery.ledger.database import engine, partitions
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, PurgeRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.removal import Removal
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent

NOW = datetime.now(UTC)
DAYS_91 = timedelta(days=91)


@pytest.fixture(scope="module")
def lone_postgresql(postgres_url: str) -> Iterator[Database]:
    """A PostgreSQL database of this module's own: what is purged here is nobody else's."""
    with lone_database(postgres_url) as url:
        database = Database(database_url(url))
        schema.upgrade(database)
        yield database
        database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty ledger."""
    if request.param == "sqlite":
        database = Database(database_url(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
        schema.upgrade(database)
        yield database
        database.close()
        return
    database = request.getfixturevalue("lone_postgresql")
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


def ended(ledger: Ledger, **fields: Any) -> Message:
    """Write down a message that was sent 91 days ago and handled, unless the fields say otherwise."""
    message = Message(**({"from_agent": "boss", "to_agent": "worker-1", "sent_at": NOW - DAYS_91} | fields))
    ledger.pending([(message, "command")])()
    note(ledger, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    return message


def counts(database: Database) -> tuple[int, int]:
    with database.begin("count") as connection:
        messages, events = (
            connection.scalar(select(func.count()).select_from(table)) for table in (MessageRow, MessageEventRow)
        )
    return messages or 0, events or 0


def test_a_purge_removes_what_is_over_and_keeps_the_rest(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """30 and 90 days after sending a message goes; 365 days and FOREVER stay; the purge writes what it did."""
    gone = [ended(ledger), ended(ledger, retention=RetentionPolicy.DAYS_30)]
    kept = [
        ended(ledger, retention=RetentionPolicy.DAYS_365),
        ended(ledger, retention=RetentionPolicy.FOREVER),
        ended(ledger, sent_at=NOW),
    ]
    removal = retention.purge(NOW)
    assert (removal.messages, removal.events) == (2, 4)
    assert counts(database) == (3, 6)
    trail = MessageAuditTrail(ledger)
    left = {record.receipt.message_id for record in trail.query().records}
    assert left == {message.message_id for message in kept}
    assert not left & {message.message_id for message in gone}
    with database.begin("read") as connection:
        [row] = connection.execute(select(PurgeRow.__table__)).all()
    assert (row.rule, row.messages, row.events) == (removal.rule, 2, 4)
    assert retention.purge(NOW).messages == 0


def test_a_purge_goes_on_from_batch_to_batch(
    database: Database, ledger: Ledger, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of several months and in more than one batch all go, and what is on hold among them stays."""
    monkeypatch.setattr(retention_module, "BATCH", 2)
    held = ended(ledger)
    for days in (91, 150, 210, 91, 150):
        ended(ledger, sent_at=NOW - timedelta(days=days))
    retention.hold(HoldKind.MESSAGE, held.message_id, "why")
    removal = retention.purge(NOW)
    assert (removal.messages, removal.events) == (5, 10)
    assert counts(database) == (1, 2)


def test_a_dry_run_only_counts(database: Database, ledger: Ledger, retention: Retention) -> None:
    """It says the same numbers as the purge after it, and removes nothing."""
    ended(ledger)
    would = retention.purge(NOW, dry_run=True)
    assert counts(database) == (1, 2)
    did = retention.purge(NOW)
    assert (would.messages, would.events) == (did.messages, did.events) == (1, 2)


def test_what_has_not_ended_stays(database: Database, ledger: Ledger, retention: Retention) -> None:
    """A message without a terminal event is never purged, however old."""
    open_ = Message(from_agent="boss", to_agent="worker-1", sent_at=NOW - timedelta(days=5000), ttl_seconds=None)
    ledger.pending([(open_, "command")])()
    note(ledger, open_, MessageEvent.DELIVERED)
    ended(ledger, sent_at=open_.sent_at)
    assert retention.purge(NOW).messages == 1
    assert counts(database) == (1, 1)


@pytest.mark.parametrize("kind", list(HoldKind))
def test_what_is_on_hold_stays_until_it_is_released(
    database: Database, ledger: Ledger, retention: Retention, kind: HoldKind
) -> None:
    """A hold on a message, its conversation or one of its agents keeps it, and others go."""
    held = ended(ledger, conversation_id="case-7", to_agent="suspect")
    ended(ledger)
    value = {
        HoldKind.MESSAGE: held.message_id,
        HoldKind.CONVERSATION: "case-7",
        HoldKind.AGENT: "suspect",
    }[kind]
    retention.hold(kind, value, "lawsuit 12/26")
    assert [(hold.kind, hold.value, hold.reason) for hold in retention.holds()] == [(kind, value, "lawsuit 12/26")]
    assert retention.purge(NOW).messages == 1
    assert counts(database)[0] == 1
    assert retention.erase(agent="suspect").messages == 0
    assert retention.release(kind, value)
    assert not retention.release(kind, value)
    assert retention.purge(NOW).messages == 1


def test_a_hold_needs_a_reason_and_a_name_that_can_be(retention: Retention) -> None:
    """An empty reason and a name outside the grammar are refused."""
    with pytest.raises(InvalidMessage, match="needs a reason"):
        retention.hold(HoldKind.MESSAGE, "m-1", " ")
    with pytest.raises(InvalidMessage, match="agent must be"):
        retention.hold(HoldKind.AGENT, "Not A Name", "why")


def test_erasing_an_agent_keeps_the_facts(database: Database, ledger: Ledger, retention: Retention) -> None:
    """Payloads and error texts of its messages are blank; who, when, what became of it and the digest stay."""
    trail = MessageAuditTrail(ledger)
    mine = ended(ledger, payload={"name": "Ada"})
    failed = Message(from_agent="worker-1", to_agent="boss", payload={"name": "Ada"})
    ledger.pending([(failed, "command")])()
    note(ledger, failed, MessageEvent.FAILED, error="ValueError: Ada is unknown")
    other = ended(ledger, to_agent="worker-2", payload={"name": "Ada"})
    before = trail.receipt(mine.message_id)
    assert retention.erase(agent="worker-1").messages == 2
    after = trail.receipt(mine.message_id)
    assert (after.payload, after.payload_digest) == (None, before.payload_digest)
    assert after.receipt == before.receipt
    assert after.erased_at is not None
    assert trail.receipt(failed.message_id).receipt.error is None
    assert trail.receipt(failed.message_id).receipt.status is MessageStatus.FAILED
    assert trail.receipt(other.message_id).payload == {"name": "Ada"}


def test_erasing_a_subject_finds_it_in_payloads(database: Database, ledger: Ledger, retention: Retention) -> None:
    """Every payload that contains the text is blanked, and the text itself is not written down anywhere."""
    found = ended(ledger, payload={"to": "ada@example.org"})
    kept = ended(ledger, payload={"to": "bob@example.org"})
    assert retention.erase(containing="ADA@example.org").messages == 1
    trail = MessageAuditTrail(ledger)
    assert trail.receipt(found.message_id).payload is None
    assert trail.receipt(kept.message_id).payload == {"to": "bob@example.org"}
    with database.begin("read") as connection:
        assert "ada" not in str(connection.execute(select(PurgeRow.__table__)).all()).lower()


@pytest.mark.parametrize("arguments", [{}, {"agent": "a", "containing": "b"}, {"containing": ""}])
def test_an_erasure_names_one_thing(retention: Retention, arguments: dict[str, str]) -> None:
    """Neither, both and an empty text, which every payload contains, are refused."""
    with pytest.raises(InvalidMessage, match="erase takes an agent, or a text"):
        retention.erase(**arguments)


postgresql_only = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@postgresql_only
def test_a_month_that_is_over_is_dropped_whole(database: Database, ledger: Ledger, retention: Retention) -> None:
    """On PostgreSQL messages lie in the partition of the month they are kept until, which a purge drops."""
    messages = [ended(ledger, sent_at=NOW) for _ in range(5)]
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
def test_a_month_with_something_to_keep_is_deleted_from_row_by_row(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """One message on hold keeps its partition, and only itself in it."""
    held = ended(ledger, sent_at=NOW)
    ended(ledger, sent_at=NOW)
    month = Month.of(NOW + timedelta(days=90))
    retention.hold(HoldKind.MESSAGE, held.message_id, "why")
    removal = retention.purge(month.end)
    assert removal.messages == 1
    assert counts(database) == (1, 2)
    with database.begin("look") as connection:
        assert month in partitions.existing(connection)


@postgresql_only
def test_a_month_that_somebody_reads_does_not_keep_writers_waiting(
    database: Database, ledger: Ledger, retention: Retention
) -> None:
    """While a reader holds its partition, a purge deletes from it row by row, and others write on meanwhile."""
    ended(ledger, sent_at=NOW)
    month = Month.of(NOW + timedelta(days=90))
    reader = Database(database.url)
    with reader.begin("read on and on") as connection:
        connection.execute(text(f"SELECT FROM {month.table('waooaw_messages')}"))
        removal = retention.purge(month.end)
    reader.close()
    assert (removal.messages, removal.events) == (1, 2)
    with database.begin("look") as connection:
        assert month in partitions.existing(connection)
    assert counts(database) == (0, 0)


@postgresql_only
def test_a_purge_may_take_longer_than_a_question(
    database: Database, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that keeps other purges out is not given up after the seconds that a question may take."""
    monkeypatch.setattr(engine, "PATIENCE", 0)  # and a second for the server
    with retention._alone() as alone, retention._cleaning("take longer") as connection:
        assert alone
        connection.execute(text("SELECT pg_sleep(1.6)"))


@postgresql_only
def test_months_are_made_ahead_once(database: Database, retention: Retention) -> None:
    """After the upgrade there are partitions for the coming months; preparing again makes what is missing."""
    with database.begin("look") as connection:
        assert len(partitions.existing(connection)) == partitions.MONTHS_AHEAD + 1
    assert retention.prepare() == 0
    assert retention.prepare(NOW + timedelta(days=31 * 2)) in (1, 2)


@postgresql_only
def test_two_purges_do_not_run_at_once(database: Database, retention: Retention) -> None:
    """While one holds the lock, another says that it was busy and does nothing."""
    with retention._alone() as alone:
        assert alone
        second = Retention(Database(database.url))
        assert second.purge(NOW) == Removal(rule=second.purge(NOW).rule, busy=True)
        second._database.close()
    assert not retention.purge(NOW).busy


@pytest.mark.parametrize(
    ("month", "plus", "expected"),
    [
        (Month(2026, 11), 2, Month(2027, 1)),
        (Month(2026, 1), 0, Month(2026, 1)),
        (Month(2026, 12), 13, Month(2028, 1)),
    ],
)
def test_months_are_counted_over_the_end_of_a_year(month: Month, plus: int, expected: Month) -> None:
    """December is followed by January."""
    assert month.plus(plus) == expected
