"""The ledger as the keeper of receipts: what is said, before it is published, and what becomes of it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, exists, func, select, true

from waooaw_celery.errors import AuditUnavailable, ConfigurationError, UnknownMessage
from waooaw_celery.ledger import cancellations as cancels
from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database, database_errors_as, database_identity
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.database.rows import (
    LedgerRow,
    delivery_row,
    event_row,
    keyed_event_row,
    message_rows,
    published_event_rows,
    sent_row,
)
from waooaw_celery.ledger.read.reader import read_records
from waooaw_celery.ledger.refusals import Refusals
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.ledger.write.statements import close_ended, write
from waooaw_celery.ledger.write.writer import LedgerWriter
from waooaw_celery.messages.message import DeliveryReceipt, Message, RetentionPolicy
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.receipt import NO_PROGRESS, SWEEP_GRACE, MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.validation import check_id
from waooaw_celery.settings import AuditMode
from waooaw_celery.store.reference_clock import ReferenceClock

logger = logging.getLogger(__name__)


class Ledger(ReceiptStore):
    """Receipts kept in the ledger's tables. Writing the same fact twice changes nothing.

    Args:
        database: where the tables are.
        retention: how long a message is kept that does not say so itself.
        mode: STRICT: what is not in the ledger is not published, and the end of a message is safe before it is
            acknowledged. BATCHED: both are on their way, and a process that is killed loses what it noted in its
            last twentieth of a second; or, when it notes more than the database takes, what waits in its memory.
        spool_folder: where facts wait while the database is away; None: among the system's temporary files.
        lost_seconds: how long after it was begun a message counts as lost whose end nobody reported.
        clock: the time for what this process writes down; None: this computer's.
    """

    def __init__(
        self,
        database: Database,
        retention: RetentionPolicy,
        mode: AuditMode = AuditMode.STRICT,
        spool_folder: str | None = None,
        lost_seconds: float = 3600.0,
        clock: ReferenceClock | None = None,
    ) -> None:
        self._clock = clock or ReferenceClock()
        self.database = database
        self.spool = Spool(spool_folder, database.url.render_as_string(hide_password=False))
        self._retention = retention
        self._strict = mode is AuditMode.STRICT
        self._lost = timedelta(seconds=lost_seconds)
        #: What this process, and the children that it forks, know of facts that can be written nowhere.
        self.recording = Recording()
        self._writer: LedgerWriter | None = None
        self._lock = threading.Lock()
        #: Engines of others that reach the same database.
        self._same: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._refusals = Refusals(self._tell, self._seconds)
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _call(me, Ledger._forget_writer))
        atexit.register(lambda: _call(me, Ledger.finish))

    def start(self) -> None:
        """Ship from now on what waits in the spool."""
        self._the_writer().start()

    def pending(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        besides: Mapping[str, PublishOptions] | None = None,
        *,
        follows: bool = False,
    ) -> Callable[[], set[str]]:
        entries = message_rows(messages, self._retention, besides)
        if record is not None:
            entries += published_event_rows(record, self._retention, self._clock.now())
        if self._strict:
            return self._the_writer().begin(entries, may_spool=follows)
        self._the_writer().put(entries, wait=False)
        return lambda: {entry.message_id for entry in entries}

    def entrust(self, messages: Sequence[tuple[Message, str]], connection: Connection) -> set[str]:
        """Write messages down in a transaction of somebody else, and return the ids of those that are new.

        Args:
            messages: which, each with the name of its handler.
            connection: in a transaction on the ledger's database.

        Raises:
            ConfigurationError: it is connected to another database.
            AuditUnavailable: the database does not take them.
        """
        with database_errors_as("write messages down in your transaction"):
            self._check_same(connection)
            besides = options_of_messages((message for message, _ in messages), None)
            return write(connection, message_rows(messages, self._retention, besides)).new

    def written(self, message_ids: Sequence[str], connection: Connection | None = None) -> set[str]:
        """Return which of these messages are in the ledger.

        Args:
            message_ids: which messages.
            connection: a connection in a transaction to ask over; None: one of the ledger's own.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        there = select(OpenMessageRow.message_id).where(OpenMessageRow.message_id.in_(message_ids))
        what = "look for what was committed"
        if connection is not None:
            with database_errors_as(what):
                return set(connection.scalars(there))
        with self.database.begin(what) as mine:
            return set(mine.scalars(there))

    def _check_same(self, connection: Connection) -> None:
        """Check, once for each engine, that a connection is to the ledger's own tables."""
        if self.database.owns(connection) or connection.engine in self._same:
            return
        with self.database.begin("tell which database the ledger is in") as mine:
            same = database_identity(mine) == database_identity(connection)
        if not same:
            raise ConfigurationError(
                f"the session is on {connection.engine.url!r}, and the ledger is another database or schema: a "
                "message is sent in a transaction only of the database that waooaw_database_url names"
            )
        self._same.add(connection.engine)

    def note(self, *facts: MessageFact) -> None:
        self._the_writer().put([event_row(self._dated(fact), self._retention) for fact in facts], wait=self._waits)

    @property
    def _waits(self) -> bool:
        """Whether what becomes of a message is safe before it is acknowledged."""
        return self._strict or self.recording.fails

    def check_recording(self) -> None:
        """Find out whether what becomes of messages could be written down now: in the ledger, or in the spool.

        Raises:
            AuditUnavailable: it could not.
        """
        self._the_writer().check()

    def begin(self, fact: MessageFact, *, doubtful: bool) -> bool:
        if self._strict:
            # The statement that is waited for anyway answers.
            entries = [delivery_row(self._dated(fact), self._retention)]
            return not self._the_writer().put(entries, wait=True, keep=False)
        twice = doubtful and self._has_ended(fact.message_id)
        told = replace(fact, event=MessageEvent.DUPLICATE, seconds=None) if twice else fact
        if self.recording.fails:
            self._the_writer().put([event_row(self._dated(told), self._retention)], wait=True, keep=False)
        else:
            self.note(told)
        if doubtful:  # if this worker ends as well, it is to be known
            self.flush()
        return not twice

    def _has_ended(self, message_id: str) -> bool:
        end = exists().where(MessageEventRow.message_id == message_id, MessageEventRow.terminal)
        try:
            self.flush()
            with self.database.begin(f"ask whether {message_id} has ended") as connection:
                return bool(connection.scalar(select(end)))
        except AuditUnavailable as error:  # twice is better than never
            extra = {"action": "duplicate_not_known", "message_id": message_id}
            logger.warning("%s: it may be handled twice", error, extra=extra)
            return False

    def sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        # That the broker has them is news, not evidence: the messages themselves are in the ledger.
        now = self._clock.now()
        entries = [sent_row(message, now, self._retention) for message in messages]

        def note() -> None:
            self._the_writer().put(entries, wait=False)

        return note

    def refused(self, agent: str, rule: str, count: int) -> None:
        self._refusals.add(agent, rule, count)

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        self.flush()
        with self.database.begin(f"read the receipt of {message_id}") as connection:
            found = read_records(
                connection, select(MessageRow.__table__).where(MessageRow.message_id == message_id)
            )
        if not found:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return found[0].receipt

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        query = select(MessageRow.__table__).order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc())
        if since is not None:
            query = query.where(MessageRow.sent_at >= since)
        self.flush()
        with self.database.begin("read the receipts") as connection:
            return [record.receipt for record in read_records(connection, query.limit(limit))][::-1]

    def sweep(self) -> list[str]:
        overdue = OpenMessageRow.expires_at < now_within(self.database) - timedelta(seconds=SWEEP_GRACE)
        with self.database.begin("forget what need not be cancelled") as connection:
            cancels.forget(connection)
        return self._close_open("sweep expired messages", overdue & ~_running(), MessageEvent.EXPIRED)

    def reconcile(self, *, recovered: bool = False) -> list[str]:
        """Mark as FAILED what was begun and of whose end no worker told in time, and return the ids.

        A worker that was killed tells nothing; if the broker hands its message out again, that is a new beginning.

        Args:
            recovered: whether a recovery runs, which sees to those messages that can be published again.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        now = now_within(self.database)
        begun = select(func.max(MessageEventRow.at)).where(
            _belongs(), MessageEventRow.event == MessageEvent.DELIVERED.value
        )
        past = OpenMessageRow.expires_at.is_not(None) & (OpenMessageRow.expires_at < now)
        mine = OpenMessageRow.unrepeatable | past if recovered else true()
        lost = _running() & mine & (begun.scalar_subquery() < now - self._lost)
        sentence = f"lost: begun more than {self._lost.total_seconds():g} s ago, and no worker told of the end"
        return self._close_open("look for lost messages", lost, MessageEvent.FAILED, sentence)

    def _close_open(self, what: str, which: Any, event: MessageEvent, error: str | None = None) -> list[str]:
        """Give open messages their end, and return the ids of those that had none."""
        with self.database.begin(what) as connection:
            close_ended(connection)
            rows = connection.execute(select(OpenMessageRow.__table__).where(which)).all()
            now = now_in(connection)
            facts = [MessageFact(message_id=row.message_id, event=event, at=now, error=error) for row in rows]
            entries = [
                keyed_event_row(fact, row.retain_until, row.sent_at) for fact, row in zip(facts, rows, strict=True)
            ]
            return sorted(write(connection, facts=entries).ended) if entries else []

    def request_cancel(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        sentence = f"by {by}" + (", also when its handler runs" if running else "")
        fact = MessageFact(message_id=receipt.message_id, event=MessageEvent.CANCEL_REQUESTED, error=sentence)
        with self.database.begin(f"record that {receipt.message_id} is to be cancelled") as connection:
            cancels.request(connection, replace(fact, at=now_in(connection)), running)

    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        with self.database.begin("read what is to be cancelled") as connection:
            return cancels.requested(connection, agents)

    def flush(self) -> None:
        self._refusals.flush()
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        self._refusals.flush()
        if self._writer is not None:
            self._writer.finish()

    def close(self) -> None:
        self._refusals.flush()
        if self._writer is not None:
            self._writer.close()
        self.database.close()

    def _dated(self, fact: MessageFact) -> MessageFact:
        """Return a fact whose moment is by the reference clock."""
        at = self._clock.corrected(fact.at)
        return fact if at is fact.at else replace(fact, at=at)

    def _seconds(self) -> float:
        return self._clock.now().timestamp()

    def _tell(self, entries: Sequence[LedgerRow]) -> None:
        self._the_writer().put(entries, wait=False)

    def _the_writer(self) -> LedgerWriter:
        writer = self._writer
        if writer is None:
            with self._lock:
                writer = self._writer = self._writer or LedgerWriter(
                    self.database, self.spool, self._strict, self.recording, self._clock.now
                )
        return writer

    def _forget_writer(self) -> None:
        """Begin anew in a process that was just forked: what is queued is its parent's to write."""
        self._writer = None
        self._lock = threading.Lock()
        self._refusals = Refusals(self._tell, self._seconds)


def _call(reference: weakref.ref[Ledger], method: Any) -> None:
    ledger = reference()
    if ledger is not None:
        method(ledger)


def _belongs() -> Any:
    return (MessageEventRow.message_id == OpenMessageRow.message_id) & (
        MessageEventRow.retain_until == OpenMessageRow.retain_until
    )


def _running() -> Any:
    """Whether the newest that is known of an open message is that a worker began to handle it."""
    told = select(MessageEventRow.event).where(_belongs(), MessageEventRow.event.not_in(NO_PROGRESS))
    newest = told.order_by(MessageEventRow.at.desc()).limit(1).scalar_subquery()
    return newest.is_not_distinct_from(MessageEvent.DELIVERED.value)
