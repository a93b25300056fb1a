"""The purge: removes messages whose retention has ended, by dropping months or deleting rows in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, text
from sqlalchemy.orm import aliased

from waooaw_celery.errors import ClockSkew
from waooaw_celery.ledger.database import clock as database_clock
from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import InboxRow, MessageEventRow, MessageRow, OpenMessageRow, RefusalRow
from waooaw_celery.ledger.read.reader import group_by_month, in_partition
from waooaw_celery.ledger.read.scan import same_message
from waooaw_celery.ledger.retention.holds import has_held_message, is_held
from waooaw_celery.ledger.retention.removal import (
    BATCH_SIZE,
    DEADLINE_SECONDS,
    Removal,
    record_removal,
    removing,
)
from waooaw_celery.ledger.retention.workflows import count_expired_workflows, purge_workflows
from waooaw_celery.ledger.write.statements import close_ended
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.store.clock_reading import MAX_SKEW_SECONDS, Source, difference, read

#: Seconds that a whole purge may take, and hold its lock.
PURGE_DEADLINE_SECONDS = 86_400.0
#: How long refusals are kept.
REFUSALS_RETENTION = timedelta(days=90)
#: How long inbox entries are kept: no broker redelivers a message later than that.
INBOX_RETENTION = timedelta(days=30)
#: Attempts to drop a month that somebody reads, and the seconds between them.
DROP_ATTEMPTS = 5
DROP_PAUSE_SECONDS = 0.2
#: The key of the advisory lock that a purge holds: "waooaw" in ASCII.
_LOCK_KEY = 0x77616F6F6177


class Purge:
    """One purge of the ledger.

    Args:
        database: the ledger's database.
        witnesses: clocks to compare with those of the database and of this computer, by name.
    """

    def __init__(self, database: Database, witnesses: Mapping[str, Source]) -> None:
        self._database, self._witnesses = database, witnesses

    def run(
        self,
        now: datetime | None,
        *,
        dry_run: bool,
        despite_skew: bool,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Removal:
        """Remove what is over. See ``Retention.purge``."""
        if now is None and not dry_run and not despite_skew:
            self._check_clocks()
        at = now or self._database_time()
        rule = f"purge: retained until {at.isoformat(timespec='seconds')}"
        if dry_run:
            return self._count(rule, at)
        with self._lock() as is_locked:
            if not is_locked:
                return Removal(rule=rule, busy=True)
            dropped = self._drop_months(at)
            before = sum(count for count, _ in dropped)

            def told(deleted: int) -> None:
                if on_progress is not None:
                    on_progress(before + deleted, None)

            messages, events = self._delete_messages(at, told)
            events += self._delete_refusals(at) + self._delete_inbox(at)
            workflows = purge_workflows(self._database, at)
            removal = Removal(
                rule=rule,
                messages=before + messages,
                events=sum(count for _, count in dropped) + events,
                partitions=len(dropped),
                workflows=workflows,
            )
            record_removal(self._database, removal, at)
            return removal

    def _database_time(self) -> datetime:
        with self._database.begin("read the database's time") as connection:
            return database_clock.now_in(connection)

    def _check_clocks(self) -> None:
        """Check that no two clocks disagree by more than a minute.

        Raises:
            ClockSkew: two of them do.
        """
        source = database_clock.source_of(self._database)
        clocks = ({} if source is None else {database_clock.NAME: source}) | dict(self._witnesses)
        readings = [read(name, clock) for name, clock in clocks.items()]
        local = "this computer"
        offsets = [(0.0, 0.0, local), *((-each.ahead, each.error, each.name) for each in readings)]
        fastest, slowest = max(offsets), min(offsets)
        skew = fastest[0] - slowest[0]
        if skew - fastest[1] - slowest[1] > MAX_SKEW_SECONDS:
            authority = local if source is None else database_clock.NAME
            raise ClockSkew(
                f"nothing was purged: the clock of {fastest[2]} is {difference(skew)} that of {slowest[2]}, and "
                "a purge by a wrong clock removes messages too early. Set the wrong clock (NTP). If you know that "
                f"the clock of {authority} is right, run `waooaw purge --despite-skew`"
            )

    def _count(self, rule: str, at: datetime) -> Removal:
        """Return what a purge would remove."""
        # A purge first removes the logged messages from the open ones.
        is_over = and_(MessageRow.retain_until <= at, or_(_has_ended(), _was_logged(MessageRow)), ~is_held())
        events = select(func.count()).select_from(MessageEventRow).join(MessageRow, same_message(MessageEventRow))
        with removing(self._database, "count what a purge would remove") as connection:
            return Removal(
                rule=rule,
                messages=connection.scalar(select(func.count()).where(is_over)) or 0,
                events=connection.scalar(events.where(is_over)) or 0,
                workflows=count_expired_workflows(connection, at),
            )

    def _drop_months(self, at: datetime) -> list[tuple[int, int]]:
        """Drop the partitions of past months without messages to keep; return each one's messages and events."""
        if not self._database.is_postgresql:
            return []
        dropped = []
        with self._database.begin("look for months to drop") as connection:
            months = [month for month in partitions.existing(connection) if month.end <= at]
        for month in months:
            # Counting takes longer than the drop, which locks the tables: so it comes first.
            with removing(self._database, f"count the rows of {month}") as connection:
                _close(connection, at)
                if _must_stay(connection, month):
                    continue
                counts = [
                    connection.scalar(select(func.count()).select_from(text(month.table(table)))) or 0
                    for table in partitions.TABLES
                ]
            if self._drop(month):
                dropped.append((counts[0], counts[1]))
        return dropped

    def _drop(self, month: partitions.Month) -> bool:
        """Drop a month's partitions; return False if a message in it must stay, or somebody keeps reading it."""
        for attempt in range(DROP_ATTEMPTS):
            if attempt:
                time.sleep(DROP_PAUSE_SECONDS)
            with removing(self._database, f"drop the partitions of {month}") as connection:
                if _must_stay(connection, month):
                    return False
                if partitions.drop(connection, month):
                    return True
        return False

    def _delete_messages(self, at: datetime, told: Callable[[int], None]) -> tuple[int, int]:
        """Delete messages and their events in batches; return how many of each."""
        messages = events = 0
        last_id = ""
        with removing(self._database, "look for messages to purge") as connection:
            _close(connection, at)
        while True:
            with removing(self._database, "purge messages") as connection:
                # Starting after the last id skips the dead rows that earlier batches left.
                query = select(MessageRow.message_id, MessageRow.retain_until).where(
                    MessageRow.retain_until <= at, _has_ended(), ~is_held(), MessageRow.message_id > last_id
                )
                batch = connection.execute(query.order_by(MessageRow.message_id).limit(BATCH_SIZE))
                keys = [(key.message_id, key.retain_until) for key in batch]
                if not keys:
                    return messages, events
                last_id = keys[-1][0]
                for month in group_by_month(keys):
                    events += _delete(connection, MessageEventRow, in_partition(MessageEventRow, month))
                    messages += _delete(connection, MessageRow, in_partition(MessageRow, month))
            told(messages)

    def _delete_inbox(self, at: datetime) -> int:
        with self._database.begin("purge the inbox", DEADLINE_SECONDS) as connection:
            return _delete(connection, InboxRow, InboxRow.handled_at <= at - INBOX_RETENTION)

    def _delete_refusals(self, at: datetime) -> int:
        with self._database.begin("purge refusals", DEADLINE_SECONDS) as connection:
            return _delete(connection, RefusalRow, RefusalRow.minute <= at - REFUSALS_RETENTION)

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Keep other purges out while the block runs; yields False if another one runs.

        SQLite needs no lock: it has one writer, and each batch is one transaction of it.
        """
        if not self._database.is_postgresql:
            yield True
            return
        with self._database.begin("take the lock of the purge", PURGE_DEADLINE_SECONDS) as connection:
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))))


def _delete(connection: Connection, table: Any, condition: ColumnElement[bool]) -> int:
    """Delete rows, and return how many."""
    return connection.execute(delete(table).where(condition)).rowcount


def _close(connection: Connection, at: datetime) -> None:
    """Remove from the open messages what a purge may remove: messages that have ended, and logged ones.

    Nobody reports the end of a message that was only logged, so that it may never end.
    """
    close_ended(connection)
    is_over = select(MessageRow.message_id).where(
        same_message(MessageRow, OpenMessageRow), MessageRow.retain_until <= at, ~is_held()
    )
    connection.execute(delete(OpenMessageRow).where(_was_logged(OpenMessageRow), is_over.exists()))


def _was_logged(message: Any) -> ColumnElement[bool]:
    """Whether a message was recorded with ``log_message``."""
    events = aliased(MessageEventRow)  # the query around it may read the events too
    return exists().where(same_message(events, message), events.event == MessageEvent.LOGGED.value)


def _must_stay(connection: Connection, month: partitions.Month) -> bool:
    """Whether a month contains a message that is open or on hold."""
    is_open = and_(OpenMessageRow.retain_until >= month.begin, OpenMessageRow.retain_until < month.end)
    return bool(connection.scalar(select(exists().where(is_open)))) or has_held_message(connection, month)


def _has_ended() -> ColumnElement[bool]:
    """Whether a message is not open."""
    return ~exists().where(OpenMessageRow.message_id == MessageRow.message_id)
