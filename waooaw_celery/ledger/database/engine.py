"""Connections to the ledger's database: the URL, the pools of each process, and the deadlines."""

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
from waooaw_celery.ledger.database.sqlite.connection import SafeConnection
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS, STATEMENT_SECONDS, limit_transactions
from waooaw_celery.ledger.database.watchdog import watchdog
from waooaw_celery.messages.topics.patterns import matches
from waooaw_celery.messages.urls import check_url

#: Seconds that connecting, or checking that a connection is alive, may take.
CONNECT_SECONDS = 3
#: A connection that was idle for this many seconds is checked before it is used again.
IDLE_SECONDS = 1.0


def database_url(text: str) -> URL:
    """Parse a database URL.

    A URL without a driver gets psycopg2: SQLAlchemy 2.1 would read a bare ``postgresql://`` as psycopg 3.

    Args:
        text: such as ``postgresql://user:password@host/name`` or ``sqlite:////path``.

    Returns:
        The URL with its driver.

    Raises:
        ConfigurationError: the text is not a URL, names a database other than PostgreSQL and SQLite, or names an
            SQLite without a file.
    """
    check_url("waooaw_database_url", text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # its text quotes the URL
        raise ConfigurationError(
            "waooaw_database_url is not a URL. Write postgresql://user:password@host/name or sqlite:////path"
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg2")
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise ConfigurationError(
            f"waooaw_database_url names {url.get_backend_name()}: the ledger supports only PostgreSQL and SQLite"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "waooaw_database_url must name a file (sqlite:////path): processes cannot share an SQLite in memory"
        )
    return url


#: PostgreSQL's error codes and classes of codes for a connection that was refused or ended.
_NO_CONNECTION_CODES = ("08", "53", "57P01", "57P02", "57P03")
#: What SQLAlchemy raises when a database fails. It raises InvalidRequestError when a new connection is dead too.
_DATABASE_ERRORS = (StatementError, PoolTimeoutError, InvalidRequestError)


class Database:
    """The ledger's database. Each process has its own connections to it.

    Args:
        url: the URL, as ``database_url`` returns it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine: Engine | None = None
        self._handler_engine: Engine | None = None
        self._pid = 0
        #: Threads that start at the same time must share one engine, and so one pool.
        self._creation_lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """This process's engine.

        If two processes used one connection after a fork, each would receive the other's rows. So a child drops
        its parent's connections without closing them, and opens its own.
        """
        self._forget_after_fork()
        if self._engine is None:
            with self._creation_lock:
                self._engine = self._engine or _make_engine(self.url)
        return self._engine

    @property
    def handlers(self) -> Engine:
        """This process's second engine, for connections that handlers hold while they run (``once=True``).

        It has its own pool. A handler can hold a connection for minutes; all other statements take milliseconds
        and must not wait for a handler.
        """
        self._forget_after_fork()
        if self._handler_engine is None:
            with self._creation_lock:
                self._handler_engine = self._handler_engine or _make_engine(self.url)
        return self._handler_engine

    def owns(self, connection: Connection) -> bool:
        """Whether a connection comes from one of this object's pools."""
        return connection.engine in (self._engine, self._handler_engine)

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._creation_lock = threading.Lock()  # a thread of the parent may have held it
            for engine in (self._engine, self._handler_engine):
                if engine is not None:
                    engine.dispose(close=False)
            self._pid = os.getpid()

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL; otherwise it is SQLite."""
        return self.url.get_backend_name() == "postgresql"

    @contextmanager
    def begin(self, what: str, timeout: float | None = None) -> Iterator[Connection]:
        """Yield a connection in a transaction, and commit when the block ends.

        Args:
            what: the action in an error message, after "could not".
            timeout: seconds that a statement may take. None: ``DEADLINE_SECONDS``.

        Raises:
            AuditUnavailable: the database does not answer in time, refuses a statement, or has no ledger tables.

        Example:
            >>> with database.begin("count the agents") as connection:
            ...     count = connection.scalar(select(func.count()).select_from(AgentRow))
        """
        # The watchdog covers the commit too: a server may freeze just before it.
        with (
            database_errors_as(what),
            self.engine.connect().execution_options(**{STATEMENT_SECONDS: timeout}) as connection,
            self.watched(connection, timeout or DEADLINE_SECONDS),
            connection.begin(),
        ):
            yield connection

    def watched(self, connection: Connection, timeout: float) -> AbstractContextManager[None]:
        """Cut a connection to a server that is frozen.

        A server that is only slow ends the statement itself, one second earlier. Does nothing for SQLite.

        Args:
            connection: the connection that the block uses.
            timeout: seconds that the block may take.
        """
        if not self.is_postgresql:
            return nullcontext()
        driver: Any = connection.connection.driver_connection
        return watchdog.watch(driver.fileno(), timeout + 1)

    def close(self) -> None:
        """Close this process's connections."""
        for engine in (self._engine, self._handler_engine):
            if engine is not None:
                engine.dispose(close=self._pid == os.getpid())
        self._engine = self._handler_engine = None


def _ping(connection: Any) -> None:
    """Check that a connection is alive, or raise its driver's ``Error``."""
    with watchdog.watch(connection.fileno(), CONNECT_SECONDS), connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@contextmanager
def database_errors_as(what: str, kind: type[AuditUnavailable] = AuditUnavailable) -> Iterator[None]:
    """Convert errors of SQLAlchemy and of the driver to ``AuditUnavailable``.

    Args:
        what: the action in the error message, after "could not".
        kind: the class of the error to raise.
    """
    try:
        yield
    except _DATABASE_ERRORS as error:
        raise unavailable(what, error, kind) from error


def lacks_connection(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that there was no connection to the ledger's database.

    In that case the database did not refuse the statement, which may succeed later.
    """
    while error is not None and not isinstance(error, AuditUnavailable):
        error = error.__cause__
    if error is None:
        return False
    cause: Any = error.__cause__
    # SQLAlchemy raises InvalidRequestError itself when a new connection is dead too.
    if cause is None or isinstance(cause, PoolTimeoutError) or type(cause) is InvalidRequestError:
        return True
    driver: Any = getattr(cause, "orig", cause)
    code = getattr(driver, "pgcode", None) or getattr(driver, "sqlstate", None)
    if code is None:
        if type(driver).__module__.startswith("psycopg2") and type(driver).__name__ == "DatabaseError":
            return True  # the connection was lost within a text of several statements
        names = {kind.__name__ for kind in type(driver).__mro__}
        return bool(names & {"OperationalError", "InterfaceError"})
    return str(code)[:2] in _NO_CONNECTION_CODES or str(code) in _NO_CONNECTION_CODES


def database_identity(connection: Connection) -> tuple[Any, ...]:
    """Return a value that is equal for two connections only if they reach the same ledger tables."""
    if connection.dialect.name == "sqlite":
        files = connection.exec_driver_sql("PRAGMA database_list")
        # A connection that has made a temporary table lists it as a database.
        return tuple(os.path.realpath(row[2]) for row in files if row[1] != "temp")
    if connection.dialect.name != "postgresql":
        return (connection.dialect.name,)
    found = connection.exec_driver_sql(
        "SELECT pg_postmaster_start_time(), current_database(), to_regclass('waooaw_messages')::oid"
    )
    return tuple(found.one())


def unavailable(what: str, error: Exception, kind: type[AuditUnavailable] = AuditUnavailable) -> AuditUnavailable:
    """Return an error whose message names the failed action and the database's reason."""
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return kind(
        f"could not {what}: the ledger's database says: {reason}. Check that it runs, that waooaw_database_url is "
        "correct, and that you have run `waooaw db upgrade`"
    )


def connect_options(driver: str = "psycopg2") -> dict[str, Any]:
    """Return a driver's arguments for a connection to PostgreSQL, in addition to the URL.

    None of them is a setting of the session: behind a pooler, the next transaction may have another session.

    Args:
        driver: SQLAlchemy's name of the driver.
    """
    options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS}
    if driver == "psycopg":  # it would prepare statements in one session, and use them in another
        options["prepare_threshold"] = None
    return options


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        engine = create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_timeout=DEADLINE_SECONDS,
            connect_args=connect_options(url.get_driver_name()),
        )
        limit_transactions(engine)
        event.listen(engine, "checkout", _check_alive)
        event.listen(engine, "checkin", _note_use)
        return engine
    engine = create_engine(
        url, connect_args={"timeout": DEADLINE_SECONDS, "factory": SafeConnection}, json_serializer=payload_text
    )
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _note_use(_: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _check_alive(connection: Any, record: Any, _: Any) -> None:
    """Check an idle connection. SQLAlchemy replaces it on ``DisconnectionError``.

    SQLAlchemy's own ``pool_pre_ping`` would wait without a limit for a frozen server.
    """
    if time.monotonic() - record.info.get("used", float("-inf")) < IDLE_SECONDS:
        return
    try:
        _ping(connection)
        connection.rollback()
    except connection.Error as error:
        raise DisconnectionError("the connection does not answer") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers and the one writer do not block each other. FULL: each commit is on the disk.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    # What a purge deletes is overwritten, and not only marked as free.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()
    connection.create_function("waooaw_topic_matches", 2, lambda pattern, topic: topic and matches(pattern, topic))
    # SQLite's own lower() converts only A to Z.
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)
