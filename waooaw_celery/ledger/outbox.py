"""Messages that are written down in somebody else's transaction, and published when that is committed.

The transactional outbox (microservices.io): a message is sent if, and only if, what it tells of is committed. The
ledger is the outbox. A process that dies between the commit and the publish leaves PENDING messages, which the
ledger's recovery publishes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from waooaw_celery.errors import ConfigurationError, InvalidMessage, WaooawError
from waooaw_celery.ledger.inbox import PUBLISHED_BY_OUTER
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName

logger = logging.getLogger(__name__)

Batch: TypeAlias = Sequence[tuple[HandlerName, Message]]

#: Where a session keeps what was entrusted to it.
_ENTRUSTED = "waooaw_entrusted"


class Outbox:
    """Writes messages down in transactions of others.

    Args:
        ledger: where they are written down.
        publish: hands messages that are written down to the broker.
    """

    def __init__(self, ledger: Ledger, publish: Callable[[Batch], None]) -> None:
        self._ledger, self._publish = ledger, publish

    def entrust(self, batch: Batch, session: Any) -> None:
        """Write messages down in the transaction of a session, and publish them when it is committed.

        Args:
            batch: complete messages.
            session: a SQLAlchemy Session on the ledger's database; an AsyncSession's ``sync_session``, in
                ``run_sync``.

        Raises:
            ConfigurationError: it is no session, or one of another database.
            InvalidMessage: a message was sent already.
            AuditUnavailable: the database does not take them; the transaction must be rolled back.
        """
        if not isinstance(session, Session):
            raise ConfigurationError(
                f"session must be a SQLAlchemy Session, not {session!r:.80}; with an AsyncSession: "
                "await session.run_sync(lambda session: bus.send(message, session=session))"
            )
        new = self._ledger.entrust([(message, target.handler) for target, message in batch], session.connection())
        for _, message in batch:
            if message.message_id not in new:
                raise InvalidMessage(f"message {message.message_id} was sent already: send a new Message")
        if _ENTRUSTED not in session.info:
            session.info[_ENTRUSTED] = []
            event.listen(session, "after_transaction_end", self._ended)
        session.info[_ENTRUSTED] += batch

    def settle(self, session: Session) -> None:
        """Keep of what was entrusted to a session only what its transaction is about to commit.

        It asks over the session's own connection, where a savepoint that was rolled back is known already.

        Args:
            session: one whose end is told to ``relay``.

        Raises:
            AuditUnavailable: the database does not answer; the transaction must be rolled back.
        """
        batch: list[tuple[HandlerName, Message]] = session.info.get(_ENTRUSTED, [])
        if batch:
            there = self._ledger.written([message.message_id for _, message in batch], session.connection())
            session.info[_ENTRUSTED] = [each for each in batch if each[1].message_id in there]

    def relay(self, session: Session) -> None:
        """Publish what was entrusted to a session, as far as its transaction was committed.

        Of a session whose end is told, ``settle`` has found out before how far that is.
        """
        batch, session.info[_ENTRUSTED] = session.info.get(_ENTRUSTED, []), []
        if not batch:
            return
        try:
            if not session.info.get(PUBLISHED_BY_OUTER):
                # Only the database knows: a savepoint may have been rolled back, and what was around it not.
                there = self._ledger.written([message.message_id for _, message in batch])
                batch = [(target, message) for target, message in batch if message.message_id in there]
            if batch:
                self._publish(batch)
        except WaooawError as error:
            # The transaction is committed: to fail now would say that it is not.
            logger.warning(
                "%s; committed messages are published by the ledger's recovery",
                error,
                extra={"action": "outbox_waits", "message_ids": [message.message_id for _, message in batch]},
            )

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None and not session.info.get(PUBLISHED_BY_OUTER):
            self.relay(session)
