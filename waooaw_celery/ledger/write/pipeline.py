"""A connection to PostgreSQL of the writer's own: a statement is sent, and its answer fetched later.

It spares what a pool and a transaction would cost, several round trips, and whoever sends a statement can do
something else while PostgreSQL works. No wait is longer than its deadline, also when the server froze.
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
    DEADLINE_SECONDS,
    Database,
    connect_options,
    unavailable,
)

Rows = list[Sequence[Any]]


class PipelinedConnection:
    """One connection, for one user at a time. Each statement is a transaction.

    Args:
        database: a PostgreSQL that is reached with psycopg2.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._cursor: Any = None

    def send(self, what: str, statement: str, parameters: Mapping[str, Any]) -> None:
        """Send a statement.

        Args:
            what: what is done, for an error's sentence.
            statement: SQL with ``%(name)s`` for its parameters.
            parameters: their values.

        Raises:
            AuditUnavailable: the database cannot be reached or did not take it.
            ValueError: a parameter cannot be handed over.
        """
        try:
            if self._connection is not None and _has_ended(self._connection):
                self.close()
            if self._connection is None:
                self._connection = self._connect()
                self._cursor = self._connection.cursor()
            self._cursor.execute(statement, parameters)
            _wait(self._connection, DEADLINE_SECONDS + 1, until=extensions.POLL_READ)
        except psycopg2.Error as error:
            self.close()
            raise unavailable(what, error) from error
        except ValueError:  # a text that psycopg2 cannot hand over; nothing was sent
            raise
        except BaseException:  # what it was about to answer must not be the answer to the next statement
            self.close()
            raise

    def answer(self, what: str) -> Rows:
        """Wait for the answer of the statement that was sent, and return its rows.

        Raises:
            AuditUnavailable: the database refused it, or did not answer in time; then it may have carried it out.
        """
        try:
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
        """Close the connection; the next statement opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> Any:
        args, kwargs = self._database.engine.dialect.create_connect_args(self._database.url)
        connection = psycopg2.connect(*args, **{**kwargs, **connect_options()}, async_=True)
        try:
            _wait(connection, CONNECT_SECONDS)
        except psycopg2.Error:
            connection.close()
            raise
        return connection


def _has_ended(connection: Any) -> bool:
    """Whether a connection that nobody waits on has something to say: that is its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(connection.closed) or bool(poll.poll(0))


def _wait(connection: Any, seconds: float, until: int = extensions.POLL_OK) -> None:
    """Wait until a connection has done what it was given, or raise psycopg2's ``OperationalError``.

    Args:
        connection: what to wait for.
        seconds: how long.
        until: POLL_READ: only until the server has all of a statement.
    """
    deadline = time.monotonic() + seconds
    while (state := connection.poll()) not in (extensions.POLL_OK, until):
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise psycopg2.OperationalError(f"no answer within {seconds:g} s")
