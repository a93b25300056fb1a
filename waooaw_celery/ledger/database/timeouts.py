"""The time limits of statements in PostgreSQL. They are set in each transaction, and hold behind a pooler too.

A pooler that gives a connection to each transaction (PgBouncer's ``pool_mode = transaction``) refuses a connection
that brings settings along, or drops them. So the first statement of a transaction carries them, in the same
message to the server: they cost no round trip.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from sqlalchemy import Connection, Engine, event

#: Seconds that one statement may take, and that it may wait for a lock.
DEADLINE_SECONDS = 5
#: The execution option of a connection with the seconds that each of its statements may take.
STATEMENT_SECONDS = "waooaw_statement_seconds"
#: Where a connection notes that its transaction has no statement yet.
_IS_NEW = "waooaw_is_new_transaction"


def limits(statement_seconds: float = DEADLINE_SECONDS) -> str:
    """Return the statements that limit a transaction, to be put before its first one.

    Args:
        statement_seconds: seconds that each statement may take.
    """
    return (
        f"SET LOCAL statement_timeout = '{statement_seconds:.0f}s'; "
        f"SET LOCAL lock_timeout = '{DEADLINE_SECONDS}s'; SET LOCAL timezone = 'UTC'; "
    )


def limit_transactions(engine: Engine) -> None:
    """Let each transaction of an engine begin with the limits.

    Args:
        engine: an engine of PostgreSQL.
    """
    event.listen(engine, "begin", _note_begin)
    event.listen(engine, "before_cursor_execute", _set_limits, retval=True)


def _note_begin(connection: Connection) -> None:
    connection.info[_IS_NEW] = True


def _set_limits(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    if not connection.info.pop(_IS_NEW, False):
        return statement, parameters
    limiting = limits(connection.get_execution_options().get(STATEMENT_SECONDS) or DEADLINE_SECONDS)
    # Only psycopg2 sends a text with several statements, and only without a cursor of the server.
    if connection.dialect.driver == "psycopg2" and not executemany and getattr(cursor, "name", None) is None:
        return limiting + statement, parameters
    with closing(connection.connection.cursor()) as other:
        for each in filter(None, limiting.split("; ")):
            other.execute(each)
    return statement, parameters
