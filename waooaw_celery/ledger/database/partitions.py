"""The monthly partitions of the ledger in PostgreSQL: created ahead of time, and dropped by a purge."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Months ahead for which partitions are created: one year of retention, and two months to notice that the periodic
#: task does not run.
MONTHS_AHEAD = 14
#: Milliseconds that dropping a partition waits for its readers. Other statements queue behind it meanwhile.
LOCK_MILLISECONDS = 50
TABLES = ("waooaw_messages", "waooaw_message_events")

#: PostgreSQL's error code for a lock that was not granted in time.
_LOCK_NOT_AVAILABLE = "55P03"
_NAME = re.compile(r"waooaw_messages_(\d{4})_(\d{2})")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month, in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, time: datetime) -> Month:
        """Return the month of a time in UTC."""
        return cls(time.year, time.month)

    def plus(self, months: int) -> Month:
        """Return the month that is ``months`` later."""
        number = self.year * 12 + self.month - 1 + months
        return Month(number // 12, number % 12 + 1)

    @property
    def begin(self) -> datetime:
        """When the month starts."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """When the next month starts."""
        return self.plus(1).begin

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"

    def table(self, parent: str) -> str:
        """Return the name of the partition of a table for this month."""
        return f"{parent}_{self.year:04}_{self.month:02}"


def existing(connection: Connection) -> list[Month]:
    """Return the months that have partitions, the earliest first."""
    names = connection.scalars(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'waooaw_messages'::regclass")
    )
    return sorted(Month(int(found[1]), int(found[2])) for name in names if (found := _NAME.fullmatch(name)))


def make_ahead(connection: Connection, now: datetime, months: int = MONTHS_AHEAD) -> list[Month]:
    """Create the missing partitions of this month and of the following ones.

    A month that already has messages in the default partition cannot get a partition. Its messages stay there, and
    a purge deletes them row by row.

    Args:
        connection: in a transaction on PostgreSQL.
        now: the current time, UTC.
        months: how many months after this one.

    Returns:
        The months whose partitions were created.
    """
    missing = set(map(Month.of(now).plus, range(months + 1))) - set(existing(connection))
    created = []
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
            logger.warning(
                "could not create the partition for %s, so its rows go to the default partition: %s",
                month,
                error.orig,
                extra={"action": "partition_skipped"},
            )
        else:
            created.append(month)
    return created


def drop(connection: Connection, month: Month) -> bool:
    """Drop the partitions of a month with all their rows.

    Statements that arrive while this waits for a reader queue behind it. So it gives up after
    ``LOCK_MILLISECONDS``.

    Returns:
        Whether the partitions were dropped. False: a reader held them.
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
