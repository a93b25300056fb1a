"""The inbox: a handler's effect and the note that it happened commit in one transaction, so it happens once.

This is the idempotent receiver of Enterprise Integration Patterns; NServiceBus includes it in its outbox. The note
is inserted first: a second transaction that inserts the same note waits until the first one ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import Database, database_errors_as, lacks_connection
from waooaw_celery.ledger.database.models import InboxRow
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS
from waooaw_celery.messages.validation import JSON

#: Seconds that ``is_effect_committed`` waits for the commit of another transaction, for a whole worker perhaps.
COMMIT_SECONDS = 2
#: A key in a session's ``info``: it is part of a larger transaction, whose owner publishes its messages.
PUBLISHED_BY_OUTER = "waooaw_published_by_outer"


class InboxUnavailable(AuditUnavailable):
    """The database did not begin or commit a handler's transaction, or another handler holds the same message."""


class HandlerDisconnected(InboxUnavailable):
    """A handler lost its database connection while it ran: its transaction has no effect.

    Attributes:
        raised: the exception that the handler raised.
    """

    def __init__(self, message_id: str, raised: Exception) -> None:
        super().__init__(
            f"the handler of message {message_id} lost its connection to the ledger's database: {raised}"
        )
        self.raised = raised


@dataclass
class InboxEntry:
    """One attempt to handle a message.

    Attributes:
        session: the session for the handler's effect.
        is_done: whether the effect of an earlier attempt is committed.
        result: the return value of the handler, or of the earlier attempt.
        is_committed: whether the commit of this attempt was confirmed.
    """

    session: Session
    is_done: bool = False
    result: JSON = None
    is_committed: bool = False


@contextmanager
def handle_once(database: Database, message_id: str, handler: str, timeout: float) -> Iterator[InboxEntry]:
    """Open a transaction that contains the note that a message was handled, and commit it after the block.

    If the block raises, everything is rolled back. ``commit()`` on the session releases a savepoint only.

    Args:
        database: the ledger's database, on PostgreSQL. On SQLite, in tests, the note is inserted last: one writer
            locks the whole file, and only one process handles messages.
        message_id: the id of the message.
        handler: the name of its handler.
        timeout: seconds that the whole transaction may take.

    Yields:
        The attempt. If ``is_done`` is set, do not handle the message again: return ``result``.

    Raises:
        InboxUnavailable: nothing was done; or, if the commit was not confirmed, it is unknown whether it was.
        HandlerDisconnected: the block raised, and its connection was lost or could not be made.
    """
    with database_errors_as(f"begin with message {message_id}", InboxUnavailable):
        connection = database.handlers.connect()
    with connection, database.watched(connection, timeout):
        with (
            database.watched(connection, DEADLINE_SECONDS),
            database_errors_as(f"begin with {message_id}", InboxUnavailable),
        ):
            found = _insert_or_find(connection, message_id, handler)
        try:
            # The handler's own commits and rollbacks end a savepoint, not this transaction.
            with Session(
                connection, join_transaction_mode="create_savepoint", info={PUBLISHED_BY_OUTER: True}
            ) as session:
                entry = InboxEntry(session, is_done=found is not None, result=found and found.result)
                yield entry
                session.commit()
        except BaseException as error:
            is_disconnected = connection.invalidated
            with suppress(SQLAlchemyError):  # a lost connection has rolled everything back
                connection.rollback()
            if isinstance(error, Exception) and (is_disconnected or lacks_connection(error)):
                raise HandlerDisconnected(message_id, error) from error
            raise
        try:
            with (
                database.watched(connection, DEADLINE_SECONDS),
                database_errors_as(f"commit {message_id}", InboxUnavailable),
            ):
                if not entry.is_done:
                    if not database.is_postgresql:
                        connection.execute(_insert_note(message_id, handler))
                    note = update(InboxRow).where(InboxRow.message_id == message_id)
                    connection.execute(note.values(result=entry.result))
                connection.commit()
                entry.is_committed = True
        except SoftTimeLimitExceeded as error:  # it can be raised at any point
            if not entry.is_committed:
                raise InboxUnavailable(f"the commit of message {message_id} was interrupted: {error}") from error


def is_effect_committed(database: Database, message_id: str, handler: str) -> bool:
    """Whether the effect of a message is committed. It waits for a transaction that may still commit it.

    It inserts the same note and rolls back. PostgreSQL lets the insert wait for another transaction that inserted
    the note, such as the commit of a process that was killed a moment ago.

    Args:
        database: the ledger's database.
        message_id: the id of the message.
        handler: the name of its handler.

    Raises:
        AuditUnavailable: the database does not answer, or the other transaction takes more than two seconds.
    """
    if not database.is_postgresql:
        with database.begin(f"check whether the effect of message {message_id} is committed") as connection:
            return _find(connection, message_id) is not None
    with database.begin(f"check whether the effect of message {message_id} is committed") as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{COMMIT_SECONDS}s'")
        is_noted = not connection.execute(_insert_note(message_id, handler)).rowcount
        connection.rollback()
    return is_noted


def _insert_note(message_id: str, handler: str) -> Any:
    # The purge compares this time with the database's clock, so it must be from that clock.
    row = {"message_id": message_id, "handler": handler, "handled_at": func.now()}
    return insert(InboxRow).values(row).on_conflict_do_nothing()


def _insert_or_find(connection: Connection, message_id: str, handler: str) -> InboxRow | None:
    """Insert the note and return None; or return the note that exists."""
    if connection.dialect.name != "postgresql":
        return _find(connection, message_id)
    if connection.execute(_insert_note(message_id, handler)).rowcount:
        # The transaction is the handler's now, which may take as long as its time limit allows.
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        return None
    return _find(connection, message_id)


def _find(connection: Connection, message_id: str) -> InboxRow | None:
    with Session(connection, join_transaction_mode="rollback_only") as session:
        return session.scalars(select(InboxRow).where(InboxRow.message_id == message_id)).one_or_none()
