"""The connection to the ledger's database: how its URL is read, how long it may take, and who may share it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from waooaw_celery.errors import AuditUnavailable, ConfigurationError

#: Seconds that connecting, a statement or waiting for a lock may take each.
PATIENCE = 5


def database_url(text: str) -> URL:
    """Return a database's URL with its driver: PostgreSQL is reached with psycopg2 unless another is named.

    SQLAlchemy 2.1 would take a bare ``postgresql://`` for psycopg 3.

    Raises:
        ConfigurationError: it is no URL, or names neither PostgreSQL nor SQLite.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ConfigurationError(
            "waooaw_database_url is no URL: it is written postgresql://user:password@host/name or sqlite:////path"
        ) from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg2")
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise ConfigurationError(
            f"waooaw_database_url names {url.get_backend_name()}: the ledger is kept in PostgreSQL, or in SQLite"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "waooaw_database_url must name a file (sqlite:////path): each process would have a memory of its own"
        )
    return url


class Database:
    """A database that every process reaches over connections of its own.

    Args:
        url: as ``database_url`` returns it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine: Engine | None = None
        self._pid = 0

    @property
    def engine(self) -> Engine:
        """This process's engine.

        A connection that two processes use after a fork gives each the other's rows: so a child forgets its
        parent's connections, without closing them, and makes its own.
        """
        if self._engine is None:
            self._engine = _make_engine(self.url)
        elif self._pid != os.getpid():
            self._engine.dispose(close=False)
        self._pid = os.getpid()
        return self._engine

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, and not SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def begin(self, what: str, patience: float | None = None) -> Iterator[Connection]:
        """Give a connection in a transaction, which is committed at the end.

        Args:
            what: what is done, for an error's sentence.
            patience: seconds that one statement may take on PostgreSQL; None: as few as everywhere.

        Raises:
            AuditUnavailable: the database does not answer, refuses, or lacks the ledger's tables.
        """
        try:
            with self.engine.begin() as connection:
                if patience is not None and self.is_postgresql:
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{patience:.0f}s'")
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise AuditUnavailable(
                f"could not {what}: the ledger's database says: {reason}. Check that it runs, that "
                "waooaw_database_url is right, and that `waooaw db upgrade` was run"
            ) from error

    def close(self) -> None:
        """Close this process's connections."""
        if self._engine is not None:
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        options = f"-c statement_timeout={PATIENCE}s -c lock_timeout={PATIENCE}s -c timezone=UTC"
        return create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_timeout=PATIENCE,
            pool_pre_ping=True,
            # TCP gives up on a server that froze after this many milliseconds.
            connect_args={"connect_timeout": PATIENCE, "options": options, "tcp_user_timeout": PATIENCE * 1000},
        )
    engine = create_engine(url, connect_args={"timeout": PATIENCE})
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # Readers and one writer at a time do not block each other, and each commit is on the disk.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
