"""Who sends to whom lately: the newest messages, counted by sender and recipient."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, case, func, select

from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow
from waooaw_celery.ledger.read.reader import force_index_scans
from waooaw_celery.ledger.read.scan import newest_first, same_message
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.message import NO_RECIPIENT

#: The statuses that count as failures.
_FAILURES = (MessageStatus.FAILED.value, MessageStatus.DEAD.value, MessageStatus.EXPIRED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(JsonForm):
    """The messages from one agent to another.

    Attributes:
        from_agent: the sender.
        to_agent: the recipient.
        messages: how many.
        failed: how many of them failed, expired or are dead letters.
    """

    from_agent: str
    to_agent: str
    messages: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows(JsonForm):
    """The newest messages, counted by sender and recipient.

    Attributes:
        flows: the counts, the largest first.
        seconds: the length of the time in which they were sent, in seconds. It is shorter than was asked for if
            there were more messages than one reading counts.
    """

    flows: tuple[Flow, ...]
    seconds: float


def read_flows(connection: Connection, since: datetime, now: datetime, limit: int) -> Flows:
    """Return the counts of the newest messages.

    Args:
        connection: a connection in a transaction.
        since: only messages sent at this time or later.
        now: the present time by the database's clock.
        limit: how many messages are counted at most. This bounds the cost: one look at an index for each.
    """
    force_index_scans(connection)
    newest = newest_first(
        select(
            MessageRow.from_agent,
            MessageRow.to_agent,
            MessageRow.sent_at,
            MessageRow.message_id,
            MessageRow.retain_until,
        ).where(MessageRow.sent_at >= since, MessageRow.to_agent != NO_RECIPIENT),
        limit,
    ).subquery()
    ended_as = (
        select(MessageEventRow.event)
        .where(same_message(MessageEventRow, newest.c), MessageEventRow.terminal)
        .correlate_except(MessageEventRow)
        .scalar_subquery()
    )
    number = func.count()
    rows = connection.execute(
        select(
            newest.c.from_agent,
            newest.c.to_agent,
            number.label("messages"),
            func.sum(case((ended_as.in_(_FAILURES), 1), else_=0)).label("failed"),
            func.min(newest.c.sent_at).label("first_at"),
        )
        .group_by(newest.c.from_agent, newest.c.to_agent)
        .order_by(number.desc(), newest.c.from_agent, newest.c.to_agent)
    ).all()
    total = sum(row.messages for row in rows)
    begin = min((row.first_at for row in rows), default=since) if total >= limit else since
    return Flows(
        flows=tuple(
            Flow(from_agent=row.from_agent, to_agent=row.to_agent, messages=row.messages, failed=int(row.failed))
            for row in rows
        ),
        seconds=max((now - begin).total_seconds(), 0.001),
    )
