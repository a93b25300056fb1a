"""Refusals of rate limits in the ledger, on PostgreSQL and on SQLite: bounded, spooled, queried, purged."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from support import lone_database, until

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger import refusals as refusals_module
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import RefusalRow
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.refusals import RefusalCounter
from waooaw_celery.ledger.retention.purge import REFUSALS_RETENTION
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database of an empty ledger."""
    if request.param == "sqlite":
        database = Database(database_url(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
        schema.upgrade(database)
        yield database
        database.close()
        return
    with lone_database(request.getfixturevalue("postgres_url")) as url:
        database = Database(database_url(url))
        schema.upgrade(database)
        yield database
        database.close()


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90, spool_folder=str(tmp_path / "spool"))
    yield ledger
    ledger.close()


def count_rows(database: Database) -> int:
    """Return how many rows the table of refusals has."""
    with database.begin("count") as connection:
        return connection.scalar(select(func.count()).select_from(RefusalRow)) or 0


def test_the_refusals_of_a_minute_take_two_rows(database: Database, ledger: Ledger) -> None:
    """The first is written at once, the others at a query or the end of the process. Each is counted once."""
    for _ in range(50):
        ledger.refused("a", "1/hour", 1)
    until(lambda: count_rows(database) >= 1, "the first row")
    trail = MessageAuditTrail(ledger)
    assert sum(refusal.count for refusal in trail.refusals("a")) == 50
    assert count_rows(database) <= 4  # four, if a new minute began
    ledger.refused("b", "1/hour to x", 7)
    assert {(refusal.agent, refusal.rule) for refusal in trail.refusals()} == {
        ("a", "1/hour"),
        ("b", "1/hour to x"),
    }
    assert trail.refusals(since=datetime.now(UTC) + timedelta(minutes=2)) == []
    assert len(trail.refusals(limit=1)) == 1
    with pytest.raises(InvalidMessage):
        trail.refusals(limit=0)


def test_refusals_wait_in_the_spool_while_the_database_is_down(database: Database, ledger: Ledger) -> None:
    """They are written when it is up again, each once. A refused sender never waits for the database."""
    with database.begin("hide the table") as connection:
        connection.execute(text("ALTER TABLE waooaw_refusals RENAME TO hidden"))
    for _ in range(20):
        ledger.refused("a", "1/hour", 1)
    ledger.flush()
    until(lambda: ledger.spool.counts()[0] >= 2, "the spool")
    with database.begin("restore the table") as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO waooaw_refusals"))
    ledger.start()
    until(lambda: ledger.spool.counts() == (0, 0), "the drained spool")
    assert sum(refusal.count for refusal in MessageAuditTrail(ledger).refusals("a")) == 20


def test_a_purge_removes_old_refusals(database: Database, ledger: Ledger) -> None:
    """They are removed after ninety days, and not before."""
    ledger.refused("a", "1/hour", 1)
    ledger.flush()
    now = datetime.now(UTC)
    Retention(database).purge(now + REFUSALS_RETENTION - timedelta(hours=1))
    assert count_rows(database) == 1
    removal = Retention(database).purge(now + REFUSALS_RETENTION + timedelta(hours=1))
    assert (count_rows(database), removal.events) == (0, 1)


def test_the_number_of_rows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that uses a new name for each message gets a bounded number of rows, and one row for the rest."""
    monkeypatch.setattr(refusals_module, "MAX_ROWS", 3)
    written: list[LedgerRow] = []
    counter = RefusalCounter(written.extend, clock=lambda: 120.0)
    for number in range(100):
        counter.add(f"agent-{number}", "1/hour", 1)
    counter.flush()
    assert [row.message_id for row in written] == ["agent-0", "agent-1", "agent-2", "*", "*"]
    assert '"count": 96' in written[-1].text


def test_the_remaining_count_is_written_when_the_minute_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes neither another refusal nor a query."""
    monkeypatch.setattr(refusals_module, "MINUTE", 0.2)
    written: list[LedgerRow] = []
    counter = RefusalCounter(written.extend)
    monkeypatch.setattr(refusals_module, "_GRACE", 0.0)
    for _ in range(30):
        counter.add("a", "1/hour", 1)
    until(lambda: sum(int(row.text.rpartition(":")[2].strip(" }")) for row in written) == 30, "the rest")
