"""What rate limits refused, in the ledger on PostgreSQL and on SQLite: bounded, spooled, asked for, purged."""

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
from waooaw_celery.ledger.refusals import Refusals
from waooaw_celery.ledger.retention.purge import REFUSALS_RETENTION
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import RetentionPolicy


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty ledger."""
    if request.param == "sqlite":
        made = Database(database_url(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
        schema.upgrade(made)
        yield made
        made.close()
        return
    with lone_database(request.getfixturevalue("postgres_url")) as url:
        made = Database(database_url(url))
        schema.upgrade(made)
        yield made
        made.close()


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(database, RetentionPolicy.DAYS_90, spool_folder=str(tmp_path / "spool"))
    yield made
    made.close()


def rows(database: Database) -> int:
    """Return how many rows there are."""
    with database.begin("count") as connection:
        return connection.scalar(select(func.count()).select_from(RefusalRow)) or 0


def test_a_minutes_refusals_are_two_rows_and_all_are_counted(database: Database, ledger: Ledger) -> None:
    """The first is there at once, the others when the process looks, asks or ends; nothing is counted twice."""
    for _ in range(50):
        ledger.refused("a", "1/hour", 1)
    until(lambda: rows(database) >= 1, "the first row")
    trail = MessageAuditTrail(ledger)
    assert sum(refusal.count for refusal in trail.refusals("a")) == 50
    assert rows(database) <= 4  # a minute may have ended meanwhile
    ledger.refused("b", "1/hour to x", 7)
    assert {(one.agent, one.rule) for one in trail.refusals()} == {("a", "1/hour"), ("b", "1/hour to x")}
    assert trail.refusals(since=datetime.now(UTC) + timedelta(minutes=2)) == []
    assert len(trail.refusals(limit=1)) == 1
    with pytest.raises(InvalidMessage):
        trail.refusals(limit=0)


def test_refusals_wait_in_the_spool_while_the_database_is_away(database: Database, ledger: Ledger) -> None:
    """They are shipped when it is back, each once; whoever is refused never waits for the database."""
    with database.begin("break") as connection:
        connection.execute(text("ALTER TABLE waooaw_refusals RENAME TO hidden"))
    for _ in range(20):
        ledger.refused("a", "1/hour", 1)
    ledger.flush()
    until(lambda: ledger.spool.counts()[0] >= 2, "the spool")
    with database.begin("mend") as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO waooaw_refusals"))
    ledger.start()
    until(lambda: ledger.spool.counts() == (0, 0), "shipping")
    assert sum(refusal.count for refusal in MessageAuditTrail(ledger).refusals("a")) == 20


def test_a_purge_removes_old_refusals(database: Database, ledger: Ledger) -> None:
    """After ninety days they go, and not before."""
    ledger.refused("a", "1/hour", 1)
    ledger.flush()
    now = datetime.now(UTC)
    Retention(database).purge(now + REFUSALS_RETENTION - timedelta(hours=1))
    assert rows(database) == 1
    removal = Retention(database).purge(now + REFUSALS_RETENTION + timedelta(hours=1))
    assert (rows(database), removal.events) == (0, 1)


def test_no_more_agents_and_rules_are_kept_apart_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who invents a name for each message gets rows for so many, and one row for all the rest."""
    monkeypatch.setattr(refusals_module, "MOST", 3)
    told: list[LedgerRow] = []
    refusals = Refusals(told.extend, clock=lambda: 120.0)
    for number in range(100):
        refusals.add(f"agent-{number}", "1/hour", 1)
    refusals.flush()
    assert [entry.message_id for entry in told] == ["agent-0", "agent-1", "agent-2", "*", "*"]
    assert '"count": 96' in told[-1].text


def test_the_rest_of_a_minute_is_told_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to be refused again for that, nor to ask."""
    monkeypatch.setattr(refusals_module, "MINUTE", 0.2)
    told: list[LedgerRow] = []
    refusals = Refusals(told.extend)
    monkeypatch.setattr(refusals_module, "_GRACE", 0.0)
    for _ in range(30):
        refusals.add("a", "1/hour", 1)
    until(lambda: sum(int(entry.text.rpartition(":")[2].strip(" }")) for entry in told) == 30, "the rest")
