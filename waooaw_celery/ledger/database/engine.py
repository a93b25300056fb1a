"""The connection to the ledger's database: how its URL is read, how long it may take, and who may share it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, InvalidRequestError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.database.watchdog import watchdog

#: Seconds that a statement or waiting for a lock may take each.
DEADLINE_SECONDS = 5
#: Seconds that connecting, or a sign of life of a connection, may take.
CONNECT_SECONDS = 3
#: Seconds after which a connection that was not used is asked for a sign of life.
IDLE_SECONDS = 1.0


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


#: PostgreSQL's error codes, and their classes, that say that it gives no connection, or has ended one.
_NO_CONNECTION = ("08", "53", "57P01", "57P02", "57P03")
#: What SQLAlchemy raises of a database; the last when a connection was dead twice.
_DATABASE_ERRORS = (StatementError, PoolTimeoutError, InvalidRequestError)


class Database:
    """A database that every process reaches over connections of its own.

    Args:
        url: as ``database_url`` returns it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine: Engine | None = None
        self._handlers: Engine | None = None
        self._pid = 0
        #: Threads that start together must share one engine, or each would have a pool of its own.
        self._making = threading.Lock()

    @property
    def engine(self) -> Engine:
        """This process's engine.

        A connection that two processes use after a fork gives each the other's rows: so a child forgets its
        parent's connections, without closing them, and makes its own.
        """
        self._forget_after_fork()
        if self._engine is None:
            with self._making:
                self._engine = self._engine or _make_engine(self.url)
        return self._engine

    @property
    def handlers(self) -> Engine:
        """This process's second engine, for the connections that handlers hold while they run (``once=True``).

        Its pool is separate: a handler can hold its connection for minutes. Everything else that a process asks of
        the database takes milliseconds, and must not wait for that.
        """
        self._forget_after_fork()
        if self._handlers is None:
            with self._making:
                self._handlers = self._handlers or _make_engine(self.url)
        return self._handlers

    def owns(self, connection: Connection) -> bool:
        """Whether a connection comes from this object's own pools."""
        return connection.engine in (self._engine, self._handlers)

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._making = threading.Lock()  # a thread of the parent may have held it
            for engine in (self._engine, self._handlers):
                if engine is not None:
                    engine.dispose(close=False)
            self._pid = os.getpid()

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, and not SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def begin(self, what: str, patience: float | None = None) -> Iterator[Connection]:
        """Give a connection in a transaction, which is committed at the end.

        Args:
            what: what is done, for an error's sentence.
            patience: seconds that it may take; None: as few as everywhere.

        Raises:
            AuditUnavailable: the database does not answer in time, refuses, or lacks the ledger's tables.
        """
        # The commit is inside the watch: a server may freeze before it too.
        with (
            database_errors_as(what),
            self.engine.connect() as connection,
            self.watched(connection, patience or DEADLINE_SECONDS),
            connection.begin(),
        ):
            if patience is not None and self.is_postgresql:
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{patience:.0f}s'")
            yield connection

    def watched(self, connection: Connection, patience: float) -> AbstractContextManager[None]:
        """Bound the wait for a server that froze; one that is only slow ends the statement itself."""
        if not self.is_postgresql:
            return nullcontext()
        driver: Any = connection.connection.driver_connection
        return watchdog.watch(driver.fileno(), patience + 1)

    def close(self) -> None:
        """Close this process's connections."""
        for engine in (self._engine, self._handlers):
            if engine is not None:
                engine.dispose(close=self._pid == os.getpid())
        self._engine = self._handlers = None


def _ask(connection: Any) -> None:
    """Ask a connection for a sign of life, or raise its ``Error``."""
    with watchdog.watch(connection.fileno(), CONNECT_SECONDS), connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@contextmanager
def database_errors_as(what: str, kind: type[AuditUnavailable] = AuditUnavailable) -> Iterator[None]:
    """Turn what a database driver raises to our error.

    Args:
        what: what is done, for its sentence.
        kind: its class.
    """
    try:
        yield
    except _DATABASE_ERRORS as error:
        raise unavailable(what, error, kind) from error


def lacks_connection(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that there was no connection to the ledger's database.

    The statement itself was not refused: it may succeed later.
    """
    while error is not None and not isinstance(error, AuditUnavailable):
        error = error.__cause__
    if error is None:
        return False
    cause: Any = error.__cause__
    # SQLAlchemy raises the second class itself when a connection was dead twice.
    if cause is None or isinstance(cause, PoolTimeoutError) or type(cause) is InvalidRequestError:
        return True
    driver: Any = getattr(cause, "orig", cause)
    code = getattr(driver, "pgcode", None) or getattr(driver, "sqlstate", None)
    if code is None:
        names = {kind.__name__ for kind in type(driver).__mro__}
        return bool(names & {"OperationalError", "InterfaceError"})
    return str(code)[:2] in _NO_CONNECTION or str(code) in _NO_CONNECTION


def database_identity(connection: Connection) -> tuple[Any, ...]:
    """Return what only connections to the same ledger's tables have in common."""
    if connection.dialect.name == "sqlite":
        return tuple(os.path.realpath(row[2]) for row in connection.exec_driver_sql("PRAGMA database_list"))
    if connection.dialect.name != "postgresql":
        return (connection.dialect.name,)
    found = connection.exec_driver_sql(
        "SELECT pg_postmaster_start_time(), current_database(), to_regclass('waooaw_messages')::oid"
    )
    return tuple(found.one())


def unavailable(what: str, error: Exception, kind: type[AuditUnavailable] = AuditUnavailable) -> AuditUnavailable:
    """Return the error that says in one sentence what a database did not do, and why."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return kind(
        f"could not {what}: the ledger's database says: {reason}. Check that it runs, that waooaw_database_url is "
        "right, and that `waooaw db upgrade` was run"
    )


def connect_options() -> dict[str, Any]:
    """Return what a connection to PostgreSQL is opened with besides its URL."""
    options = f"-c statement_timeout={DEADLINE_SECONDS}s -c lock_timeout={DEADLINE_SECONDS}s -c timezone=UTC"
    return {"connect_timeout": CONNECT_SECONDS, "options": options}


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_timeout=DEADLINE_SECONDS,
            connect_args=connect_options(),
        )
        event.listen(engine, "checkout", _check_alive)
        event.listen(engine, "checkin", _note_use)
        return engine
    engine = create_engine(url, connect_args={"timeout": DEADLINE_SECONDS}, json_serializer=payload_text)
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _note_use(_: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _check_alive(connection: Any, record: Any, _: Any) -> None:
    """Make sure that a connection which rested is still one: SQLAlchemy then makes another.

    (Its own ``pool_pre_ping`` would wait for ever for a server that froze.)
    """
    if time.monotonic() - record.info.get("used", float("-inf")) < IDLE_SECONDS:
        return
    try:
        _ask(connection)
        connection.rollback()
    except connection.Error as error:
        raise DisconnectionError("it does not answer") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # Readers and one writer at a time do not block each other, and each commit is on the disk.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
    # Its own knows the letters a to z only.
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)
