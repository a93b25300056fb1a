"""A PostgreSQL connection that sends a statement now and receives its answer later.

It saves the round trips of a pool and of an explicit transaction, and the caller can do other work while
PostgreSQL runs the statement. Every wait has a deadline, even if the server is frozen.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from psycopg2 import extensions

from waooaw_celery.ledger.database.engine import (
    CONNECT_SECONDS,
    Database,
    connect_options,
    unavailable,
)
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS, limits

Rows = list[Sequence[Any]]
_LIMITS = limits()
_CLOSED_EVENTS = select.POLLIN | select.POLLHUP | select.POLLERR


class PipelinedConnection:
    """One connection. Each statement is a transaction. Only one thread may use it at a time.

    Args:
        database: a PostgreSQL database whose driver is psycopg2.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._cursor: Any = None
        #: Waits for what the server sends.
        self._incoming = select.poll()
        #: What psycopg2 waits for: ``POLL_READ`` for the answer, ``POLL_OK`` for nothing.
        self._state = extensions.POLL_OK

    def send(self, what: str, statement: str, parameters: Mapping[str, Any]) -> None:
        """Send a statement, and connect first if necessary.

        Args:
            what: the action in an error message, after "could not".
            statement: SQL with ``%(name)s`` for its parameters.
            parameters: the values of the parameters.

        Raises:
            AuditUnavailable: the database cannot be reached, or did not receive the statement.
            ValueError: psycopg2 cannot encode a parameter.
        """
        try:
            if self._connection is not None and self._is_closed():
                self.close()
            if self._connection is None:
                self._connection = self._connect()
                self._cursor = self._connection.cursor()
                self._incoming = select.poll()
                self._incoming.register(self._connection.fileno(), _CLOSED_EVENTS)
            self._cursor.execute(_LIMITS + statement, parameters)
            self._state = _wait(self._connection, DEADLINE_SECONDS + 1, until=extensions.POLL_READ)
        except psycopg2.Error as error:
            self.close()
            raise unavailable(what, error) from error
        except ValueError:  # psycopg2 cannot encode a text; it sent nothing
            raise
        except BaseException:  # otherwise the next statement would receive the answer to this one
            self.close()
            raise

    def receive(self, what: str) -> Rows:
        """Wait for the answer to the statement that was sent, and return its rows.

        Args:
            what: the action in an error message, after "could not".

        Raises:
            AuditUnavailable: the database refused the statement, or did not answer in time. In the second case
                ``uncertain`` is true: the database may have run it.
        """
        try:
            if self._state == extensions.POLL_READ and not self._incoming.poll((DEADLINE_SECONDS + 1) * 1000):
                raise _no_answer(DEADLINE_SECONDS + 1)
            _wait(self._connection, DEADLINE_SECONDS + 1)
            rows: Rows = self._cursor.fetchall()
        except psycopg2.Error as error:
            failure = unavailable(what, error)
            failure.uncertain = error.pgcode is None
            if error.pgcode is None:
                self.close()
            raise failure from error
        except BaseException:
            self.close()
            raise
        return rows

    def close(self) -> None:
        """Close the connection. The next statement opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _is_closed(self) -> bool:
        """Whether the idle connection was closed. The server sends nothing on it except its end."""
        return bool(self._connection.closed) or bool(self._incoming.poll(0))

    def _connect(self) -> Any:
        args, kwargs = self._database.engine.dialect.create_connect_args(self._database.url)
        connection = psycopg2.connect(*args, **{**kwargs, **connect_options()}, async_=True)
        try:
            _wait(connection, CONNECT_SECONDS)
        except psycopg2.Error:
            connection.close()
            raise
        return connection


def _no_answer(seconds: float) -> psycopg2.OperationalError:
    return psycopg2.OperationalError(f"no answer within {seconds:g} s")


def _wait(connection: Any, seconds: float, until: int = extensions.POLL_OK) -> int:
    """Wait until a connection has finished its operation, or raise psycopg2's ``OperationalError``.

    Returns:
        The last state: ``POLL_OK``, or ``until``.

    Args:
        connection: the connection.
        seconds: how long to wait.
        until: ``POLL_READ`` to wait only until the server has received the whole statement.
    """
    deadline = time.monotonic() + seconds
    while (state := connection.poll()) not in (extensions.POLL_OK, until):
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise _no_answer(seconds)
    return int(state)
