"""How a message's record is read: its row, and its events, of which its status is worked out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    Select,
    String,
    and_,
    bindparam,
    cast,
    or_,
    select,
    union_all,
)

from waooaw_celery.ledger.database.models import MessageEventRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent
from waooaw_celery.messages.topics.attributes import EventAttributes

#: Messages whose events are read with one statement.
_PART = 1000
_ENDS = frozenset(event.value for event in MessageEvent if event.terminal)
#: Events that do not say that the broker has, or had, the message.
NO_PUBLISH = (MessageEvent.CANCEL_REQUESTED.value, MessageEvent.RECOVERED.value)

#: The primary key of a message: its id, and until when it is kept.
MessageKey = tuple[str, datetime]


def read_records(
    connection: Connection, query: Select[Any], parameters: Mapping[str, Any] | None = None
) -> list[AuditRecord]:
    """Return the records of messages.

    Args:
        connection: in a transaction.
        query: selects their rows, with all columns.
        parameters: what the query leaves open.
    """
    rows = connection.execute(query, parameters).all()
    events: dict[str, list[AuditEvent]] = {row.message_id: [] for row in rows}
    for start in range(0, len(rows), _PART):
        months = by_month((row.message_id, row.retain_until) for row in rows[start : start + _PART])
        which: dict[str, Any] = {}
        for number, month in enumerate(months):
            which |= {f"ids_{number}": [message_id for message_id, _ in month]}
            which |= {f"first_{number}": month[0][1], f"last_{number}": month[-1][1]}
        for message_id, *told in sorted(connection.execute(_told(len(months)), which), key=_order):
            events[message_id].append(_event(*told))
    return [_record(row, events[row.message_id]) for row in rows]


@cache
def _told(months: int) -> CompoundSelect[Any]:
    """Return the query for the events of messages of so many months.

    It is made once: to put it together each time takes longer than the database needs to answer it.
    """
    columns = ("message_id", "event", "attempt", "at", "worker", "seconds", "error")
    return union_all(
        *(
            select(*(getattr(MessageEventRow, column) for column in columns)).where(
                MessageEventRow.message_id.in_(bindparam(f"ids_{number}", expanding=True)),
                MessageEventRow.retain_until.between(bindparam(f"first_{number}"), bindparam(f"last_{number}")),
            )
            for number in range(months)
        )
    )


def _order(told: Row[Any]) -> tuple[bool, datetime, bool]:
    """Return what events are sorted by: a worker may begin before the sender hears that the broker has it."""
    return told.event != MessageEvent.SENT, told.at, told.event in _ENDS


def follow_indexes(connection: Connection) -> None:
    """Have PostgreSQL answer the questions of this transaction along indexes, row by row, until it has enough.

    It would rather read and sort all that a question could look at, since it cannot know how soon there is enough.
    And it would compile first, which takes longer than any question: it counts a look into every partition, though
    it leaves out all but one when it looks.
    """
    if connection.dialect.name == "postgresql":
        off = ("enable_bitmapscan", "enable_seqscan", "jit")
        connection.exec_driver_sql(";".join(f"SET LOCAL {setting} = off" for setting in off))


def by_month(keys: Iterable[MessageKey]) -> list[list[MessageKey]]:
    """Return the keys of messages by the months in which they may be purged: on PostgreSQL, by partition."""
    ordered = sorted(keys, key=lambda key: key[1])
    return [list(month) for _, month in groupby(ordered, lambda key: Month.of(key[1]))]


def in_partition(row: Any, month: Sequence[MessageKey]) -> ColumnElement[bool]:
    """Whether a row is of one of these messages, which ``by_month`` put together.

    The bounds spare PostgreSQL all other partitions. It takes far longer over a list of pairs.
    """
    bounds = row.retain_until.between(month[0][1], month[-1][1])
    return and_(row.message_id.in_([message_id for message_id, _ in month]), bounds)


def contains_text(message: Any, text: str) -> ColumnElement[bool]:
    """Whether a message's payload, as JSON text, contains this, in any case."""
    payload = cast(message.payload, String)
    # The second is how it stands in a payload with halves of surrogate pairs, which is ASCII throughout.
    spellings = dict.fromkeys((payload_text(text)[1:-1], json.dumps(text)[1:-1]))
    return or_(*(payload.icontains(spelling, autoescape=True) for spelling in spellings))


def _event(
    event: str, attempt: int, at: datetime, worker: str, seconds: float | None, error: str | None
) -> AuditEvent:
    return AuditEvent(event=event, attempt=attempt, at=at, worker=worker or None, seconds=seconds, error=error)


def _record(row: Row[Any], events: Sequence[AuditEvent]) -> AuditRecord:
    return AuditRecord(
        receipt=_receipt(row, events),
        payload=row.payload,
        payload_digest=row.payload_digest,
        conversation_id=row.conversation_id,
        causation_id=row.causation_id,
        expires_at=row.expires_at,
        retain_until=row.retain_until,
        erased_at=row.erased_at,
        events=tuple(events),
        event=EventAttributes.from_envelope(row.event),
    )


def _receipt(row: Row[Any], events: Sequence[AuditEvent]) -> DeliveryReceipt:
    begun = [event for event in events if event.event == MessageEvent.DELIVERED]
    asked = [event for event in events if event.event == MessageEvent.CANCEL_REQUESTED]
    sent = [event for event in events if event.event not in NO_PUBLISH]
    end = next((event for event in events if event.event in _ENDS), None)
    if end is not None:
        status = MessageStatus(end.event)
    elif begun:
        status = MessageStatus.DELIVERED
    else:
        status = MessageStatus.SENT if sent else MessageStatus.PENDING
    return DeliveryReceipt(
        message_id=row.message_id,
        from_agent=row.from_agent,
        to_agent=row.to_agent,
        handler=row.handler,
        message_type=MessageType(row.message_type),
        priority=Priority.of_rank(row.priority),
        status=status,
        attempts=len(begun),
        sent_at=row.sent_at,
        delivered_at=begun[0].at if begun else None,
        finished_at=end.at if end is not None else None,
        correlation_id=row.correlation_id,
        error=end.error if end is not None else None,
        cancel_requested_at=asked[0].at if asked else None,
    )
