"""A walk through the ledger, from the newest message to the oldest: how a question with filters is answered."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, select, true, tuple_

from waooaw_celery.audit.models import EventRow, MessageRow, OpenRow
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.message import MessageStatus
from waooaw_celery.receipts import Event

#: Messages that one page looks at, where no index answers the whole question.
LOOK = 5_000


class Walk:
    """A walk through the ledger from the newest message to the oldest, along an index.

    Filters that an index answers lead the walk; the others are checked on the way. So that no question takes
    longer the larger the ledger is, a walk with checks ends after ``LOOK`` messages, and the next page goes on.
    """

    def __init__(self, since: datetime | None, until: datetime | None, after: tuple[datetime, str] | None) -> None:
        self.checks: list[ColumnElement[bool]] = []
        self._since, self._until, self._after = since, until, after
        self._along: Any = MessageRow
        self._lead: list[ColumnElement[bool]] = []
        between(MessageRow, since, until)  # wrong moments are refused now

    def to(self, column: Any, value: str | None) -> None:
        """Be led by a column with an index, or check it when something else leads."""
        if value is None:
            return
        if self._lead or self._along is not MessageRow:
            self.checks.append(column == value)
        else:
            self._lead.append(column == value)

    def check(self, column: Any, value: Any) -> None:
        """Check a column without an index."""
        if value is not None:
            self.checks.append(column == value)

    def to_status(self, status: MessageStatus) -> None:
        """Be led by the end of messages, or by the open ones."""
        if self._lead:
            self.checks.append(has_status(status))
        elif status.final:
            self._along = EventRow
            self._lead += [EventRow.event == status.value, EventRow.terminal.is_(true())]
        else:
            self._along = OpenRow
            self.checks.append(has_status(status))

    def query(self, limit: int) -> Select[Any]:
        """Return the query for the first messages of the walk that fit."""
        steps = self._steps()
        if self.checks:
            steps = steps.limit(LOOK)
        keys = steps.subquery() if self.checks else steps.limit(limit).subquery()
        query = select(MessageRow.__table__).join(keys, same(keys.c)).where(*self.checks)
        return newest(query, limit)

    def end(self) -> Select[Any]:
        """Return the query for the last message that the walk looked at, when it did not come to the end."""
        return self._steps().offset(LOOK - 1).limit(1)

    def _steps(self) -> Select[Any]:
        along = self._along
        steps = select(along.message_id, along.retain_until, along.sent_at)
        steps = steps.where(*self._lead, *between(along, self._since, self._until))
        if self._after is not None:
            steps = steps.where(tuple_(along.sent_at, along.message_id) < self._after)
        return steps.order_by(along.sent_at.desc(), along.message_id.desc())


def has_status(status: MessageStatus) -> ColumnElement[bool]:
    """Whether the newest fact of a message is this."""
    if status.final:
        return exists().where(same(EventRow), EventRow.event == status.value, EventRow.terminal.is_(true()))

    def told(which: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(same(EventRow), which)

    begun = told(EventRow.event == Event.DELIVERED.value)
    ended = told(EventRow.terminal.is_(true()))
    if status is MessageStatus.DELIVERED:
        return and_(begun, ~ended)
    known = told(true())
    return and_(~begun, ~ended, known if status is MessageStatus.SENT else ~known)


def same(row: Any) -> ColumnElement[bool]:
    """Whether a row is of the same message."""
    return and_(row.message_id == MessageRow.message_id, row.retain_until == MessageRow.retain_until)


def newest(query: Any, limit: int) -> Select[Any]:
    """Return a query's newest messages."""
    ordered: Select[Any] = query.order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc()).limit(limit)
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
