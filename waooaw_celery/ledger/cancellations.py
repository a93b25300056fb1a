"""Cancellations in the ledger: an event that records each request, and a table that workers read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import CancellationRow, MessageEventRow, MessageRow
from waooaw_celery.ledger.database.rows import keyed_event_row
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.receipt import MessageEvent, MessageFact

#: How long a cancellation is kept after its message expired: a worker whose clock is behind may still begin it.
CLOCK_MARGIN = timedelta(minutes=1)


def request(connection: Connection, fact: MessageFact, running: bool) -> None:
    """Record that a message is to be cancelled. A second request adds ``running``, and never removes it.

    Args:
        connection: a connection in a transaction.
        fact: the request, as a CANCEL_REQUESTED event.
        running: whether a handler that already runs is to be stopped too.
    """
    columns = (MessageRow.to_agent, MessageRow.expires_at, MessageRow.retain_until, MessageRow.sent_at)
    message = connection.execute(select(*columns).where(MessageRow.message_id == fact.message_id)).one()
    insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    row = insert(CancellationRow).values(
        message_id=fact.message_id,
        to_agent=message.to_agent,
        running=running,
        until=message.expires_at and max(message.expires_at, fact.at) + CLOCK_MARGIN,
        retain_until=message.retain_until,
    )
    merged = {"running": or_(CancellationRow.running, row.excluded.running)}
    connection.execute(row.on_conflict_do_update(index_elements=["message_id"], set_=merged))
    write(connection, facts=[keyed_event_row(fact, message.retain_until, message.sent_at)])


def requested(connection: Connection, agents: Sequence[str]) -> dict[str, bool]:
    """Return the cancellations of these agents' messages: by id, whether a running handler is stopped too."""
    rows = select(CancellationRow.message_id, CancellationRow.running).where(
        CancellationRow.to_agent.in_(agents), ~_is_over(connection)
    )
    return {row.message_id: row.running for row in connection.execute(rows)}


def delete_finished(connection: Connection) -> None:
    """Delete the cancellations that no worker needs any more.

    Those of CANCELLED messages stay until their messages expire: the broker may still deliver such a message.
    """
    has_ended_otherwise = exists().where(
        MessageEventRow.message_id == CancellationRow.message_id,
        MessageEventRow.retain_until == CancellationRow.retain_until,
        MessageEventRow.terminal,
        MessageEventRow.event != MessageEvent.CANCELLED.value,
    )
    connection.execute(delete(CancellationRow).where(or_(_is_over(connection), has_ended_otherwise)))


def _is_over(connection: Connection) -> Any:
    """Whether the message of a cancellation has expired, or may be purged."""
    now = now_in(connection)
    has_expired = CancellationRow.until.is_not(None) & (CancellationRow.until < now)
    return or_(has_expired, CancellationRow.retain_until < now)
