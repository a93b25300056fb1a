"""The questions that the ledger answers: who told whom what, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, String, cast, func, or_, select, tuple_

from waooaw_celery.audit.engine import Database
from waooaw_celery.audit.models import EventRow, MessageRow
from waooaw_celery.audit.questions import receipt_from, receipts_query, status_column
from waooaw_celery.audit.records import AuditEvent, AuditRecord, Durations, Page, Statistics
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.message import MessageStatus, MessageType, Priority

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: Most messages that one page of a query may hold.
MAX_PAGE = 1000


class MessageAuditTrail:
    """The ledger and its questions.

    Every method raises AuditUnavailable when the database does not answer.

    Args:
        database: where the ledger's tables are, such as ``app.database``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def query(
        self,
        *,
        from_agent: str | None = None,
        to_agent: str | None = None,
        message_type: MessageType | None = None,
        status: MessageStatus | None = None,
        priority: Priority | None = None,
        correlation_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        limit: int = 100,
        after: tuple[datetime, str] | None = None,
    ) -> Page:
        """Return messages that fit all filters, newest first.

        Args:
            from_agent: sent by this agent.
            to_agent: sent to this agent.
            message_type: of this type.
            status: whose newest fact is this.
            priority: of this priority.
            correlation_id: of this thread.
            since: sent at this moment or later.
            until: sent before this moment.
            text: whose payload, as JSON text, contains this, in any case.
            limit: how many at most, 1 to 1000.
            after: go on where a page ended: its ``after``.

        Raises:
            InvalidMessage: a moment has no time zone, or the limit is out of range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidMessage(f"limit must be 1 to {MAX_PAGE}, not {limit}")
        equal = {
            MessageRow.from_agent: from_agent,
            MessageRow.to_agent: to_agent,
            MessageRow.message_type: message_type and MessageType(message_type).value,
            MessageRow.priority: None if priority is None else Priority.of(priority).rank,
            MessageRow.correlation_id: correlation_id,
        }
        query = receipts_query().where(*(column == value for column, value in equal.items() if value is not None))
        query = query.where(*_between(since, until))
        if status is not None:
            query = query.where(status_column() == MessageStatus(status).value)
        if text is not None:
            query = query.where(cast(MessageRow.payload, String).icontains(text, autoescape=True))
        if after is not None:
            query = query.where(tuple_(MessageRow.sent_at, MessageRow.message_id) < after)
        query = query.order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc()).limit(limit + 1)
        records = self._records(query, "query the ledger")
        if len(records) <= limit:
            return Page(records=records, after=None)
        last = records[limit - 1].receipt
        return Page(records=records[:limit], after=(last.sent_at, last.message_id))

    def conversation(self, id_: str) -> list[AuditRecord]:
        """Return all messages of a conversation in causal order: each after the one whose handler sent it.

        Args:
            id_: id of any message of it, its correlation id, or its conversation id.

        Raises:
            UnknownMessage: the ledger has nothing of this id.
        """
        named = or_(
            MessageRow.message_id == id_, MessageRow.correlation_id == id_, MessageRow.conversation_id == id_
        )
        conversations = select(MessageRow.conversation_id).where(named)
        query = receipts_query().where(MessageRow.conversation_id.in_(conversations))
        records = self._records(query.order_by(MessageRow.sent_at, MessageRow.message_id), "read a conversation")
        if not records:
            raise UnknownMessage(f"the ledger has no message, thread or conversation {id_!r}")
        return _causal(records)

    def history(self, agent: str, days: float = 7, *, limit: int = 100) -> list[AuditRecord]:
        """Return what an agent sent and received in the last days, newest first.

        Args:
            agent: its name.
            days: how far back.
            limit: how many messages at most.
        """
        mine = or_(MessageRow.from_agent == agent, MessageRow.to_agent == agent)
        query = receipts_query().where(mine, MessageRow.sent_at >= datetime.now(UTC) - timedelta(days=days))
        query = query.order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc()).limit(limit)
        return self._records(query, f"read the history of {agent!r}")

    def statistics(
        self, since: datetime | None = None, until: datetime | None = None, *, top: int = 5
    ) -> Statistics:
        """Return counts, durations and the error rate of the messages sent in a stretch of time.

        Args:
            since: sent at this moment or later; None: from the beginning.
            until: sent before this moment; None: up to now.
            top: how many senders and receivers to name.
        """
        facts = receipts_query().where(*_between(since, until)).subquery()
        with self._database.begin("work out statistics") as connection:
            status = dict(_counts(connection, facts.c.status))
            ended = sum(status.get(end.value, 0) for end in MessageStatus if end.final)
            handled = facts.c.status == MessageStatus.HANDLED.value
            return Statistics(
                total=sum(status.values()),
                by_status=dict(sorted(status.items())),
                by_type=dict(sorted(_counts(connection, facts.c.message_type))),
                top_senders=_counts(connection, facts.c.from_agent)[:top],
                top_receivers=_counts(connection, facts.c.to_agent)[:top],
                delivery=self._durations(connection, facts.c.sent_at, facts.c.delivered_at),
                handling=self._durations(connection, facts.c.delivered_at, facts.c.finished_at, handled),
                error_rate=status.get(MessageStatus.FAILED.value, 0) / ended if ended else None,
            )

    def receipt(self, message_id: str) -> AuditRecord:
        """Return everything that the ledger has of one message.

        Raises:
            UnknownMessage: it has nothing.
        """
        records = self._records(receipts_query().where(MessageRow.message_id == message_id), "read a message")
        if not records:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return records[0]

    def _durations(
        self,
        connection: Connection,
        begin: ColumnElement[Any],
        end: ColumnElement[Any],
        *which: ColumnElement[bool],
    ) -> Durations:
        """Return percentiles by the nearest rank, worked out by PostgreSQL, or here for SQLite."""
        where = (begin.is_not(None), end.is_not(None), *which)
        if self._database.is_postgresql:
            seconds = func.greatest(func.extract("epoch", end - begin), 0)
            shares = [func.percentile_disc(share).within_group(seconds) for share in PERCENTILES.values()]
            values: Sequence[Any] = connection.execute(select(*shares).where(*where)).one()
        else:
            moments = connection.execute(select(begin, end).where(*where))
            ordered = sorted(max((late - early).total_seconds(), 0.0) for early, late in moments)
            values = [ordered[math.ceil(p * len(ordered)) - 1] if ordered else None for p in PERCENTILES.values()]
        numbers = [None if value is None else float(value) for value in values]
        return Durations(**dict(zip(PERCENTILES, numbers, strict=True)))

    def _records(self, query: Select[Any], what: str) -> list[AuditRecord]:
        with self._database.begin(what) as connection:
            rows = connection.execute(query).all()
            keys = [(row.message_id, row.retain_until) for row in rows]
            events: dict[str, list[AuditEvent]] = {}
            for start in range(0, len(keys), MAX_PAGE):
                found = connection.execute(
                    select(EventRow.__table__)
                    .where(EventRow.message_id.in_([id_ for id_, _ in keys[start : start + MAX_PAGE]]))
                    .order_by(EventRow.at, EventRow.terminal, EventRow.attempt)
                )
                for event in found:
                    events.setdefault(event.message_id, []).append(_event(event))
        return [_record(row, events.get(row.message_id, [])) for row in rows]


def _between(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise InvalidMessage("since and until must be aware datetimes, such as datetime.now(UTC)")
    clauses: list[ColumnElement[bool]] = []
    if since is not None:
        clauses.append(MessageRow.sent_at >= since)
    if until is not None:
        clauses.append(MessageRow.sent_at < until)
    return clauses


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


def _event(row: Row[Any]) -> AuditEvent:
    return AuditEvent(event=row.event, attempt=row.attempt, at=row.at, worker=row.worker, error=row.error)


def _record(row: Row[Any], events: list[AuditEvent]) -> AuditRecord:
    return AuditRecord(
        receipt=receipt_from(row),
        payload=row.payload,
        payload_digest=row.payload_digest,
        conversation_id=row.conversation_id,
        causation_id=row.causation_id,
        expires_at=row.expires_at,
        retain_until=row.retain_until,
        erased_at=row.erased_at,
        events=tuple(events),
    )


def _counts(connection: Connection, column: ColumnElement[str]) -> list[tuple[str, int]]:
    """Return how many rows there are of each value, the most frequent first."""
    number = func.count()
    rows = connection.execute(select(column, number).group_by(column).order_by(number.desc(), column))
    return [(str(value), int(count)) for value, count in rows]
