"""The time by the ledger's database: what ends or removes something goes by it, whichever computer does it.

A ledger in SQLite belongs to one computer, whose own clock is the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, DateTime, func, select

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.store.clock_reading import Source

#: What the database's clock is called in sentences.
NAME = "the ledger's database"


def now_in(connection: Connection) -> datetime:
    """Return the database's time. On PostgreSQL it costs a round trip."""
    if connection.dialect.name != "postgresql":
        return datetime.now(UTC)
    found = connection.execute(select(func.clock_timestamp(type_=DateTime(timezone=True))))
    return found.scalar_one().astimezone(UTC)


def now_within(database: Database) -> Any:
    """Return the database's time as part of a statement: for PostgreSQL an expression, when its transaction began.

    It is one that an index can be searched by, and a ``timedelta`` can be added to it.
    """
    return func.now(type_=DateTime(timezone=True)) if database.is_postgresql else datetime.now(UTC)


def source_of(database: Database) -> Source | None:
    """Return how to ask a database for its time, or None: it goes by the clock of this computer."""
    if not database.is_postgresql:
        return None

    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        # A connection that is closed at once: one kept for a question a minute, in each process of a pool, would
        # cost PostgreSQL more than the question, and the other pool's may all be in use.
        lone = Database(database.url)
        try:
            with lone.begin("read the time of the ledger's database") as connection:
                yield lambda: now_in(connection).timestamp()
        finally:
            lone.close()

    return source
