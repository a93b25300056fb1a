"""The transactional outbox: messages written in your transaction, and published after its commit.

A message is sent if, and only if, the transaction commits (microservices.io: Transactional outbox). The ledger is
the outbox. A process that dies between the commit and the publish leaves PENDING messages, which the recovery
publishes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection, event, select
from sqlalchemy.orm import Session, SessionTransaction

from waooaw_celery.errors import ConfigurationError, InvalidMessage, WaooawError
from waooaw_celery.ledger.database.engine import database_errors_as, database_identity
from waooaw_celery.ledger.database.models import OpenMessageRow
from waooaw_celery.ledger.database.rows import message_rows
from waooaw_celery.ledger.inbox import PUBLISHED_BY_OUTER
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.transactions.django import DjangoTransaction
from waooaw_celery.ledger.transactions.transaction import as_transaction
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import options_of_messages
from waooaw_celery.messages.queues import HandlerName

logger = get_logger(__name__)

Batch: TypeAlias = Sequence[tuple[HandlerName, Message]]

#: The key in a session's ``info`` with the messages that were written in its transaction.
_OUTBOX_KEY = "waooaw_outbox"


class Outbox:
    """Writes messages in the user's transactions, and publishes those that are committed.

    Args:
        ledger: the ledger that the messages are written to.
        publish: publishes messages that are in the ledger.
    """

    def __init__(self, ledger: Ledger, publish: Callable[[Batch], None]) -> None:
        self._database, self._retention = ledger.database, ledger.retention
        self._publish = publish
        #: Engines of the user's that are known to reach the ledger's database.
        self._same_database: weakref.WeakSet[Any] = weakref.WeakSet()

    def add_to_outbox(self, batch: Batch, session: Any) -> None:
        """Write messages in the transaction of a session, and publish them after its commit.

        Args:
            batch: complete messages, each with its handler.
            session: a SQLAlchemy Session on the ledger's database; with an AsyncSession, call ``run_sync``. Or a
                connection of Django on that database, such as ``django.db.connection``, within ``atomic()``.

        Raises:
            ConfigurationError: this is not a Session, it is on another database, or Django has no transaction.
            InvalidMessage: a message was sent before.
            AuditUnavailable: the database refuses the rows or does not answer; roll the transaction back.
        """
        transaction = as_transaction(session)
        new = self._insert(batch, transaction.connection())
        for _, message in batch:
            if message.message_id not in new:
                raise InvalidMessage(f"message {message.message_id} was sent already: send a new Message")
        if isinstance(transaction, DjangoTransaction):
            # Django itself forgets the call when the savepoint in which it was made is rolled back.
            transaction.on_commit(partial(self._publish_committed, batch))
            return
        if _OUTBOX_KEY not in session.info:
            session.info[_OUTBOX_KEY] = []
            event.listen(session, "after_transaction_end", self._on_transaction_end)
        session.info[_OUTBOX_KEY] += batch

    def check(self, session: Any) -> None:
        """Check that a session can take messages.

        Raises:
            ConfigurationError: this is not a Session, or it is on another database.
            AuditUnavailable: the database does not answer.
        """
        transaction = as_transaction(session)
        with database_errors_as("use your session"):
            self._check_same_database(transaction.connection())

    def settle(self, session: Session) -> None:
        """Forget the messages of a session that were rolled back; call this just before the commit.

        It queries the session's own connection, where a savepoint that was rolled back has left no rows.

        Args:
            session: a session that is part of a larger transaction (``PUBLISHED_BY_OUTER``).

        Raises:
            AuditUnavailable: the database does not answer; roll the transaction back.
        """
        batch: list[tuple[HandlerName, Message]] = session.info.get(_OUTBOX_KEY, [])
        if batch:
            with database_errors_as("look up the messages of your transaction"):
                session.info[_OUTBOX_KEY] = _existing(batch, session.connection())

    def relay(self, session: Session) -> None:
        """Publish the messages of a session that were committed.

        A broker that fails is logged and not raised: the transaction is committed, and an error would mean that it
        was not. The recovery publishes the messages later.
        """
        batch, session.info[_OUTBOX_KEY] = session.info.get(_OUTBOX_KEY, []), []
        if not batch:
            return
        try:
            if not session.info.get(PUBLISHED_BY_OUTER):  # there, ``settle`` has done this
                # Only the database knows: a savepoint may have been rolled back within a committed transaction.
                with self._database.begin("look up committed messages") as connection:
                    batch = _existing(batch, connection)
        except WaooawError as error:
            _log_waiting(batch, error)
            return
        if batch:
            self._publish_committed(batch)

    def _publish_committed(self, batch: Batch) -> None:
        try:
            self._publish(batch)
        except WaooawError as error:
            _log_waiting(batch, error)

    def _insert(self, batch: Batch, connection: Any) -> set[str]:
        """Insert messages, and return the ids of those that the ledger did not have."""
        with database_errors_as("insert messages in your transaction"):
            self._check_same_database(connection)
            options = options_of_messages((message for _, message in batch), None)
            messages = [(message, target.handler) for target, message in batch]
            return write(connection, message_rows(messages, self._retention, options)).new

    def _check_same_database(self, connection: Any) -> None:
        """Check, once for each engine, that a connection reaches the ledger's tables."""
        is_own = isinstance(connection, Connection) and self._database.owns(connection)
        if is_own or connection.engine in self._same_database:
            return
        with self._database.begin("identify the ledger's database") as own_connection:
            is_same = database_identity(own_connection) == database_identity(connection)
        if not is_same:
            raise ConfigurationError(
                f"the session is on {_shown(connection)}, which is not the ledger's database and schema: "
                "use a session on the database that waooaw_database_url names"
            )
        self._same_database.add(connection.engine)

    def _on_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None and not session.info.get(PUBLISHED_BY_OUTER):
            self.relay(session)


def _shown(connection: Any) -> str:
    is_django = not isinstance(connection, Connection)
    return f"Django's database {connection.engine.alias!r}" if is_django else f"{connection.engine.url!r}"


def _log_waiting(batch: Batch, error: WaooawError) -> None:
    logger.warning(
        "%s; the ledger's recovery publishes the committed messages",
        error,
        extra={"action": "outbox_waits", "message_ids": [message.message_id for _, message in batch]},
    )


def _existing(batch: Batch, connection: Connection) -> list[tuple[HandlerName, Message]]:
    """Return those messages that a connection finds in the ledger."""
    ids = [message.message_id for _, message in batch]
    query = select(OpenMessageRow.message_id).where(OpenMessageRow.message_id.in_(ids))
    found = set(connection.scalars(query))
    return [(target, message) for target, message in batch if message.message_id in found]
