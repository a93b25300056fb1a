"""What somebody asked to cancel, in the ledger: the request as an event, and a list for the workers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import CancelRow, EventRow, MessageRow
from waooaw_celery.ledger.database.rows import keyed_entry
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.receipt import Event, Fact

#: How much later than its time a worker whose clock is late may still begin a message, or hear of the request.
MARGIN = timedelta(minutes=1)


def request(connection: Connection, fact: Fact, running: bool) -> None:
    """Write down that a message is to be cancelled; asked again, it stays so.

    Args:
        connection: in a transaction.
        fact: the request.
        running: whether a handler that has begun is to be stopped too.
    """
    columns = (MessageRow.to_agent, MessageRow.expires_at, MessageRow.retain_until, MessageRow.sent_at)
    message = connection.execute(select(*columns).where(MessageRow.message_id == fact.message_id)).one()
    insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    row = insert(CancelRow).values(
        message_id=fact.message_id,
        to_agent=message.to_agent,
        running=running,
        until=message.expires_at and max(message.expires_at, fact.at) + MARGIN,
        retain_until=message.retain_until,
    )
    either = {"running": or_(CancelRow.running, row.excluded.running)}
    connection.execute(row.on_conflict_do_update(index_elements=["message_id"], set_=either))
    write(connection, facts=[keyed_entry(fact, message.retain_until, message.sent_at)])


def requested(connection: Connection, agents: Sequence[str]) -> dict[str, bool]:
    """Return what is to be cancelled of these agents' messages: by id, whether also what runs."""
    rows = select(CancelRow.message_id, CancelRow.running).where(
        CancelRow.to_agent.in_(agents), ~_past(connection)
    )
    return {row.message_id: row.running for row in connection.execute(rows)}


def forget(connection: Connection) -> None:
    """Take off the list what no worker will meet any more.

    A cancelled message stays there: it may still be in the broker.
    """
    ended = exists().where(
        EventRow.message_id == CancelRow.message_id,
        EventRow.retain_until == CancelRow.retain_until,
        EventRow.terminal,
        EventRow.event != Event.CANCELLED.value,
    )
    connection.execute(delete(CancelRow).where(or_(_past(connection), ended)))


def _past(connection: Connection) -> Any:
    now = now_in(connection)
    expired = CancelRow.until.is_not(None) & (CancelRow.until < now)
    return or_(expired, CancelRow.retain_until < now)
