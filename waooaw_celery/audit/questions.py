"""How a message's facts are read from its rows: the query that joins them, and the receipt that it gives."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, select
from sqlalchemy.orm import aliased

from waooaw_celery.audit.models import Event, EventRow, MessageRow
from waooaw_celery.message import DeliveryReceipt, MessageStatus, MessageType, Priority

_End = aliased(EventRow, name="ending")


def receipts_query() -> Select[Any]:
    """Return the query for messages with what is needed for their receipts."""
    return select(
        MessageRow.__table__,
        _deliveries(func.count()).label("attempts"),
        _deliveries(func.min(EventRow.at)).label("delivered_at"),
        status_column().label("status"),
        _End.at.label("finished_at"),
        _End.error.label("error"),
    ).outerjoin(_End, and_(_belongs(_End), _End.terminal))


def status_column() -> ColumnElement[str]:
    """Return the newest known fact: how it ended, or else that it was begun, or else that the broker has it."""
    newest: ColumnElement[str] = func.coalesce(
        _End.event, _known(Event.DELIVERED), _known(Event.SENT), MessageStatus.PENDING.value
    )
    return newest


def receipt_from(row: Row[Any]) -> DeliveryReceipt:
    """Return the receipt that a row of ``receipts_query`` gives."""
    return DeliveryReceipt(
        message_id=row.message_id,
        from_agent=row.from_agent,
        to_agent=row.to_agent,
        handler=row.handler,
        message_type=MessageType(row.message_type),
        priority=Priority.of_rank(row.priority),
        status=MessageStatus(row.status),
        attempts=row.attempts,
        sent_at=row.sent_at,
        delivered_at=row.delivered_at,
        finished_at=row.finished_at,
        correlation_id=row.correlation_id,
        error=row.error,
    )


def _belongs(event: Any) -> ColumnElement[bool]:
    return and_(event.message_id == MessageRow.message_id, event.retain_until == MessageRow.retain_until)


def _deliveries(what: Any) -> Any:
    return select(what).where(_belongs(EventRow), EventRow.event == Event.DELIVERED.value).scalar_subquery()


def _known(event: Event) -> Any:
    """Return the event's name when the message has it, or null."""
    return (
        select(func.max(EventRow.event)).where(_belongs(EventRow), EventRow.event == event.value).scalar_subquery()
    )
