"""The writing side of the ledger: what is said, before it is published, and what becomes of it, as it happens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, exists, func, literal, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.audit.engine import Database
from waooaw_celery.audit.models import TERMINAL, Event, EventRow, MessageRow
from waooaw_celery.audit.questions import receipt_from, receipts_query
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.message import DeliveryReceipt, Message, MessageStatus, RetentionPolicy
from waooaw_celery.receipts import SWEEP_GRACE, Receipts
from waooaw_celery.values import JSON, check_id

#: How far back a sweep looks for messages that expired; a purge looks at all.
SWEEP_WINDOW = timedelta(hours=2)


class Ledger(Receipts):
    """Receipts kept in the ledger's tables. Writing the same fact twice changes nothing.

    Args:
        database: where the tables are.
        retention: how long a message is kept that does not say so itself.
    """

    def __init__(self, database: Database, retention: RetentionPolicy) -> None:
        self.database = database
        self._retention = retention

    def pending(self, message: Message, handler: str) -> bool:
        row = self._insert(MessageRow).values(self._row(message, handler))
        with self.database.begin(f"record message {message.message_id}") as connection:
            return bool(connection.execute(row.on_conflict_do_nothing()).rowcount > 0)

    def sent(self, message_id: str) -> None:
        self._record(message_id, Event.SENT)

    def delivered(self, message: Message, handler: str, worker: str | None = None) -> None:
        with self.database.begin(f"record the delivery of {message.message_id}") as connection:
            if not connection.scalar(select(exists().where(MessageRow.message_id == message.message_id))):
                # Published by something that keeps no ledger.
                row = self._row(message, handler)
                connection.execute(self._insert(MessageRow).values(row).on_conflict_do_nothing())
            self._add(connection, message.message_id, Event.DELIVERED, worker=worker)

    def retried(self, message_id: str, error: str, worker: str | None = None) -> None:
        self._record(message_id, Event.RETRIED, error, worker)

    def finished(
        self, message_id: str, status: MessageStatus, error: str | None = None, worker: str | None = None
    ) -> bool:
        return self._record(message_id, Event(status.value), error, worker)

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        with self.database.begin(f"read the receipt of {message_id}") as connection:
            row = connection.execute(receipts_query().where(MessageRow.message_id == message_id)).first()
        if row is None:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return receipt_from(row)

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        query = receipts_query().order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc()).limit(limit)
        if since is not None:
            query = query.where(MessageRow.sent_at >= since)
        with self.database.begin("read the receipts") as connection:
            return [receipt_from(row) for row in connection.execute(query)][::-1]

    def sweep(self, window: timedelta | None = SWEEP_WINDOW) -> list[str]:
        now = datetime.now(UTC)
        overdue = select(MessageRow.message_id).where(
            MessageRow.expires_at < now - timedelta(seconds=SWEEP_GRACE), ~_begun_or_ended()
        )
        if window is not None:
            overdue = overdue.where(MessageRow.expires_at >= now - window)
        with self.database.begin("sweep expired messages") as connection:
            ids = list(connection.scalars(overdue))
            return [id_ for id_ in ids if self._add(connection, id_, Event.EXPIRED)]

    def close(self) -> None:
        self.database.close()

    def _record(self, message_id: str, event: Event, error: str | None = None, worker: str | None = None) -> bool:
        with self.database.begin(f"record that {message_id} was {event}") as connection:
            return self._add(connection, message_id, event, error, worker)

    def _add(
        self,
        connection: Connection,
        message_id: str,
        event: Event,
        error: str | None = None,
        worker: str | None = None,
    ) -> bool:
        """Add an event of a message that is in the ledger, and return whether it was new."""
        facts = {
            "event": event.value,
            "terminal": event in TERMINAL,
            "at": datetime.now(UTC),
            "worker": worker,
            "error": error and _storable(error),
        }
        statement = self._insert(EventRow).from_select(
            ["message_id", "retain_until", "attempt", *facts], _event_of(message_id, event, facts)
        )
        return connection.execute(statement.on_conflict_do_nothing()).rowcount > 0

    def _insert(self, table: type[MessageRow] | type[EventRow]) -> Any:
        return (postgresql_insert if self.database.is_postgresql else sqlite_insert)(table)

    def _row(self, message: Message, handler: str) -> dict[str, Any]:
        return {
            "message_id": message.message_id,
            "retain_until": (message.retention or self._retention).until(message.sent_at),
            "from_agent": message.from_agent,
            "to_agent": message.to_agent,
            "handler": handler,
            "message_type": message.message_type.value,
            "priority": message.priority.rank,
            "correlation_id": message.correlation_id or message.message_id,
            "conversation_id": message.conversation_id or message.message_id,
            "causation_id": message.causation_id,
            "sent_at": message.sent_at,
            "expires_at": message.expires_at,
            "payload": message.payload,
            "payload_digest": digest(message.payload),
            "erased_at": None,
        }


def digest(payload: JSON) -> str:
    """Return the SHA-256, in hexadecimal, of a payload's canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _event_of(message_id: str, event: Event, facts: Mapping[str, Any]) -> Select[Any]:
    """Select the row of an event from the message it belongs to: none when the ledger has no such message."""
    begun = (
        select(func.count())
        .where(
            EventRow.message_id == MessageRow.message_id,
            EventRow.retain_until == MessageRow.retain_until,
            EventRow.event == Event.DELIVERED.value,
        )
        .scalar_subquery()
    )
    columns = [literal(value, EventRow.__table__.c[name].type) for name, value in facts.items()]
    attempt = begun + 1 if event is Event.DELIVERED else begun
    return select(MessageRow.message_id, MessageRow.retain_until, attempt, *columns).where(
        MessageRow.message_id == message_id
    )


def _begun_or_ended() -> Any:
    return exists().where(
        EventRow.message_id == MessageRow.message_id,
        EventRow.retain_until == MessageRow.retain_until,
        EventRow.terminal | (EventRow.event == Event.DELIVERED.value),
    )


def _storable(text: str) -> str:
    """Return a text that every database takes: PostgreSQL refuses NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
