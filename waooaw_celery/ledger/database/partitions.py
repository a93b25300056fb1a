"""PostgreSQL's partitions of the ledger: a pair a month, made ahead, and dropped whole."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

logger = logging.getLogger(__name__)

#: Months ahead for which partitions are made: a year of retention, and time to notice when nobody makes them.
MONTHS_AHEAD = 14
#: Milliseconds that dropping a partition waits for those who read it, and others behind it.
LOCK_MILLISECONDS = 50
TABLES = ("waooaw_messages", "waooaw_message_events")

#: PostgreSQL's code of the error that a lock could not be had in time.
_LOCK_NOT_AVAILABLE = "55P03"
_NAME = re.compile(r"waooaw_messages_(\d{4})_(\d{2})")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month, in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, moment: datetime) -> Month:
        """Return the month of a moment."""
        return cls(moment.year, moment.month)

    def plus(self, months: int) -> Month:
        """Return the month so many months later."""
        number = self.year * 12 + self.month - 1 + months
        return Month(number // 12, number % 12 + 1)

    @property
    def begin(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The first moment after it."""
        return self.plus(1).begin

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"

    def table(self, parent: str) -> str:
        """Return the name of a table's partition for this month."""
        return f"{parent}_{self.year:04}_{self.month:02}"


def existing(connection: Connection) -> list[Month]:
    """Return the months that have partitions, in order."""
    names = connection.scalars(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'waooaw_messages'::regclass")
    )
    return sorted(Month(int(found[1]), int(found[2])) for name in names if (found := _NAME.fullmatch(name)))


def make_ahead(connection: Connection, now: datetime, months: int = MONTHS_AHEAD) -> list[Month]:
    """Make the partitions of this month and the next ones that are missing, and return their months.

    A month of which messages lie in the default partition already cannot have one any more: its messages stay
    there, and are purged row by row.
    """
    missing = set(map(Month.of(now).plus, range(months + 1))) - set(existing(connection))
    made = []
    for month in sorted(missing):
        try:
            with connection.begin_nested():
                for parent in TABLES:
                    connection.execute(
                        text(
                            f"CREATE TABLE {month.table(parent)} PARTITION OF {parent} "
                            f"FOR VALUES FROM ('{month.begin.isoformat()}') TO ('{month.end.isoformat()}')"
                        )
                    )
        except DBAPIError as error:
            logger.warning("no partition for %s: %s", month, error.orig, extra={"action": "partition_skipped"})
        else:
            made.append(month)
    return made


def drop(connection: Connection, month: Month) -> bool:
    """Drop the partitions of a month, with everything in them, and return whether that could be done.

    Whoever comes while this waits for a reader to end waits behind it; so it gives up soon.
    """
    try:
        with connection.begin_nested():
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_MILLISECONDS}ms'"))
            for parent in reversed(TABLES):
                connection.execute(text(f"DROP TABLE {month.table(parent)}"))
    except OperationalError as error:
        if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True
