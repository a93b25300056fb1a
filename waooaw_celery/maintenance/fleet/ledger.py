"""The ledger itself: its size, its partitions, its last purge, and how late rows arrive."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select, text

from waooaw_celery.app.app import AgentApp
from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageRow, OpenMessageRow, PurgeRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.samples import Samples

#: Newest open messages that are read for the lag.
MAX_NEWEST = 100
#: How the rule of a purge begins, unlike that of an erasure.
_PURGE = "purge:%"
#: The size of each of the ledger's tables, with its indexes; partitions are tables too.
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class
WHERE relkind = 'r' AND relname LIKE 'waooaw\\_%'
  AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'waooaw_messages'::regclass)
"""
_SQLITE_SIZE = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"


class LedgerReader:
    """Reads the state of an application's ledger.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app

    def read(self) -> Samples:
        """Return the state of the ledger.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        samples = Samples()
        database = self._app.database
        with database.begin("read the state of the ledger for the metrics") as connection:
            now = now_in(connection)
            size = connection.scalar(text(_SIZE if database.is_postgresql else _SQLITE_SIZE))
            samples.set(metrics.LEDGER_SIZE, int(size or 0))
            samples.set(metrics.LEDGER_PURGE_AGE, _purge_age(connection, now))
            samples.set(metrics.LEDGER_LAG, _lag(connection))
            if database.is_postgresql:
                months = partitions.existing(connection)
                samples.set(metrics.LEDGER_PARTITIONS, len(months))
                samples.set(metrics.LEDGER_DAYS_AHEAD, days_ahead(months, now))
                overdue = sum(month.end <= now for month in months)
                samples.set(metrics.LEDGER_OVERDUE_PARTITIONS, overdue)
        return samples


def days_ahead(months: list[Month], now: datetime) -> float:
    """Return the days until the end of the last month of a row of months that begins with the present one.

    Args:
        months: the months with partitions.
        now: the time, UTC.
    """
    month, end = Month.of(now), now
    while month in months:
        end, month = month.end, month.plus(1)
    return (end - now) / timedelta(days=1)


def _purge_age(connection: Connection, now: datetime) -> float:
    purged_at = connection.scalar(select(func.max(PurgeRow.at)).where(PurgeRow.rule.like(_PURGE)))
    if purged_at is None:  # a purge is due one day after the first message at the earliest
        first = select(MessageRow.sent_at).order_by(MessageRow.sent_at, MessageRow.message_id).limit(1)
        purged_at = connection.scalar(first)
    return 0.0 if purged_at is None else max((now - purged_at).total_seconds(), 0.0)


def _lag(connection: Connection) -> float:
    newest = select(OpenMessageRow.sent_at, OpenMessageRow.written_at).order_by(
        OpenMessageRow.sent_at.desc(), OpenMessageRow.message_id.desc()
    )
    rows = connection.execute(newest.limit(MAX_NEWEST)).all()
    return max((max((row.written_at - row.sent_at).total_seconds(), 0.0) for row in rows), default=0.0)
