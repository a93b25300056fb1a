"""What the ledger forgets, and what it must not: purge, legal hold, erasure. Each writes down what it did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    text,
    update,
)

from waooaw_celery.errors import ClockSkew, InvalidMessage
from waooaw_celery.ledger.database import clock as database_time
from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import (
    HoldRow,
    InboxRow,
    MessageEventRow,
    MessageRow,
    OpenMessageRow,
    PurgeRow,
    RefusalRow,
)
from waooaw_celery.ledger.database.rows import storable
from waooaw_celery.ledger.read.reader import by_month, contains_text, in_partition
from waooaw_celery.ledger.write.statements import close_ended
from waooaw_celery.messages.validation import check_agent_name, check_id
from waooaw_celery.store.clock_reading import MOST_SKEW, Source, difference, read

#: Messages removed in one transaction where rows are deleted: locks are held for a tenth of a second.
BATCH = 1_000
#: Seconds that one statement of a purge or an erasure may take.
DEADLINE_SECONDS = 600.0
#: Seconds that a whole purge may take, and its lock be held.
PURGE_DEADLINE_SECONDS = 86_400.0
#: How long it is kept what rate limits refused.
REFUSALS_KEPT = timedelta(days=90)
#: How long it is remembered which effects happened: no broker hands a message out again after that.
INBOX_KEPT = timedelta(days=30)
#: How often, and with how many seconds between, it is tried to drop a month that somebody reads.
DROP_ATTEMPTS = 5
DROP_PAUSE = 0.2
#: Key of the advisory lock under which one purge runs at a time: "waooaw" in ASCII.
_LOCK = 0x77616F6F6177


class HoldKind(StrEnum):
    """What a legal hold names."""

    MESSAGE = "message"
    CONVERSATION = "conversation"
    AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A legal hold.

    Attributes:
        kind: what it names.
        value: which one: an id or an agent's name.
        reason: why, for whoever asks later.
        placed_at: since when.
    """

    kind: HoldKind
    value: str
    reason: str
    placed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a purge or an erasure did, or would do.

    Attributes:
        rule: by which rule.
        messages: how many messages it concerned.
        events: how many events.
        partitions: how many months were dropped whole.
        busy: whether another purge was running, so that this one did nothing.
    """

    rule: str
    messages: int = 0
    events: int = 0
    partitions: int = 0
    busy: bool = False


class Retention:
    """Purges, holds and erases in the ledger.

    Every method raises AuditUnavailable when the database does not answer.

    Args:
        database: where the ledger's tables are.
        witnesses: clocks that a purge compares beside the database's and this computer's, by name.
    """

    def __init__(self, database: Database, witnesses: Mapping[str, Source] | None = None) -> None:
        self._database = database
        self._witnesses = dict(witnesses or {})

    def prepare(self, now: datetime | None = None) -> int:
        """Make the partitions of the coming months on PostgreSQL, and return how many were made."""
        if not self._database.is_postgresql:
            return 0
        with self._database.begin("make partitions") as connection:
            return len(partitions.make_ahead(connection, now or database_time.now_in(connection)))

    def purge(self, now: datetime | None = None, *, dry_run: bool = False, despite_skew: bool = False) -> Removal:
        """Remove the messages whose retention is over.

        What has not ended, and what is on legal hold, stays. On PostgreSQL a month of which nothing must stay is
        dropped at once; the rest is deleted in small batches. One purge runs at a time.

        Args:
            now: the moment that counts; None: this one, by the database's clock.
            dry_run: only tell what would be removed.
            despite_skew: purge also when the clocks disagree.

        Raises:
            ClockSkew: no moment is given, and two clocks, of the database's, this computer's and the witnesses',
                disagree by more than a minute: one is wrong, and nothing was removed.
            StoreUnavailable: a witness does not answer, so that nothing was removed.
        """
        if now is None and not dry_run and not despite_skew:
            self._check_clocks()
        at = now or self._now()
        rule = f"purge: retained until {at.isoformat(timespec='seconds')}"
        if dry_run:
            with self._cleaning("count what a purge would remove") as connection:
                return self._count(connection, rule, at)
        with self._alone() as alone:
            if not alone:
                return Removal(rule=rule, busy=True)
            dropped = self._drop_months(at)
            deleted_messages, deleted_events = self._delete_rows(at)
            deleted_events += self._delete_refusals(at) + self._delete_inbox(at)
            removal = Removal(
                rule=rule,
                messages=sum(messages for messages, _ in dropped) + deleted_messages,
                events=sum(events for _, events in dropped) + deleted_events,
                partitions=len(dropped),
            )
            self._write_down(removal, at)
            return removal

    def hold(self, kind: HoldKind, value: str, reason: str) -> None:
        """Keep what this names from being purged or erased, until it is released.

        Raises:
            InvalidMessage: the value cannot be what it names, or there is no reason.
        """
        check = check_agent_name if kind is HoldKind.AGENT else check_id
        check(value, kind.value)
        if not reason.strip():
            raise InvalidMessage("a hold needs a reason, for whoever asks later")
        if storable(reason) != reason:
            raise InvalidMessage("the reason of a hold must be text without NUL and halves of surrogate pairs")
        with self._database.begin("place a legal hold") as connection:
            connection.execute(delete(HoldRow).where(HoldRow.kind == kind.value, HoldRow.value == value))
            placed_at = database_time.now_in(connection)
            row = {"kind": kind.value, "value": value, "reason": reason, "placed_at": placed_at}
            connection.execute(insert(HoldRow).values(row))

    def release(self, kind: HoldKind, value: str) -> bool:
        """Release a hold, and return whether there was one."""
        with self._database.begin("release a legal hold") as connection:
            where = (HoldRow.kind == kind.value, HoldRow.value == value)
            return connection.execute(delete(HoldRow).where(*where)).rowcount > 0

    def holds(self) -> list[Hold]:
        """Return the holds that stand, the oldest first."""
        with self._database.begin("list the legal holds") as connection:
            rows = connection.execute(select(HoldRow.__table__).order_by(HoldRow.placed_at)).all()
        return [
            Hold(kind=HoldKind(row.kind), value=row.value, reason=row.reason, placed_at=row.placed_at)
            for row in rows
        ]

    def erase(self, *, agent: str | None = None, containing: str | None = None) -> Removal:
        """Blank payloads and error texts, and keep the facts and the digests.

        Args:
            agent: of all messages that this agent sent or got.
            containing: of all messages whose payload, as JSON text, contains this: a name, an address.

        Raises:
            InvalidMessage: not exactly one of the two is given.
        """
        if (agent is None) == (not containing):
            raise InvalidMessage("erase takes an agent, or a text that payloads contain")
        which: ColumnElement[bool]
        if agent is not None:
            rule = f"erase: agent {check_agent_name(agent)}"
            which = or_(MessageRow.from_agent == agent, MessageRow.to_agent == agent)
        else:
            rule = "erase: payloads that contain a given text"  # which is not written down: it is what is erased
            which = contains_text(MessageRow, str(containing))
        at = self._now()
        with self._cleaning("erase payloads") as connection:
            keys = connection.execute(
                select(MessageRow.message_id, MessageRow.retain_until).where(
                    which, MessageRow.erased_at.is_(None), ~_held()
                )
            ).all()
            events = 0
            for start in range(0, len(keys), BATCH):
                for month in by_month((key.message_id, key.retain_until) for key in keys[start : start + BATCH]):
                    mine, theirs = in_partition(MessageRow, month), in_partition(MessageEventRow, month)
                    connection.execute(update(MessageRow).where(mine).values(payload=null(), erased_at=at))
                    mentioned = InboxRow.message_id.in_([message_id for message_id, _ in month])
                    connection.execute(update(InboxRow).where(mentioned).values(result=null()))
                    told = (
                        update(MessageEventRow)
                        .where(theirs, MessageEventRow.error.is_not(None))
                        .values(error=None)
                    )
                    events += connection.execute(told).rowcount
        removal = Removal(rule=rule, messages=len(keys), events=events)
        self._write_down(removal, at)
        return removal

    def _now(self) -> datetime:
        with self._database.begin("tell the time") as connection:
            return database_time.now_in(connection)

    def _check_clocks(self) -> None:
        """Check that the clocks agree.

        Raises:
            ClockSkew: two of them do not.
        """
        own = database_time.source_of(self._database)
        clocks = {} if own is None else {database_time.NAME: own}
        readings = [read(name, source) for name, source in {**clocks, **self._witnesses}.items()]
        local = "this computer"
        ahead = [(0.0, 0.0, local), *((-each.ahead, each.error, each.name) for each in readings)]
        last, first = max(ahead), min(ahead)
        if last[0] - first[0] - last[1] - first[1] > MOST_SKEW:
            raise ClockSkew(
                f"nothing was purged: the clock of {last[2]} is {difference(last[0] - first[0])} that of "
                f"{first[2]}, and a wrong clock would remove what is to be kept. Set it (NTP), or, when "
                f"you know that that of {local if own is None else database_time.NAME} is right, run "
                "`waooaw purge --despite-skew`"
            )

    def _drop_months(self, at: datetime) -> list[tuple[int, int]]:
        """Drop the months that are over and of which nothing must stay; return how much was in each."""
        if not self._database.is_postgresql:
            return []
        dropped = []
        with self._database.begin("look for months to drop") as connection:
            months = [month for month in partitions.existing(connection) if month.end <= at]
        for month in months:
            # Counted before, since that takes longer than the drop, which keeps others out.
            with self._cleaning(f"count what is in {month}") as connection:
                close_ended(connection)
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
        """Drop a month and return True, unless something in it must stay or somebody reads on and on."""
        for attempt in range(DROP_ATTEMPTS):
            if attempt:
                time.sleep(DROP_PAUSE)
            with self._cleaning(f"drop the partitions of {month}") as connection:
                if _must_stay(connection, month):
                    return False
                if partitions.drop(connection, month):
                    return True
        return False

    def _delete_rows(self, at: datetime) -> tuple[int, int]:
        messages = events = 0
        last = ""
        with self._cleaning("look for messages to purge") as connection:
            close_ended(connection)
        while True:
            with self._cleaning("purge messages") as connection:
                over = select(MessageRow.message_id, MessageRow.retain_until).where(
                    MessageRow.retain_until <= at, _purgeable(), MessageRow.message_id > last
                )
                # Going on behind the last one spares each batch what the batches before it left to be vacuumed.
                batch = connection.execute(over.order_by(MessageRow.message_id).limit(BATCH))
                keys = [(key.message_id, key.retain_until) for key in batch]
                if not keys:
                    return messages, events
                last = keys[-1][0]
                for month in by_month(keys):
                    events += connection.execute(
                        delete(MessageEventRow).where(in_partition(MessageEventRow, month))
                    ).rowcount
                    messages += connection.execute(
                        delete(MessageRow).where(in_partition(MessageRow, month))
                    ).rowcount

    def _delete_inbox(self, at: datetime) -> int:
        with self._database.begin("purge the inbox", DEADLINE_SECONDS) as connection:
            return connection.execute(delete(InboxRow).where(InboxRow.handled_at <= at - INBOX_KEPT)).rowcount

    def _delete_refusals(self, at: datetime) -> int:
        with self._database.begin("purge refusals", DEADLINE_SECONDS) as connection:
            return connection.execute(delete(RefusalRow).where(RefusalRow.minute <= at - REFUSALS_KEPT)).rowcount

    def _count(self, connection: Connection, rule: str, at: datetime) -> Removal:
        over = and_(MessageRow.retain_until <= at, _purgeable())
        events = (
            select(func.count()).select_from(MessageEventRow).join(MessageRow, _same(MessageEventRow)).where(over)
        )
        return Removal(
            rule=rule,
            messages=connection.scalar(select(func.count()).where(over)) or 0,
            events=connection.scalar(events) or 0,
        )

    def _write_down(self, removal: Removal, at: datetime) -> None:
        with self._database.begin("write down what was removed") as connection:
            row = {"at": at, "rule": removal.rule, "messages": removal.messages, "events": removal.events}
            connection.execute(insert(PurgeRow).values(row))

    @contextmanager
    def _cleaning(self, what: str) -> Iterator[Connection]:
        """Give a transaction that may take its time, and during which nobody places a hold."""
        with self._database.begin(what, DEADLINE_SECONDS) as connection:
            if self._database.is_postgresql:
                connection.execute(text("LOCK TABLE waooaw_holds IN SHARE MODE"))
            yield connection

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Tell whether no other purge runs, and keep others out while the block runs.

        On SQLite two purges take turns by themselves: each batch is one transaction of the only writer.
        """
        if not self._database.is_postgresql:
            yield True
            return
        with self._database.begin("take the lock of the purge", PURGE_DEADLINE_SECONDS) as connection:
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))))


def _must_stay(connection: Connection, month: partitions.Month) -> bool:
    """Whether a month holds a message that has not ended, or is on hold."""
    inside = and_(OpenMessageRow.retain_until >= month.begin, OpenMessageRow.retain_until < month.end)
    if connection.scalar(select(exists().where(inside))):
        return True
    for hold in connection.execute(select(HoldRow.kind, HoldRow.value)).all():
        named = or_(*(column == hold.value for column in _NAMED[HoldKind(hold.kind)]))
        mine = and_(MessageRow.retain_until >= month.begin, MessageRow.retain_until < month.end, named)
        if connection.scalar(select(exists().where(mine))):
            return True
    return False


def _purgeable() -> ColumnElement[bool]:
    """Whether a message has ended and no hold is on it."""
    return and_(~exists().where(OpenMessageRow.message_id == MessageRow.message_id), ~_held())


def _same(event: Any) -> ColumnElement[bool]:
    """Whether an event belongs to the message."""
    return and_(event.message_id == MessageRow.message_id, event.retain_until == MessageRow.retain_until)


def _held() -> Any:
    return exists().where(
        or_(
            *(
                and_(HoldRow.kind == kind.value, HoldRow.value == column)
                for kind, columns in _NAMED.items()
                for column in columns
            )
        )
    )


#: The columns in which a hold of each kind names messages.
_NAMED: dict[HoldKind, tuple[Any, ...]] = {
    HoldKind.MESSAGE: (MessageRow.message_id,),
    HoldKind.CONVERSATION: (MessageRow.conversation_id,),
    HoldKind.AGENT: (MessageRow.from_agent, MessageRow.to_agent),
}
