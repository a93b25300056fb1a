"""The clock of the ledger's database.

Whatever ends or removes messages uses this clock, on every computer. An SQLite ledger belongs to one computer and
uses that computer's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, DateTime, func, select

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.store.clock_reading import Source

#: The name of this clock in messages.
NAME = "the ledger's database"


def now_in(connection: Connection) -> datetime:
    """Return the database's current time, UTC. On PostgreSQL this costs a round trip."""
    if connection.dialect.name != "postgresql":
        return datetime.now(UTC)
    result = connection.execute(select(func.clock_timestamp(type_=DateTime(timezone=True))))
    return result.scalar_one().astimezone(UTC)


def now_within(database: Database) -> Any:
    """Return the database's current time for use in a statement.

    For PostgreSQL it is an SQL expression: the start of the transaction. You can compare an indexed column with
    it, and add a ``timedelta`` to it.
    """
    return func.now(type_=DateTime(timezone=True)) if database.is_postgresql else datetime.now(UTC)


def source_of(database: Database) -> Source | None:
    """Return a source of a database's time, or None for SQLite, which uses this computer's clock."""
    if not database.is_postgresql:
        return None

    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        # The clock is read once a minute. An idle connection in each process would cost PostgreSQL more than a new
        # one, and all connections of the process's pool may be in use.
        temporary = Database(database.url)
        try:
            with temporary.begin("read the time of the ledger's database") as connection:
                yield lambda: now_in(connection).timestamp()
        finally:
            temporary.close()

    return source
