"""What a purge and an erasure have in common: their result, its record, and their transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, text

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import PurgeRow

#: Most messages removed or erased in one transaction: it holds its locks for about a tenth of a second.
BATCH_SIZE = 1_000
#: Seconds that one statement of a purge or an erasure may take.
DEADLINE_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The result of a purge or an erasure, or of a dry run.

    Attributes:
        rule: the rule that it followed, in words.
        messages: how many messages it removed or erased.
        events: how many events it removed, or whose error text it erased.
        workflows: how many workflows it removed or erased.
        partitions: how many monthly partitions it dropped.
        payloads: how many large payloads it removed from their store.
        busy: whether another purge was running, so that this one did nothing.
    """

    rule: str
    messages: int = 0
    events: int = 0
    partitions: int = 0
    workflows: int = 0
    payloads: int = 0
    busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRemoval:
    """A purge or an erasure that was carried out.

    Attributes:
        at: when, aware UTC.
        rule: the rule that it followed, in words.
        messages: how many messages it removed or erased.
        events: how many events it removed, or whose error text it erased.
    """

    at: datetime
    rule: str
    messages: int
    events: int


def list_removals(database: Database, limit: int) -> list[RecordedRemoval]:
    """Return the purges and erasures that were carried out, the newest first."""
    query = select(PurgeRow.at, PurgeRow.rule, PurgeRow.messages, PurgeRow.events).order_by(PurgeRow.id.desc())
    with database.begin("list the purges and erasures") as connection:
        return [RecordedRemoval(**row._mapping) for row in connection.execute(query.limit(limit))]


def record_removal(database: Database, removal: Removal, at: datetime) -> None:
    """Record in the ledger what was removed, and when."""
    with database.begin("record what was removed") as connection:
        row = {"at": at, "rule": removal.rule, "messages": removal.messages, "events": removal.events}
        connection.execute(insert(PurgeRow).values(row))


@contextmanager
def removing(database: Database, operation: str) -> Iterator[Connection]:
    """Open a transaction with a long deadline, during which no hold can be placed.

    Args:
        database: the ledger's database.
        operation: what the transaction does, for error messages.

    Raises:
        AuditUnavailable: the database does not answer in time.
    """
    with database.begin(operation, DEADLINE_SECONDS) as connection:
        if database.is_postgresql:
            connection.execute(text("LOCK TABLE waooaw_holds IN SHARE MODE"))
        yield connection
