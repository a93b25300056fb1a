"""A walk through the ledger, from the newest message to the oldest: how a question with filters is answered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, case, func, select, true, tuple_

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.read.reader import NO_PUBLISH, contains_text
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.receipt import MessageEvent

#: Messages that one page looks at, where no index answers the whole question.
MAX_SCANNED_ROWS = 5_000

#: Makes a condition of a row, or of what has its columns.
RowCheck: TypeAlias = Callable[[Any], ColumnElement[bool]]

#: How far a message that has not ended can have come.
PROGRESS = (MessageStatus.PENDING, MessageStatus.SENT, MessageStatus.DELIVERED)


class KeysetScan:
    """A walk through the ledger from the newest message to the oldest, along an index.

    Filters that an index answers lead the walk; the others are checked on the way. So that no question takes
    longer the larger the ledger is, a walk with checks ends after ``LOOK`` messages, and the next page goes on.
    """

    def __init__(self, since: datetime | None, until: datetime | None, after: tuple[datetime, str] | None) -> None:
        #: What is checked on the way: of a row of the index that leads, and of the message itself.
        self._near: list[RowCheck] = []
        self._far: list[RowCheck] = []
        self._since, self._until, self._after = since, until, after
        self._along: Any = MessageRow
        self._lead: list[ColumnElement[bool]] = []
        between(MessageRow, since, until)  # wrong moments are refused now

    def to(self, column: Any, value: str | None) -> None:
        """Be led by a column with an index, or check it when something else leads."""
        if value is None:
            return
        if self._lead or self._along is not MessageRow:
            self.check(column, value)
        else:
            self._lead.append(column == value)

    def check(self, column: Any, value: Any) -> None:
        """Check a column without an index."""
        if value is not None:
            checks = self._near if hasattr(self._along, column.key) else self._far
            checks.append(lambda row: getattr(row, column.key) == value)

    def check_text(self, text: str | None) -> None:
        """Check what payloads contain."""
        if text is not None:
            checks = self._near if self._along is MessageRow else self._far
            checks.append(lambda message: contains_text(message, text))

    @property
    def may_end_early(self) -> bool:
        """Whether it ends after ``LOOK`` messages, since it checks something."""
        return bool(self._near or self._far)

    def to_status(self, status: MessageStatus) -> None:
        """Be led by the end of messages, or by the open ones, unless something else leads already."""
        if self._lead:
            self._near.append(lambda row: has_status(row, status))
        elif status.final:
            self._along = MessageEventRow
            self._lead += [MessageEventRow.event == status.value, MessageEventRow.terminal.is_(true())]
        else:
            self._along = OpenMessageRow
            self._near.append(lambda row: has_status(row, status))

    def query(self, limit: int) -> Select[Any]:
        """Return the query for the first messages of the walk that fit."""
        found = self._steps(*self._along.__table__.columns).limit(limit)
        if self.may_end_early:
            # What the walk looks at is chosen first and checked then: it may not look any further.
            looked = self._steps(*self._along.__table__.columns).limit(MAX_SCANNED_ROWS).subquery()
            fits = [check(looked.c) for check in self._near]
            if self._far:
                # A value and not a join, which PostgreSQL may begin with all messages.
                message = select(true()).where(equals(looked.c), *(check(MessageRow) for check in self._far))
                fits.append(message.correlate(looked).scalar_subquery())
            found = newest_first(select(looked).where(*fits), limit, looked.c)
        if self._along is MessageRow:
            return found
        keys = found.subquery()
        return newest_first(select(MessageRow.__table__).join(keys, equals(keys.c)), limit, keys.c)

    def end(self) -> Select[Any]:
        """Return the query for the last message that the walk looked at, when it did not come to the end."""
        return self._steps(self._along.sent_at, self._along.message_id).offset(MAX_SCANNED_ROWS - 1).limit(1)

    def _steps(self, *columns: Any) -> Select[Any]:
        along = self._along
        steps = select(*columns).where(*self._lead, *between(along, self._since, self._until))
        if self._after is not None:
            steps = steps.where(tuple_(along.sent_at, along.message_id) < self._after)
        return steps.order_by(along.sent_at.desc(), along.message_id.desc())


def has_status(message: Any, status: MessageStatus) -> ColumnElement[bool]:
    """Whether the newest fact of a message, or of an open message, is this."""
    if status.final:
        # A value and not ``exists``, which PostgreSQL would turn to a join with all events.
        end = select(MessageEventRow.event).where(equals(MessageEventRow, message), MessageEventRow.terminal)
        return end.correlate_except(MessageEventRow).scalar_subquery() == status.value
    fits: ColumnElement[bool] = progress(message) == PROGRESS.index(status)
    return fits


def progress(message: Any) -> Any:
    """How far a message has come: an index of ``PROGRESS``, or beyond it when it has ended."""
    # By the event and not by ``terminal``: the primary key alone answers.
    ends = [event.value for event in MessageEvent if event.terminal]
    rank = case(
        (MessageEventRow.event.in_(ends), len(PROGRESS)),
        (MessageEventRow.event == MessageEvent.DELIVERED.value, 2),
        (MessageEventRow.event.in_(NO_PUBLISH), 0),
        else_=1,
    )
    known = select(func.coalesce(func.max(rank), 0)).where(equals(MessageEventRow, message))
    return known.correlate_except(MessageEventRow).scalar_subquery()


def equals(row: Any, message: Any = MessageRow) -> ColumnElement[bool]:
    """Whether a row is of a message."""
    return and_(row.message_id == message.message_id, row.retain_until == message.retain_until)


def newest_first(query: Any, limit: Any, message: Any = MessageRow) -> Select[Any]:
    """Return a query's newest messages."""
    ordered: Select[Any] = query.order_by(message.sent_at.desc(), message.message_id.desc()).limit(limit)
    return ordered


def between(row: Any, since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Whether a row's message was sent in a stretch of time.

    Raises:
        InvalidMessage: a moment has no time zone.
    """
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise InvalidMessage("since and until must be aware datetimes, such as datetime.now(UTC)")
    clauses: list[ColumnElement[bool]] = []
    if since is not None:
        clauses.append(row.sent_at >= since)
    if until is not None:
        clauses.append(row.sent_at < until)
    return clauses
