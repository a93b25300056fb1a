"""Reads records of messages: rows, their events, and the status that follows from the events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CompoundSelect,
    Connection,
    Row,
    Select,
    String,
    and_,
    bindparam,
    cast,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.read.records import NOT_LOADED, AuditEvent, AuditRecord
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.trace_context import trace_id
from waooaw_celery.messages.validation import JSON

#: Most messages whose events one statement reads.
_BATCH_SIZE = 1000
_FINAL_EVENTS = frozenset(event.value for event in MessageEvent if event.terminal)
#: Events that do not prove that the message was published.
UNPUBLISHED_EVENTS = (
    MessageEvent.CANCEL_REQUESTED.value,
    MessageEvent.RECOVERED.value,
    MessageEvent.LOGGED.value,
)

#: The primary key of a message: its id, and the end of its retention.
MessageKey = tuple[str, datetime]


def read_records(
    connection: Connection, query: Select[Any], parameters: Mapping[str, Any] | None = None
) -> list[AuditRecord]:
    """Return the records of messages, in the order of the query.

    Args:
        connection: a connection in a transaction.
        query: selects the rows of the messages, with the columns of ``message_columns``. The records of rows
            without a payload have none.
        parameters: the query's bind parameters.
    """
    rows = connection.execute(query, parameters).all()
    events: dict[str, list[AuditEvent]] = {row.message_id: [] for row in rows}
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = rows[start : start + _BATCH_SIZE]
        months = group_by_month((row.message_id, row.retain_until) for row in batch)
        bounds: dict[str, Any] = {}
        for number, month in enumerate(months):
            bounds |= {f"ids_{number}": [message_id for message_id, _ in month]}
            bounds |= {f"first_{number}": month[0][1], f"last_{number}": month[-1][1]}
        found = connection.execute(_events_query(len(months)), bounds)
        for message_id, *columns in sorted(found, key=_event_order):
            events[message_id].append(_event(*columns))
    return [_record(row, events[row.message_id]) for row in rows]


def message_columns(*, payloads: bool, of: Any = MessageRow.__table__.columns) -> list[ColumnElement[Any]]:
    """Return the columns of messages that a record needs. A payload may have megabytes: read it only to show it.

    Args:
        payloads: whether to read the payloads.
        of: the columns of the table of messages, or of a subquery with its columns.
    """
    left_out = set() if payloads else {"payload"}
    return [column for column in of if column.key not in left_out]


def read_record(connection: Connection, message_id: str, *, payloads: bool = True) -> AuditRecord | None:
    """Return the record of one message, or None if the ledger does not have it."""
    query = select(*message_columns(payloads=payloads)).where(MessageRow.message_id == message_id)
    return next(iter(read_records(connection, query)), None)


def read_payloads(connection: Connection, records: Iterable[AuditRecord]) -> dict[str, JSON]:
    """Return the payloads of messages whose records were read without them, by message id."""
    payloads: dict[str, JSON] = {}
    for month in group_by_month((record.receipt.message_id, record.retain_until) for record in records):
        query = select(MessageRow.message_id, MessageRow.payload).where(in_partition(MessageRow, month))
        payloads |= {row.message_id: row.payload for row in connection.execute(query)}
    return payloads


@cache
def _events_query(months: int) -> CompoundSelect[Any]:
    """Return the query for the events of messages in this number of months.

    It is cached: building it takes longer than the database takes to answer it.
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


def _event_order(row: Row[Any]) -> tuple[bool, datetime, bool]:
    """Return an event's sort key. SENT is first: a worker may begin before the publish is confirmed."""
    return row.event != MessageEvent.SENT, row.at, row.event in _FINAL_EVENTS


def force_index_scans(connection: Connection) -> None:
    """Make PostgreSQL answer the queries of this transaction along indexes, until it has enough rows.

    Its planner cannot know how soon there are enough rows, and would read and sort everything that matches. It
    would also compile the query first, which takes longer than the query: the planner counts every partition,
    though the query reads one.
    """
    if connection.dialect.name == "postgresql":
        off = ("enable_bitmapscan", "enable_seqscan", "jit")
        connection.exec_driver_sql(";".join(f"SET LOCAL {setting} = off" for setting in off))


def group_by_month(keys: Iterable[MessageKey]) -> list[list[MessageKey]]:
    """Return message keys grouped by the month in which their retention ends: on PostgreSQL, by partition."""
    ordered = sorted(keys, key=lambda key: key[1])
    return [list(month) for _, month in groupby(ordered, lambda key: Month.of(key[1]))]


def in_partition(table: Any, month: Sequence[MessageKey]) -> ColumnElement[bool]:
    """Return the condition that a row belongs to one of these messages, a group of ``group_by_month``.

    The bounds let PostgreSQL skip all other partitions. It takes far longer for a list of pairs.
    """
    bounds = table.retain_until.between(month[0][1], month[-1][1])
    return and_(table.message_id.in_([message_id for message_id, _ in month]), bounds)


def contains_text(message: Any, text: str) -> ColumnElement[bool]:
    """Return the condition that a message's payload, as JSON text, contains a text, in any case."""
    return column_contains(message.payload, text)


def column_contains(column: Any, text: str) -> ColumnElement[bool]:
    """Return the condition that a JSON column, as text, contains a text, in any case."""
    written = cast(column, String)
    return or_(
        *(
            _ContainsAscii(written, literal(each.lower()))
            if each.isascii()
            else written.icontains(each, autoescape=True)
            for each in json_spellings(text)
        )
    )


class _ContainsAscii(FunctionElement[bool]):
    """Whether a text contains another one, of ASCII characters in lower case, in any case."""

    type = Boolean()
    inherit_cache = True


@compiles(_ContainsAscii)
def _compile_contains(element: _ContainsAscii, compiler: Any, **options: Any) -> str:
    return "instr(lower({}), {}) > 0".format(*(compiler.process(each, **options) for each in element.clauses))


@compiles(_ContainsAscii, "postgresql")
def _compile_contains_for_postgresql(element: _ContainsAscii, compiler: Any, **options: Any) -> str:
    # ILIKE takes more than twice the time: it folds the case of every character by the rules of a language.
    parts = (compiler.process(each, **options) for each in element.clauses)
    return 'strpos(lower({} COLLATE "C"), {}) > 0'.format(*parts)


def json_spellings(text: str) -> tuple[str, ...]:
    """Return how a text may be written within JSON text.

    The second spelling is for values with unpaired surrogates, which are stored as pure ASCII.
    """
    return tuple(dict.fromkeys((payload_text(text)[1:-1], json.dumps(text)[1:-1])))


def _event(
    event: str, attempt: int, at: datetime, worker: str, seconds: float | None, error: str | None
) -> AuditEvent:
    return AuditEvent(event=event, attempt=attempt, at=at, worker=worker or None, seconds=seconds, error=error)


def _record(row: Row[Any], events: Sequence[AuditEvent]) -> AuditRecord:
    return AuditRecord(
        receipt=_receipt(row, events),
        payload=getattr(row, "payload", NOT_LOADED),
        payload_digest=row.payload_digest,
        conversation_id=row.conversation_id,
        causation_id=row.causation_id,
        expires_at=row.expires_at,
        retain_until=row.retain_until,
        erased_at=row.erased_at,
        events=tuple(events),
        event=EventAttributes.from_envelope(row.event),
        identity=row.identity,
        capability=(row.options or {}).get("capability"),
        trace_id=trace_id((row.options or {}).get("trace")),
        reference=_reference(row.options),
    )


def _reference(options: Any) -> Reference | None:
    form = (options or {}).get("reference")
    return None if form is None else Reference.of_form(form)


def _receipt(row: Row[Any], events: Sequence[AuditEvent]) -> DeliveryReceipt:
    deliveries = [event for event in events if event.event == MessageEvent.DELIVERED]
    cancel_requests = [event for event in events if event.event == MessageEvent.CANCEL_REQUESTED]
    final = next((event for event in events if event.event in _FINAL_EVENTS), None)
    return DeliveryReceipt(
        message_id=row.message_id,
        from_agent=row.from_agent,
        to_agent=row.to_agent,
        handler=row.handler,
        message_type=MessageType(row.message_type),
        priority=Priority.of_rank(row.priority),
        status=_status(events, final),
        attempts=len(deliveries),
        sent_at=row.sent_at,
        delivered_at=deliveries[0].at if deliveries else None,
        finished_at=final.at if final is not None else None,
        correlation_id=row.correlation_id,
        error=final.error if final is not None else None,
        cancel_requested_at=cancel_requests[0].at if cancel_requests else None,
    )


def _status(events: Sequence[AuditEvent], final: AuditEvent | None) -> MessageStatus:
    if final is not None:
        return MessageStatus(final.event)
    if any(event.event == MessageEvent.DELIVERED for event in events):
        return MessageStatus.DELIVERED
    is_published = any(event.event not in UNPUBLISHED_EVENTS for event in events)
    return MessageStatus.SENT if is_published else MessageStatus.PENDING
