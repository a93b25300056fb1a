"""The inbox: a handler's effect and the note that it happened are committed together, so that it happens once.

The idempotent consumer of Enterprise Integration Patterns, in the form that NServiceBus calls outbox: the row is
written first, and a second transaction that writes the same one waits until the first has come to its end.
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
from waooaw_celery.ledger.database.engine import DEADLINE_SECONDS, Database, database_errors_as, lacks_connection
from waooaw_celery.ledger.database.models import InboxRow
from waooaw_celery.messages.validation import JSON

#: Seconds that a commit may take whose end somebody else waits for: whoever asks may serve a whole worker.
COMMIT_SECONDS = 2
#: Says of a session, in its ``info``, that it is part of a larger transaction, whose end somebody else tells.
PUBLISHED_BY_OUTER = "waooaw_relayed"


class InboxUnavailable(AuditUnavailable):
    """The database did not begin or did not commit what a handler does, or another one is at the same message."""


class HandlerDisconnected(InboxUnavailable):
    """A handler had no connection to the database while it ran: its transaction has no effect.

    Attributes:
        raised: what the handler raised.
    """

    def __init__(self, message_id: str, raised: Exception) -> None:
        super().__init__(
            f"the handler of message {message_id} had no connection to the ledger's database: {raised}"
        )
        self.raised = raised


@dataclass
class InboxEntry:
    """One attempt at a message.

    Attributes:
        session: for the handler's effect.
        is_done: whether an earlier attempt's effect is there already.
        result: what the handler returned.
        is_committed: whether this attempt was confirmed.
    """

    session: Session
    is_done: bool = False
    result: JSON = None
    is_committed: bool = False


@contextmanager
def handle_once(database: Database, message_id: str, handler: str, patience: float) -> Iterator[InboxEntry]:
    """Give a session whose transaction holds the note that a message was handled; it is committed at the end.

    What the block raises takes everything back. ``commit()`` of the session is not yet the end: only the end of
    the block is.

    Args:
        database: the ledger's, a PostgreSQL.
        message_id: of which message.
        handler: name of its handler.
        patience: seconds that all of it may take.

    Raises:
        InboxUnavailable: nothing was done, or, when the commit was not confirmed, that is not known.
        HandlerDisconnected: the block raised, and its connection was lost, or there was none for what it asked.
    """
    with database_errors_as(f"begin with message {message_id}", InboxUnavailable):
        connection = database.handlers.connect()
    with connection, database.watched(connection, patience):
        with (
            database.watched(connection, DEADLINE_SECONDS),
            database_errors_as(f"begin with {message_id}", InboxUnavailable),
        ):
            found = _enter(connection, message_id, handler)
        try:
            # The user's own commit and rollback end a savepoint, and not our transaction.
            with Session(
                connection, join_transaction_mode="create_savepoint", info={PUBLISHED_BY_OUTER: True}
            ) as session:
                taken = InboxEntry(session, is_done=found is not None, result=found and found.result)
                yield taken
                session.commit()
        except BaseException as error:
            is_lost = connection.invalidated
            with suppress(SQLAlchemyError):  # a connection that is gone has taken everything back
                connection.rollback()
            if isinstance(error, Exception) and (is_lost or lacks_connection(error)):
                raise HandlerDisconnected(message_id, error) from error
            raise
        try:
            with (
                database.watched(connection, DEADLINE_SECONDS),
                database_errors_as(f"commit {message_id}", InboxUnavailable),
            ):
                if not taken.is_done:
                    done = update(InboxRow).where(InboxRow.message_id == message_id)
                    connection.execute(done.values(result=taken.result))
                connection.commit()
                taken.is_committed = True
        except SoftTimeLimitExceeded as error:  # raised wherever the process was
            if not taken.is_committed:
                raise InboxUnavailable(f"the commit of message {message_id} was interrupted: {error}") from error


def has_effect(database: Database, message_id: str, handler: str) -> bool:
    """Whether the effect of a message is committed. A transaction that may commit it is waited for.

    To write the note is the question: PostgreSQL lets that wait for the end of another transaction that wrote the
    same one, such as the commit of a process that was killed meanwhile. What is written here is taken back.

    Args:
        database: the ledger's.
        message_id: of which message.
        handler: name of its handler.

    Raises:
        AuditUnavailable: the database does not answer, or another transaction holds the note for too long.
    """
    if not database.is_postgresql:
        return False
    with database.begin(f"ask whether the effect of message {message_id} is committed") as connection:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{COMMIT_SECONDS}s'")
        is_there = not connection.execute(_note(message_id, handler)).rowcount
        connection.rollback()
    return is_there


def _note(message_id: str, handler: str) -> Any:
    # By the database's clock, as it is purged: one that is too old would be forgotten too soon.
    row = {"message_id": message_id, "handler": handler, "handled_at": func.now()}
    return insert(InboxRow).values(row).on_conflict_do_nothing()


def _enter(connection: Connection, message_id: str, handler: str) -> InboxRow | None:
    """Write the note, and return None; or return the one that is there."""
    if connection.execute(_note(message_id, handler)).rowcount:
        # From here on the transaction is the handler's, which may take as long as its time limit says.
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        return None
    with Session(connection, join_transaction_mode="rollback_only") as session:
        return session.scalars(select(InboxRow).where(InboxRow.message_id == message_id)).one()
