"""Statistics of messages: counts, durations and the error rate of a period."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Float, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY

from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.read.records import Durations, Statistics
from waooaw_celery.ledger.read.scan import PROGRESS, progress, sent_between
from waooaw_celery.messages.enums import RECORDS, MessageStatus
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.receipt import MessageEvent

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: The events whose durations are returned.
_TIMED = (MessageEvent.DELIVERED, MessageEvent.HANDLED)
#: The final statuses that count as errors.
_ERRORS = (MessageStatus.FAILED.value, MessageStatus.DEAD.value)


def read_statistics(
    connection: Connection, since: datetime | None, until: datetime | None, top: int
) -> Statistics:
    """Return the statistics of the messages that were sent within a period.

    Args:
        connection: a connection in a transaction without a statement so far.
        since: messages sent at this time or later; None: from the first one.
        until: messages sent before this time; None: up to now.
        top: how many senders and receivers to return.
    """
    _begin_snapshot(connection)
    sent = _count_messages(connection, sent_between(MessageRow, since, until))
    event_sent = sent_between(MessageEventRow, since, until)
    counts = _count_events(connection, event_sent)
    # One query for each of them: a query that groups by event makes PostgreSQL sort all rows.
    timed = {event: _time_events(connection, event_sent, event) for event in _TIMED}
    counts |= {event: count for event, (count, _) in timed.items()}
    statuses = {event.value: count for event, count in counts.items() if event.terminal and count}
    # The record of a published event, or of an answer, is not a message that could fail.
    ended = sum(number for status, number in statuses.items() if status not in RECORDS)
    errors = sum(statuses.get(status, 0) for status in _ERRORS)
    statuses |= _count_open(connection, sent_between(OpenMessageRow, since, until))
    return Statistics(
        total=sum(sent["message_type"].values()),
        by_status=dict(sorted(statuses.items())),
        by_type=dict(sorted(sent["message_type"].items())),
        top_senders=_most_frequent(sent["from_agent"], top),
        top_receivers=_most_frequent(sent["to_agent"], top),
        delivery=timed[MessageEvent.DELIVERED][1],
        handling=timed[MessageEvent.HANDLED][1],
        error_rate=errors / ended if ended else None,
    )


def _begin_snapshot(connection: Connection) -> None:
    """Let all queries of a transaction see one state: their counts agree while messages are recorded."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    else:
        connection.exec_driver_sql("BEGIN")  # Python's driver begins a transaction for changes only


def _count_messages(connection: Connection, in_period: Sequence[ColumnElement[bool]]) -> dict[str, Counter[str]]:
    """Return the number of messages by type, by sender and by receiver."""
    counts: dict[str, Counter[str]] = {}
    # One query for each column: all pairs of senders and receivers would be many rows.
    for column in (MessageRow.message_type, MessageRow.from_agent, MessageRow.to_agent):
        rows = connection.execute(select(column, func.count()).where(*in_period).group_by(column))
        counts[column.key] = Counter(dict(rows.all()))
    del counts["to_agent"][NO_RECIPIENT]
    return counts


def _count_events(connection: Connection, in_period: Sequence[ColumnElement[bool]]) -> dict[MessageEvent, int]:
    """Return how often each event was recorded, except SENT and those of ``_TIMED``."""
    others = [event.value for event in MessageEvent if event not in (MessageEvent.SENT, *_TIMED)]
    conditions = [*in_period, MessageEventRow.event.in_(others)]
    query = select(MessageEventRow.event, func.count()).where(*conditions).group_by(MessageEventRow.event)
    return {MessageEvent(event): number for event, number in connection.execute(query)}


def _time_events(
    connection: Connection, in_period: Sequence[ColumnElement[bool]], event: MessageEvent
) -> tuple[int, Durations]:
    """Return how often an event was recorded, and the percentiles of its durations."""
    conditions = [*in_period, MessageEventRow.event == event.value]
    if event is MessageEvent.DELIVERED:
        conditions.append(MessageEventRow.attempt == 1)
    if connection.dialect.name == "postgresql":
        shares = literal(list(PERCENTILES.values()), ARRAY(Float))
        percentiles = func.percentile_disc(shares).within_group(MessageEventRow.seconds)
        count, values = connection.execute(select(func.count(), percentiles).where(*conditions)).one()
        return count, Durations(**dict(zip(PERCENTILES, values or [None] * 3, strict=True)))
    query = select(MessageEventRow.seconds).where(*conditions).order_by(MessageEventRow.seconds)
    seconds = connection.scalars(query).all()
    return len(seconds), _durations([second for second in seconds if second is not None])


def _count_open(connection: Connection, in_period: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """Return the number of open messages by status."""
    ranks = select(progress(OpenMessageRow).label("progress")).select_from(OpenMessageRow).where(*in_period)
    found = ranks.subquery()
    query = select(found.c.progress, func.count().label("number")).where(found.c.progress < len(PROGRESS))
    rows = connection.execute(query.group_by(found.c.progress))
    return {PROGRESS[row.progress].value: row.number for row in rows}


def _most_frequent(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """Return the most frequent values with their counts; ties are in alphabetical order."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]


def _durations(ordered: Sequence[float]) -> Durations:
    """Return percentiles by the nearest rank, as PostgreSQL's ``percentile_disc`` does."""
    values = {
        name: ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
        for name, share in PERCENTILES.items()
    }
    return Durations(**values)
