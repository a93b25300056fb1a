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
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.receipt import MessageEvent

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: The final statuses that count as errors.
_ERRORS = (MessageStatus.FAILED.value, MessageStatus.DEAD.value)


def read_statistics(
    connection: Connection, since: datetime | None, until: datetime | None, top: int
) -> Statistics:
    """Return the statistics of the messages that were sent within a period.

    Args:
        connection: a connection in a transaction.
        since: messages sent at this time or later; None: from the first one.
        until: messages sent before this time; None: up to now.
        top: how many senders and receivers to return.
    """
    sent = _count_messages(connection, sent_between(MessageRow, since, until))
    events = _count_events(connection, sent_between(MessageEventRow, since, until))
    statuses = {event.value: events[event][0] for event in events if event.terminal and events[event][0]}
    # The record of a published event is not a message that could fail.
    ended = sum(statuses.values()) - statuses.get(MessageStatus.PUBLISHED.value, 0)
    errors = sum(statuses.get(status, 0) for status in _ERRORS)
    statuses |= _count_open(connection, sent_between(OpenMessageRow, since, until))
    return Statistics(
        total=sum(sent["message_type"].values()),
        by_status=dict(sorted(statuses.items())),
        by_type=dict(sorted(sent["message_type"].items())),
        top_senders=_most_frequent(sent["from_agent"], top),
        top_receivers=_most_frequent(sent["to_agent"], top),
        delivery=events[MessageEvent.DELIVERED][1],
        handling=events[MessageEvent.HANDLED][1],
        error_rate=errors / ended if ended else None,
    )


def _count_messages(connection: Connection, in_period: Sequence[ColumnElement[bool]]) -> dict[str, Counter[str]]:
    """Return the number of messages by type, by sender and by receiver."""
    columns = (MessageRow.message_type, MessageRow.from_agent, MessageRow.to_agent)
    counts: dict[str, Counter[str]] = {column.key: Counter() for column in columns}
    query = select(*columns, func.count()).where(*in_period).group_by(*columns)
    for *values, number in connection.execute(query):
        for counter, value in zip(counts.values(), values, strict=True):
            counter[value] += number
    del counts["to_agent"][NO_RECIPIENT]
    return counts


def _count_events(
    connection: Connection, in_period: Sequence[ColumnElement[bool]]
) -> dict[MessageEvent, tuple[int, Durations]]:
    """Return for each event but SENT how often it was recorded, and the percentiles of its durations."""
    counts: dict[MessageEvent, tuple[int, Durations]] = {}
    # One query for each event: a query that groups by event makes PostgreSQL sort all rows.
    for event in (event for event in MessageEvent if event is not MessageEvent.SENT):
        conditions = [*in_period, MessageEventRow.event == event.value]
        if event is MessageEvent.DELIVERED:
            conditions.append(MessageEventRow.attempt == 1)
        if connection.dialect.name == "postgresql":
            shares = literal(list(PERCENTILES.values()), ARRAY(Float))
            percentiles = func.percentile_disc(shares).within_group(MessageEventRow.seconds)
            count, values = connection.execute(select(func.count(), percentiles).where(*conditions)).one()
            counts[event] = count, Durations(**dict(zip(PERCENTILES, values or [None] * 3, strict=True)))
        else:
            query = select(MessageEventRow.seconds).where(*conditions).order_by(MessageEventRow.seconds)
            seconds = connection.scalars(query).all()
            counts[event] = len(seconds), _durations([second for second in seconds if second is not None])
    return counts


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
