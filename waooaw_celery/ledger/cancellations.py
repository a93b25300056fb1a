"""What somebody asked to cancel, in the ledger: the request as an event, and a list for the workers."""

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

#: How much later than its time a worker whose clock is late may still begin a message, or hear of the request.
MARGIN = timedelta(minutes=1)


def request(connection: Connection, fact: MessageFact, running: bool) -> None:
    """Write down that a message is to be cancelled; asked again, it stays so.

    Args:
        connection: in a transaction.
        fact: the request.
        running: whether a handler that has begun is to be stopped too.
    """
    columns = (MessageRow.to_agent, MessageRow.expires_at, MessageRow.retain_until, MessageRow.sent_at)
    message = connection.execute(select(*columns).where(MessageRow.message_id == fact.message_id)).one()
    insert: Any = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    row = insert(CancellationRow).values(
        message_id=fact.message_id,
        to_agent=message.to_agent,
        running=running,
        until=message.expires_at and max(message.expires_at, fact.at) + MARGIN,
        retain_until=message.retain_until,
    )
    either = {"running": or_(CancellationRow.running, row.excluded.running)}
    connection.execute(row.on_conflict_do_update(index_elements=["message_id"], set_=either))
    write(connection, facts=[keyed_event_row(fact, message.retain_until, message.sent_at)])


def requested(connection: Connection, agents: Sequence[str]) -> dict[str, bool]:
    """Return what is to be cancelled of these agents' messages: by id, whether also what runs."""
    rows = select(CancellationRow.message_id, CancellationRow.running).where(
        CancellationRow.to_agent.in_(agents), ~_past(connection)
    )
    return {row.message_id: row.running for row in connection.execute(rows)}


def forget(connection: Connection) -> None:
    """Take off the list what no worker will meet any more.

    A cancelled message stays there: it may still be in the broker.
    """
    ended = exists().where(
        MessageEventRow.message_id == CancellationRow.message_id,
        MessageEventRow.retain_until == CancellationRow.retain_until,
        MessageEventRow.terminal,
        MessageEventRow.event != MessageEvent.CANCELLED.value,
    )
    connection.execute(delete(CancellationRow).where(or_(_past(connection), ended)))


def _past(connection: Connection) -> Any:
    now = now_in(connection)
    expired = CancellationRow.until.is_not(None) & (CancellationRow.until < now)
    return or_(expired, CancellationRow.retain_until < now)
