"""Scans messages from newest to oldest (keyset pagination): how a query with filters is answered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, case, false, func, select, true, tuple_, union_all

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.read.reader import UNPUBLISHED_EVENTS, contains_text, message_columns
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.receipt import MessageEvent

#: Most messages that one page scans if no index answers the whole query.
MAX_SCANNED_ROWS = 5_000

#: Returns a condition on a table, or on a subquery with its columns.
Condition: TypeAlias = Callable[[Any], ColumnElement[bool]]

#: The statuses of open messages; a status's index here is its progress.
PROGRESS = (MessageStatus.PENDING, MessageStatus.SENT, MessageStatus.DELIVERED)


class KeysetScan:
    """A scan of messages from newest to oldest, along an index.

    The first ``seek`` that has a value selects the index. All other filters are checked row by row. A scan with
    such filters ends after ``MAX_SCANNED_ROWS`` rows, so that a query does not take longer the larger the ledger
    is; the next page continues.

    Args:
        since: scan messages sent at this time or later.
        until: scan messages sent before this time.
        after: continue after this message: its ``sent_at`` and id.

    Raises:
        InvalidMessage: a time has no time zone.
    """

    def __init__(self, since: datetime | None, until: datetime | None, after: tuple[datetime, str] | None) -> None:
        sent_between(MessageRow, since, until)  # raises for an invalid time
        self._since, self._until, self._after = since, until, after
        #: The table whose index is scanned, and the conditions that the index answers.
        self._table: Any = MessageRow
        self._index_conditions: list[ColumnElement[bool]] = []
        #: The topics that are scanned one by one, each along the index of topics; None: there is one scan.
        self._topics: list[str] | None = None
        #: The conditions to check on a scanned row, and on the message that it belongs to.
        self._row_filters: list[Condition] = []
        self._message_filters: list[Condition] = []
        #: Whether a filter reads payloads.
        self._reads_payloads = False

    def seek(self, column: Any, value: str | None) -> None:
        """Filter by an indexed column: along its index if no other index was selected."""
        if value is None:
            return
        if self._index_conditions or self._table is not MessageRow:
            self.filter(column, value)
        else:
            self._index_conditions.append(column == value)

    def seek_status(self, status: MessageStatus) -> None:
        """Filter by status: along the final events or the open messages if no other index was selected."""
        if self._index_conditions:
            self._row_filters.append(lambda row: has_status(row, status))
        elif status.final:
            self._table = MessageEventRow
            self._index_conditions += [MessageEventRow.event == status.value, MessageEventRow.terminal.is_(true())]
        else:
            self._table = OpenMessageRow
            self._row_filters.append(lambda row: has_status(row, status))

    def filter(self, column: Any, value: Any) -> None:
        """Filter by a column without an index."""
        if value is not None:
            filters = self._row_filters if hasattr(self._table, column.key) else self._message_filters
            filters.append(lambda row: getattr(row, column.key) == value)

    def filter_text(self, text: str | None) -> None:
        """Filter by a text that payloads contain."""
        if text is not None:
            self._reads_payloads = True
            filters = self._row_filters if self._table is MessageRow else self._message_filters
            filters.append(lambda message: contains_text(message, text))

    def filter_topic(self, topics: list[str] | None, condition: Condition) -> None:
        """Filter by a pattern of topics. Call it last: along the index of topics if there is no other filter.

        Args:
            topics: the topics that the pattern matches; None: they are too many.
            condition: whether a message matches the pattern.
        """
        is_only_filter = self._table is MessageRow and not self._index_conditions and not self.may_end_early
        if is_only_filter and topics is not None:
            self._topics = topics
        else:
            filters = self._row_filters if self._table is MessageRow else self._message_filters
            filters.append(condition)

    @property
    def may_end_early(self) -> bool:
        """Whether the scan ends after ``MAX_SCANNED_ROWS`` rows: it has filters that no index answers."""
        return bool(self._row_filters or self._message_filters)

    def query(self, limit: int, *, payloads: bool) -> Select[Any]:
        """Return the query for the newest messages that match.

        Args:
            limit: how many messages at most.
            payloads: whether to read their payloads.
        """
        found = self._scan(*message_columns(payloads=payloads, of=self._table.__table__.columns)).limit(limit)
        if self._topics is not None:
            if not self._topics:
                return found.where(false())
            scans = [found.where(MessageRow.topic == topic).subquery() for topic in self._topics]
            union = union_all(*(select(scan) for scan in scans)).subquery()
            return newest_first(select(union), limit, union.c)
        if self.may_end_early:
            # The subquery bounds what is scanned before the filters apply.
            needed = message_columns(payloads=payloads or self._reads_payloads, of=self._table.__table__.columns)
            scanned = self._scan(*needed).limit(MAX_SCANNED_ROWS).subquery()
            filters = [condition(scanned.c) for condition in self._row_filters]
            if self._message_filters:
                # A scalar subquery: PostgreSQL may start a join with all messages.
                matches = [condition(MessageRow) for condition in self._message_filters]
                message = select(true()).where(same_message(scanned.c), *matches)
                filters.append(message.correlate(scanned).scalar_subquery())
            found = newest_first(
                select(*message_columns(payloads=payloads, of=scanned.c)).where(*filters), limit, scanned.c
            )
        if self._table is MessageRow:
            return found
        keys = found.subquery()
        messages = select(*message_columns(payloads=payloads)).join(keys, same_message(keys.c))
        return newest_first(messages, limit, keys.c)

    def last_scanned(self) -> Select[Any]:
        """Return the query for the message at which the scan ended early; it has no row if it did not."""
        return self._scan(self._table.sent_at, self._table.message_id).offset(MAX_SCANNED_ROWS - 1).limit(1)

    def _scan(self, *columns: Any) -> Select[Any]:
        table = self._table
        query = select(*columns).where(*self._index_conditions, *sent_between(table, self._since, self._until))
        if self._after is not None:
            query = query.where(tuple_(table.sent_at, table.message_id) < self._after)
        return query.order_by(table.sent_at.desc(), table.message_id.desc())


def has_status(message: Any, status: MessageStatus) -> ColumnElement[bool]:
    """Return the condition that a message, or an open message, has a status."""
    if status.final:
        # A scalar subquery: PostgreSQL would turn ``exists`` into a join with all events.
        end = select(MessageEventRow.event).where(same_message(MessageEventRow, message), MessageEventRow.terminal)
        return end.correlate_except(MessageEventRow).scalar_subquery() == status.value
    condition: ColumnElement[bool] = progress(message) == PROGRESS.index(status)
    return condition


def progress(message: Any) -> Any:
    """Return the expression for a message's progress: an index in ``PROGRESS``, or more if it has ended."""
    # By the events' names, not by ``terminal``: the primary key alone answers that.
    final_events = [event.value for event in MessageEvent if event.terminal]
    rank = case(
        (MessageEventRow.event.in_(final_events), len(PROGRESS)),
        (MessageEventRow.event == MessageEvent.DELIVERED.value, 2),
        (MessageEventRow.event.in_(UNPUBLISHED_EVENTS), 0),
        else_=1,
    )
    largest = select(func.coalesce(func.max(rank), 0)).where(same_message(MessageEventRow, message))
    return largest.correlate_except(MessageEventRow).scalar_subquery()


def same_message(row: Any, message: Any = MessageRow) -> ColumnElement[bool]:
    """Return the condition that a row belongs to a message."""
    return and_(row.message_id == message.message_id, row.retain_until == message.retain_until)


def newest_first(query: Any, limit: Any, message: Any = MessageRow) -> Select[Any]:
    """Return a query limited to its newest messages."""
    ordered: Select[Any] = query.order_by(message.sent_at.desc(), message.message_id.desc()).limit(limit)
    return ordered


def sent_between(row: Any, since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Return the conditions that a row's message was sent at ``since`` or later, and before ``until``.

    Raises:
        InvalidMessage: a time has no time zone.
    """
    for time in (since, until):
        if time is not None and time.tzinfo is None:
            raise InvalidMessage("since and until must be aware datetimes, such as datetime.now(UTC)")
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        conditions.append(row.sent_at >= since)
    if until is not None:
        conditions.append(row.sent_at < until)
    return conditions
