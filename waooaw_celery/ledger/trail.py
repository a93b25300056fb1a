"""The questions that the ledger answers: who told whom what, and what became of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Select,
    and_,
    bindparam,
    func,
    literal,
    select,
    union,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from waooaw_celery.broker.application import refuse_app
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow, RefusalRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.reader import follow_indexes, read_records
from waooaw_celery.ledger.read.records import AuditRecord, Durations, Page, Refusal, Statistics
from waooaw_celery.ledger.read.scan import PROGRESS, KeysetScan, between, newest_first, progress
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.message import NOBODY, Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent, MessageFact
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.validation import check_agent_name, check_id

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: The ends that are errors.
_ERRORS = (MessageStatus.FAILED.value, MessageStatus.DEAD.value)
#: Most messages that one page of a query may hold.
MAX_PAGE = 1000
#: Seconds that statistics may take, which look at every message of their time: no other question grows like that.
STATISTICS_DEADLINE_SECONDS = 60.0
#: How far back a history may go: a hundred years.
MAX_DAYS = 36_500


class MessageAuditTrail:
    """The ledger and its questions.

    Every method raises AuditUnavailable when the database does not answer.

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = refuse_app(ledger, "MessageAuditTrail", "ledger")

    def query(
        self,
        *,
        from_agent: str | None = None,
        to_agent: str | None = None,
        message_type: MessageType | None = None,
        status: MessageStatus | None = None,
        priority: Priority | None = None,
        correlation_id: str | None = None,
        topic: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        limit: int = 100,
        after: tuple[datetime, str] | None = None,
    ) -> Page:
        """Return messages that fit all filters, newest first.

        A page looks at no more than 5,000 messages where a filter has no index (type, priority, text, a status
        that is not final, and the second of several filters): it may hold fewer than the limit, and ``after`` goes
        on.

        Args:
            from_agent: sent by this agent.
            to_agent: sent to this agent.
            message_type: of this type.
            status: whose newest fact is this.
            priority: of this priority.
            correlation_id: of this thread.
            topic: of events on this topic: their records, and the messages to their subscribers.
            since: sent at this moment or later.
            until: sent before this moment.
            text: whose payload, as JSON text, contains this, in any case.
            limit: how many at most, 1 to 1000.
            after: go on where a page ended: its ``after``.

        Raises:
            InvalidMessage: a name or an id can be none, a moment has no time zone, or the limit is out of range.
        """
        _check_limit(limit)
        for agent, what in ((from_agent, "from_agent"), (to_agent, "to_agent")):
            if agent is not None:
                check_agent_name(agent, what)
        if correlation_id is not None:
            check_id(correlation_id, "correlation_id")
        walk = KeysetScan(since, until, after)
        if topic is not None:
            check_topic(topic)
        walk.to(MessageRow.correlation_id, correlation_id)
        walk.to(MessageRow.topic, topic)
        # The open messages are few, but most messages have one of the ends.
        if status is not None and not MessageStatus(status).final:
            walk.to_status(MessageStatus(status))
        walk.to(MessageRow.to_agent, to_agent)
        walk.to(MessageRow.from_agent, from_agent)
        if status is not None and MessageStatus(status).final:
            walk.to_status(MessageStatus(status))
        walk.check(MessageRow.message_type, message_type and MessageType(message_type).value)
        walk.check(MessageRow.priority, None if priority is None else Priority.of(priority).rank)
        walk.check_text(text)
        with self._asking("query the ledger") as connection:
            if walk.may_end_early:
                follow_indexes(connection)
            records = read_records(connection, walk.query(limit + 1))
            if len(records) > limit:
                last = records[limit - 1].receipt
                return Page(records=records[:limit], after=(last.sent_at, last.message_id))
            end = connection.execute(walk.end()).first() if walk.may_end_early else None
        return Page(records=records, after=(end.sent_at, end.message_id) if end else None)

    def conversation(self, id_: str) -> list[AuditRecord]:
        """Return all messages of a conversation in causal order: each after the one whose handler sent it.

        Args:
            id_: id of any message of it, its correlation id, or its conversation id.

        Raises:
            UnknownMessage: the ledger has nothing of this id.
            InvalidMessage: this cannot be an id.
        """
        check_id(id_, "id")
        # Three questions that an index answers each, and not one with "or".
        named = [
            select(MessageRow.conversation_id).where(column == id_)
            for column in (MessageRow.message_id, MessageRow.correlation_id, MessageRow.conversation_id)
        ]
        query = select(MessageRow.__table__).where(MessageRow.conversation_id.in_(union(*named)))
        with self._asking("read a conversation") as connection:
            records = read_records(connection, query.order_by(MessageRow.sent_at, MessageRow.message_id))
        if not records:
            raise UnknownMessage(f"the ledger has no message, thread or conversation {id_!r}")
        return _causal(records)

    def history(self, agent: str, days: float = 7, *, limit: int = 100) -> list[AuditRecord]:
        """Return what an agent sent and received in the last days, newest first.

        Args:
            agent: its name.
            days: how far back.
            limit: how many messages at most, 1 to 1000.

        Raises:
            InvalidMessage: this can be no agent's name, or the days or the limit are out of range.
        """
        check_agent_name(agent)
        _check_limit(limit)
        if not 0 < days <= MAX_DAYS:
            raise InvalidMessage(f"days must be more than 0 and at most {MAX_DAYS}, not {days}")
        with self._asking(f"read the history of {agent!r}") as connection:
            since = now_in(connection) - timedelta(days=days)
            return read_records(connection, _history(), {"agent": agent, "since": since, "limit": limit})

    def refusals(
        self, agent: str | None = None, *, since: datetime | None = None, limit: int = 100
    ) -> list[Refusal]:
        """Return the messages that rate limits refused, by agent, rule and minute, newest first.

        Args:
            agent: only those of this agent.
            since: in the minute of this moment or later.
            limit: how many rows at most, 1 to 1000.

        Raises:
            InvalidMessage: this can be no agent's name, or the limit is out of range.
        """
        _check_limit(limit)
        number = func.sum(RefusalRow.count).label("number")
        keys = (RefusalRow.minute, RefusalRow.agent, RefusalRow.rule)
        query = select(*keys, number).group_by(*keys).order_by(keys[0].desc(), *keys[1:])
        if agent is not None:
            query = query.where(RefusalRow.agent == check_agent_name(agent))
        if since is not None:
            query = query.where(RefusalRow.minute >= since.replace(second=0, microsecond=0))
        with self._asking("read what was refused") as connection:
            return [
                Refusal(agent=row.agent, rule=row.rule, minute=row.minute, count=int(row.number))
                for row in connection.execute(query.limit(limit))
            ]

    def statistics(
        self, since: datetime | None = None, until: datetime | None = None, *, top: int = 5
    ) -> Statistics:
        """Return counts, durations and the error rate of the messages sent in a stretch of time.

        It looks at all of them, and takes as long as they are many; AuditUnavailable is raised after a minute.

        Args:
            since: sent at this moment or later; None: from the beginning.
            until: sent before this moment; None: up to now.
            top: how many senders and receivers to name.
        """
        with self._asking("work out statistics", STATISTICS_DEADLINE_SECONDS) as connection:
            said = _counts(connection, between(MessageRow, since, until))
            told = self._ends(connection, between(MessageEventRow, since, until))
            status = {event.value: told[event][0] for event in MessageEvent if event.terminal and told[event][0]}
            # The record of an event is nobody's message, and nothing could go wrong with it.
            ended = sum(status.values()) - status.get(MessageStatus.PUBLISHED.value, 0)
            status |= _open_statuses(connection, between(OpenMessageRow, since, until))
        return Statistics(
            total=sum(said["message_type"].values()),
            by_status=dict(sorted(status.items())),
            by_type=dict(sorted(said["message_type"].items())),
            top_senders=_top(said["from_agent"], top),
            top_receivers=_top(said["to_agent"], top),
            delivery=told[MessageEvent.DELIVERED][1],
            handling=told[MessageEvent.HANDLED][1],
            error_rate=sum(status.get(name, 0) for name in _ERRORS) / ended if ended else None,
        )

    def receipt(self, message_id: str) -> AuditRecord:
        """Return everything that the ledger has of one message.

        Raises:
            UnknownMessage: it has nothing.
            InvalidMessage: this cannot be an id.
        """
        check_id(message_id, "message_id")
        with self._asking("read a message") as connection:
            records = read_records(
                connection, select(MessageRow.__table__).where(MessageRow.message_id == message_id)
            )
        if not records:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return records[0]

    def log_message(self, message: Message) -> bool:
        """Write a message down, unless the ledger has it already, and return whether it had not.

        Sending does this by itself; this is for what went another way.
        """
        # Nobody knows how it went: it is never published again.
        besides = {message.message_id: PublishOptions(repeatable=False)}
        return bool(self._ledger.pending([(message, message.message_type.value)], besides=besides)())

    def update_status(self, message_id: str, status: MessageStatus, error: str | None = None) -> DeliveryReceipt:
        """Add what became of a message, and return its receipt.

        Workers do this by themselves; this is for what went another way. What the ledger knows already is not
        added again, and nothing is added to a message that has ended.

        Args:
            message_id: of which message.
            status: what is known now.
            error: why, for FAILED.

        Raises:
            UnknownMessage: the ledger has no such message.
        """
        record = self.receipt(message_id)
        news = MessageStatus(status)
        known = {MessageStatus.PENDING.value, *(event.event for event in record.events)}
        if not record.receipt.status.final and news.value not in known:
            attempt = record.receipt.attempts + (news is MessageStatus.DELIVERED)
            fact = MessageFact(message_id=message_id, event=MessageEvent(news.value), attempt=attempt, error=error)
            self._ledger.note(fact)
        return self._ledger.get(message_id)

    @contextmanager
    def _asking(self, what: str, patience: float | None = None) -> Iterator[Connection]:
        """Give a connection that sees what this process has written."""
        self._ledger.flush()
        with self._ledger.database.begin(what, patience) as connection:
            yield connection

    def _ends(
        self, connection: Connection, when: Sequence[ColumnElement[bool]]
    ) -> dict[MessageEvent, tuple[int, Durations]]:
        """Return for each event how often it was, and percentiles of its durations by the nearest rank."""
        found: dict[MessageEvent, tuple[int, Durations]] = {}
        # One event after the other: to group them, PostgreSQL would compare each with the next.
        # SENT is not asked for: every message was, but for a moment.
        for event in (event for event in MessageEvent if event is not MessageEvent.SENT):
            which = [*when, MessageEventRow.event == event.value]
            if event is MessageEvent.DELIVERED:
                which.append(MessageEventRow.attempt == 1)
            if self._ledger.database.is_postgresql:
                shares = literal(list(PERCENTILES.values()), ARRAY(Float))
                percentiles = func.percentile_disc(shares).within_group(MessageEventRow.seconds)
                count, values = connection.execute(select(func.count(), percentiles).where(*which)).one()
                found[event] = count, Durations(**dict(zip(PERCENTILES, values or [None] * 3, strict=True)))
            else:
                query = select(MessageEventRow.seconds).where(*which).order_by(MessageEventRow.seconds)
                seconds = connection.scalars(query).all()
                found[event] = len(seconds), _durations([second for second in seconds if second is not None])
        return found


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidMessage(f"limit must be 1 to {MAX_PAGE}, not {limit}")


@cache
def _history() -> Select[Any]:
    """Return the query for what an agent sent and received. It is made once, which takes a while."""
    agent: ColumnElement[str] = bindparam("agent")
    since: ColumnElement[datetime] = bindparam("since")
    limit = bindparam("limit", type_=Integer)
    # Two questions that an index answers each, and not one with "or", which none answers in order.
    sides = [
        newest_first(select(MessageRow.__table__).where(side, MessageRow.sent_at >= since), limit).subquery()
        for side in (
            MessageRow.from_agent == agent,
            and_(MessageRow.to_agent == agent, MessageRow.from_agent != agent),
        )
    ]
    both = union_all(*map(select, sides)).subquery()
    return newest_first(select(both), limit, both.c)


def _causal(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Put each message behind the one that caused it; clocks of several computers may disagree about that."""
    known = {record.receipt.message_id for record in records}
    children: dict[str | None, list[AuditRecord]] = {}
    for record in records:
        children.setdefault(record.causation_id if record.causation_id in known else None, []).append(record)
    ordered: list[AuditRecord] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        record = waiting.pop()
        ordered.append(record)
        waiting.extend(reversed(children.get(record.receipt.message_id, [])))
    return ordered


def _counts(connection: Connection, when: Sequence[ColumnElement[bool]]) -> dict[str, Counter[str]]:
    """Return how many messages there are of each type, of each sender, to each receiver."""
    columns = (MessageRow.message_type, MessageRow.from_agent, MessageRow.to_agent)
    counts: dict[str, Counter[str]] = {column.key: Counter() for column in columns}
    for *values, number in connection.execute(select(*columns, func.count()).where(*when).group_by(*columns)):
        for counter, value in zip(counts.values(), values, strict=True):
            counter[value] += number
    del counts["to_agent"][NOBODY]
    return counts


def _open_statuses(connection: Connection, when: Sequence[ColumnElement[bool]]) -> dict[str, int]:
    """Return how many of the messages that have not ended are of each status."""

    facts = select(progress(OpenMessageRow).label("progress")).select_from(OpenMessageRow).where(*when).subquery()
    query = select(facts.c.progress, func.count().label("number")).group_by(facts.c.progress)
    return {
        PROGRESS[row.progress].value: row.number
        for row in connection.execute(query.where(facts.c.progress < len(PROGRESS)))
    }


def _top(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """Return the most frequent, ties in alphabetical order."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]


def _durations(ordered: Sequence[float]) -> Durations:
    values = {
        name: ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
        for name, share in PERCENTILES.items()
    }
    return Durations(**values)
