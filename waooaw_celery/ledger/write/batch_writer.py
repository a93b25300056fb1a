"""Writes one batch at a time to the database: it knows which thread may write, and what is in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS
from waooaw_celery.ledger.write.buffer import PendingWrite, WriteBuffer
from waooaw_celery.ledger.write.fallback import Fallback
from waooaw_celery.ledger.write.inserter import RowInserter, WriteOutcome, is_permanent_error
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds that a caller waits. A thread that writes has reached each of its own deadlines by then.
WAIT_SECONDS = 3 * DEADLINE_SECONDS

#: Writes rows, as ``RowInserter.write`` does.
_Commit: TypeAlias = Callable[[Sequence[LedgerRow]], WriteOutcome]


class BatchWriter:
    """Writes batches for several threads, of which at most one writes at any time.

    Args:
        inserter: writes the rows.
        buffer: the rows that wait. When the database goes down, all of them leave it.
        outage: the state of the database.
        fallback: finishes writes that the database did not accept.
        condition: the lock of the buffer and of this object. It is notified of every change.
        wake: wakes the writer's thread. It is called with the lock.
        on_fallback: called with the lock when writes were finished without the database.

    Attributes:
        writing: whether a thread writes or a batch is in flight. Whoever sets it, with the lock, must call
            ``write``.
        finished: how many writes have ended.
        in_flight: the batch that was sent to the database and whose answer was not received yet.
    """

    def __init__(
        self,
        inserter: RowInserter,
        buffer: WriteBuffer,
        outage: Outage,
        fallback: Fallback,
        condition: threading.Condition,
        wake: Callable[[], None],
        on_fallback: Callable[[], None],
    ) -> None:
        self._inserter, self._buffer = inserter, buffer
        self._outage, self._fallback = outage, fallback
        self._condition, self._wake, self._on_fallback = condition, wake, on_fallback
        self.writing = False
        self.finished = 0
        self.in_flight: list[PendingWrite] | None = None

    def send_urgent(self) -> None:
        """Send the urgent rows without waiting. If another thread writes, they are written when a caller waits."""
        with self._condition:
            if self.writing:
                return
            batch = self._buffer.take(self._buffer.urgent)
            self.writing = True
        try:
            was_sent = self._inserter.send([row for pending in batch for row in pending.rows])
        except AuditUnavailable as error:
            self.write(batch, partial(_raise, error))
            return
        except BaseException:
            self.write(batch)
            raise
        if not was_sent:
            self.write(batch)
            return
        with self._condition:
            self.in_flight = batch
            self._condition.notify_all()

    def receive(self) -> None:
        """Wait for the answer to the batch in flight, if there is one."""
        with self._condition:
            batch, self.in_flight = self.in_flight, None
        if batch is not None:
            self.write(batch, self._inserter.receive)

    def write(self, batch: list[PendingWrite], commit: _Commit | None = None) -> None:
        """Write a batch for which ``writing`` was set. What the database does not accept is spooled, or fails.

        Args:
            batch: what to write.
            commit: what writes the rows. None: the inserter.
        """
        try:
            self._try_write(batch, commit or self._inserter.write)
        except BaseException as bug:
            logger.exception(
                "the ledger's writer raised; its rows go to the spool, or their senders get AuditUnavailable",
                extra={"action": "writer_failed"},
            )
            remaining = [pending for pending in batch if not pending.done]
            self._fallback.withdraw(remaining)
            self.spool_or_refuse(remaining, AuditUnavailable(repr(bug)))
            if not isinstance(bug, Exception):
                raise
        finally:
            self._end_write()

    def _try_write(self, batch: list[PendingWrite], commit: _Commit) -> None:
        try:
            outcome, unknown = commit([row for pending in batch for row in pending.rows])
        except AuditUnavailable as error:
            if not is_permanent_error(error):
                self.start_outage(error, batch)
            elif len(batch) > 1:
                for number, pending in enumerate(batch):  # to find the write that the database refuses
                    if self._outage.active:  # the database went down meanwhile
                        self.spool_or_refuse(batch[number:], error)
                        break
                    self._try_write([pending], self._inserter.write)
            else:
                self.spool_or_refuse(batch, error)
            return
        for pending in batch:
            pending.new = {row.message_id for row in pending.rows if row.kind == "message"} & outcome.new
            if outcome.duplicate:
                delivered = {row.message_id for row in pending.rows if row.kind != "message"}
                pending.duplicate = delivered & outcome.duplicate
            pending.done = True
            self._fallback.release(pending)
        if unknown:
            self.spool_or_refuse([PendingWrite(unknown, may_spool=True)], no_answer())

    def start_outage(self, error: AuditUnavailable, batch: Sequence[PendingWrite] = ()) -> None:
        """Record that the database is down, and spool or refuse a batch and everything in the buffer."""
        with self._condition:
            self._outage.start(error)
            self._wake()
            queued = self._buffer.take_all(self._buffer.urgent, self._buffer.deferred)
        if error.uncertain:
            self._fallback.withdraw(batch)
        self.spool_or_refuse([*batch, *queued], error)

    def spool_or_refuse(self, writes: list[PendingWrite], error: AuditUnavailable) -> None:
        """Finish writes that the database did not accept, and tell their callers."""
        self._fallback.finish(writes, error)
        with self._condition:
            self._on_fallback()
            self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Keep other threads from writing. Yield False if one of them did not end in time."""
        granted = self._start_write()
        try:
            yield granted
        finally:
            if granted:
                self._end_write()

    def _start_write(self) -> bool:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            self.receive()
            with self._condition:
                if not self.writing:
                    self.writing = True
                    return True
                if self.in_flight is None and not self._condition.wait(deadline - time.monotonic()):
                    return False

    def _end_write(self) -> None:
        with self._condition:
            self.writing = False
            self.finished += 1
            self._condition.notify_all()


def _raise(error: Exception, _: Sequence[LedgerRow]) -> Any:
    raise error


def no_answer() -> AuditUnavailable:
    """Return the error of a write for which the database did not answer in time."""
    return AuditUnavailable(
        "nothing was published: the ledger's database does not answer. "
        "Check that it runs and that waooaw_database_url is correct"
    )
