"""The ledger as a receipt store: it records each message before the publish, and each event of it afterwards."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select

from waooaw_celery.errors import AuditUnavailable, UnknownMessage
from waooaw_celery.ledger import cancellations, open_messages
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow
from waooaw_celery.ledger.database.rows import (
    LedgerRow,
    answer_rows,
    delivery_row,
    event_row,
    message_rows,
    published_event_rows,
    sent_row,
)
from waooaw_celery.ledger.read.reader import message_columns, read_record, read_records
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.refusals import RefusalCounter
from waooaw_celery.ledger.sender_receipts import SenderReceipts, facts_of_end
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.ledger.write.writer import LedgerWriter
from waooaw_celery.messages.enums import MessageType, RetentionPolicy
from waooaw_celery.messages.headers import payload_of
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.validation import JSON, check_id
from waooaw_celery.settings import AuditMode
from waooaw_celery.store.reference_clock import ReferenceClock

logger = get_logger(__name__)

#: Seconds between two looks at the spool while it is drained.
_POLL_SECONDS = 0.05


class Ledger(ReceiptStore):
    """A receipt store in the ledger's tables. Writes are idempotent: recording a fact twice changes nothing.

    Args:
        database: the database that holds the tables.
        retention: the retention of messages that name none.
        mode: STRICT: a message is published only after its row is committed, and acknowledged only after its final
            event is safe. BATCHED: rows are written in the background; a process that is killed loses what it
            recorded in its last 50 ms, or, if it records faster than the database writes, what is in its memory.
        spool_folder: the folder where rows wait while the database is down; None: the system's temporary folder.
        lost_seconds: seconds after a delivery until a message without a final event counts as lost.
        clock: the clock that dates what this process records; None: this computer's clock.
        sender_receipts: the receipts of senders without a ledger; None: there is no Redis that has them.
        load: returns the arguments that a reference stands for; None: large payloads cannot be read.
    """

    def __init__(
        self,
        database: Database,
        retention: RetentionPolicy,
        mode: AuditMode = AuditMode.STRICT,
        spool_folder: str | None = None,
        lost_seconds: float = 3600.0,
        clock: ReferenceClock | None = None,
        sender_receipts: SenderReceipts | None = None,
        load: Callable[[Reference], tuple[list[Any], dict[str, Any]]] | None = None,
    ) -> None:
        self._sender_receipts, self._load = sender_receipts, load
        self._clock = clock or ReferenceClock()
        self.database = database
        self.spool = Spool(spool_folder, database.url.render_as_string(hide_password=False))
        self.retention = retention
        self._is_strict = mode is AuditMode.STRICT
        self._lost_after = timedelta(seconds=lost_seconds)
        #: Shared with forked children: which facts could be written neither to the database nor to the spool.
        self.recording = Recording()
        self._writer: LedgerWriter | None = None
        self._lock = threading.Lock()
        self._refusals = RefusalCounter(self._write_later, self._timestamp)
        self_reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _call_if_alive(self_reference, Ledger._forget_writer))
        atexit.register(lambda: _call_if_alive(self_reference, Ledger.finish))

    def start(self) -> None:
        """Start the writer's thread, which also drains the spool."""
        self._get_writer().start()

    def begin_recording(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        publish_options: Mapping[str, PublishOptions] | None = None,
        *,
        is_follow_up: bool = False,
        payload_texts: Mapping[str, str] | None = None,
    ) -> Callable[[], set[str]]:
        rows = message_rows(messages, self.retention, publish_options, payload_texts)
        if record is not None:
            rows += published_event_rows(record, self.retention, self._clock.now())
        if self._is_strict:
            return self._get_writer().begin(rows, may_spool=is_follow_up)
        self._get_writer().put(rows, wait=False)
        return lambda: {row.message_id for row in rows}

    def note(self, *facts: MessageFact) -> None:
        rows = [event_row(self._with_corrected_time(fact), self.retention) for fact in facts]
        for fact in facts:
            if fact.answer is not None:
                rows += answer_rows(fact.answer, self.retention)
        try:
            self._get_writer().put(rows, wait=self._waits_for_facts)
        finally:  # what cannot be written now is kept, and written later
            if self._sender_receipts is not None:
                self._sender_receipts.note(facts)

    @property
    def _waits_for_facts(self) -> bool:
        """Whether a fact is safe before its message is acknowledged."""
        return self._is_strict or self.recording.fails

    def check_recording(self) -> None:
        """Check that facts can be written now, to the database or to the spool.

        Raises:
            AuditUnavailable: they can be written to neither.
        """
        self._get_writer().check()

    def begin(self, fact: MessageFact, *, may_be_redelivered: bool) -> bool:
        ended = self._sender_receipts.begin(fact) if self._sender_receipts is not None else None
        if ended is not None:
            self.note(*facts_of_end(fact, ended))
            return False
        return self._begin(fact, may_be_redelivered)

    def _begin(self, fact: MessageFact, may_be_redelivered: bool) -> bool:
        if self._is_strict:
            # The insert, whose commit is waited for anyway, also returns whether the message has ended.
            row = delivery_row(self._with_corrected_time(fact), self.retention)
            return not self._get_writer().put([row], wait=True, keep=False)
        is_duplicate = may_be_redelivered and self._has_ended(fact.message_id)
        recorded = replace(fact, event=MessageEvent.DUPLICATE, seconds=None) if is_duplicate else fact
        if self.recording.fails:
            row = event_row(self._with_corrected_time(recorded), self.retention)
            self._get_writer().put([row], wait=True, keep=False)
        else:
            self.note(recorded)
        if may_be_redelivered:  # so that the delivery is known even if this worker dies too
            self.flush()
        return not is_duplicate

    def begin_all(self, deliveries: Sequence[tuple[MessageFact, bool]]) -> list[bool]:
        alone: dict[str, bool] = {}
        together: list[MessageFact] = []
        for fact, redelivered in deliveries:
            ended = self._sender_receipts.begin(fact) if self._sender_receipts is not None else None
            if ended is not None:
                self.note(*facts_of_end(fact, ended))
                alone[fact.message_id] = False
            elif not self._is_strict and (redelivered or self.recording.fails):
                alone[fact.message_id] = self._begin(fact, redelivered)
            else:
                together.append(fact)
        ended_before: set[str] = set()
        if together and self._is_strict:  # one insert of many rows, which also returns which messages have ended
            rows = [delivery_row(self._with_corrected_time(fact), self.retention) for fact in together]
            ended_before = self._get_writer().put(rows, wait=True, keep=False)
        elif together:
            self.note(*together)
        return [alone.get(fact.message_id, fact.message_id not in ended_before) for fact, _ in deliveries]

    def _has_ended(self, message_id: str) -> bool:
        has_final_event = exists().where(MessageEventRow.message_id == message_id, MessageEventRow.terminal)
        try:
            self.flush()
            with self.database.begin(f"check whether message {message_id} has ended") as connection:
                return bool(connection.scalar(select(has_final_event)))
        except AuditUnavailable as error:  # handling a message twice is better than never
            extra = {"action": "duplicate_not_known", "message_id": message_id}
            logger.warning("%s. The message may be handled twice", error, extra=extra)
            return False

    def prepare_sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        # The messages themselves are recorded already: SENT events may be written without waiting.
        now = self._clock.now()
        rows = [sent_row(message, now, self.retention) for message in messages]

        def record_sent() -> None:
            self._write_later(rows)

        return record_sent

    def refused(self, agent: str, rule: str, count: int) -> None:
        self._refusals.add(agent, rule, count)

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        self.flush()
        with self.database.begin(f"read the receipt of {message_id}") as connection:
            record = read_record(connection, message_id, payloads=False)
        if record is None:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return record.receipt

    def is_erased(self, message_id: str) -> bool:
        is_erased = exists().where(MessageRow.message_id == message_id, MessageRow.erased_at.is_not(None))
        with self.database.begin(f"look up whether {message_id} was erased") as connection:
            return bool(connection.scalar(select(is_erased)))

    def payload(self, record: AuditRecord) -> JSON:
        """Return the payload of a record; that of a message with a reference is read from its store.

        Args:
            record: the record of a message, read with its payload.

        Raises:
            PayloadMissing, PayloadAltered, DecodingFailed: the store does not have what was stored.
            ReferenceStoreUnavailable: the store does not answer.
            PayloadNotLoaded: the record was read without its payload.
        """
        if record.reference is None or self._load is None:
            return record.payload
        args, kwargs = self._load(record.reference)
        if record.receipt.message_type is MessageType.EVENT:
            return args[0]
        return payload_of(record.receipt.handler, args, kwargs)

    def outage_seconds(self) -> float:
        """Return for how many seconds the database has not answered this process; 0: it answers."""
        return 0.0 if self._writer is None else self._writer.outage_seconds()

    def drain_spool(self, seconds: float) -> bool:
        """Have the spool of this computer written to the ledger, and return whether nothing waits in it.

        Args:
            seconds: how long to wait.
        """
        self.start()
        deadline = time.monotonic() + seconds
        while self.spool.counts()[0] and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return not self.spool.counts()[0]

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        columns = message_columns(payloads=False)
        query = select(*columns).order_by(MessageRow.sent_at.desc(), MessageRow.message_id.desc())
        if since is not None:
            query = query.where(MessageRow.sent_at >= since)
        self.flush()
        with self.database.begin("read the newest receipts") as connection:
            return [record.receipt for record in read_records(connection, query.limit(limit))][::-1]

    def sweep(self) -> list[str]:
        with self.database.begin("delete cancellations that are over") as connection:
            cancellations.delete_finished(connection)
        return self._note_ended(open_messages.expire_overdue(self.database), MessageEvent.EXPIRED)

    def reconcile(self, *, recovered: bool = False) -> list[str]:
        """Mark as FAILED the messages that count as lost, and return their ids.

        A message is lost if a worker began to handle it more than ``lost_seconds`` ago and nothing was recorded of
        it since. A killed worker records nothing. If the broker redelivers the message, the time starts again.

        Args:
            recovered: whether a recovery runs, which publishes repeatable messages again: those are left to it.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        ended = open_messages.fail_lost(self.database, self._lost_after, recovered=recovered)
        return self._note_ended(ended, MessageEvent.FAILED, open_messages.lost_error(self._lost_after))

    def _note_ended(self, ids: list[str], event: MessageEvent, error: str | None = None) -> list[str]:
        """Record in the receipts of senders without a ledger what has been recorded here, and return the ids."""
        if self._sender_receipts is not None and ids:
            self._sender_receipts.note([MessageFact(message_id=id_, event=event, error=error) for id_ in ids])
        return ids

    def request_cancellation(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        requester = f"by {by}" + (", also when its handler runs" if running else "")
        fact = MessageFact(message_id=receipt.message_id, event=MessageEvent.CANCEL_REQUESTED, error=requester)
        with self.database.begin(f"record the cancellation of {receipt.message_id}") as connection:
            cancellations.request(connection, replace(fact, at=now_in(connection)), running)

    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        senders = self._sender_receipts.cancellations(agents) if self._sender_receipts is not None else {}
        with self.database.begin("read the cancellations") as connection:
            return senders | cancellations.requested(connection, agents)

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

    def _with_corrected_time(self, fact: MessageFact) -> MessageFact:
        """Return the fact with its time by the reference clock."""
        at = self._clock.corrected(fact.at)
        return fact if at is fact.at else replace(fact, at=at)

    def _timestamp(self) -> float:
        return self._clock.now().timestamp()

    def _write_later(self, rows: Sequence[LedgerRow]) -> None:
        self._get_writer().put(rows, wait=False)

    def _get_writer(self) -> LedgerWriter:
        writer = self._writer
        if writer is None:
            with self._lock:
                writer = self._writer = self._writer or LedgerWriter(
                    self.database, self.spool, self._is_strict, self.recording, self._clock.now
                )
        return writer

    def _forget_writer(self) -> None:
        """Start without rows in a forked child: its parent writes what is in the write buffer."""
        self._writer = None
        if self._sender_receipts is not None:
            self._sender_receipts.forget()
        self._lock = threading.Lock()
        self._refusals = RefusalCounter(self._write_later, self._timestamp)


def _call_if_alive(reference: weakref.ref[Ledger], method: Any) -> None:
    ledger = reference()
    if ledger is not None:
        method(ledger)
