"""Writes rows to the ledger: in order, many in one statement, and none lost.

A caller that must know that its rows are safe writes them in its own thread. Of several such callers, one writes
the rows of all. Rows that no caller waits for are written together by a background thread, a moment later. While
the database is down, rows go to this computer's spool, and the thread drains the spool afterwards.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.write.batch_writer import WAIT_SECONDS, BatchWriter, no_answer
from waooaw_celery.ledger.write.buffer import BATCH, PendingWrite, WriteBuffer
from waooaw_celery.ledger.write.fallback import Fallback
from waooaw_celery.ledger.write.inserter import RowInserter
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.ledger.write.pending_facts import PendingFacts, log_lost
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.ledger.write.spool_drain import SpoolDrainer
from waooaw_celery.store.clock_reading import local_now

#: Seconds that the thread waits for more rows before it writes those that no caller waits for.
BATCH_DELAY_SECONDS = 0.05


class LedgerWriter:
    """The writer of one process.

    Args:
        database: the ledger's database.
        spool: where rows wait while the database is down.
        detect_duplicates: whether ``put`` reports messages that are delivered although they have ended.
        recording: shared with the worker's other processes, to report that nothing can be recorded.
        now: returns the time, by the clock with which events are dated.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        detect_duplicates: bool = False,
        recording: Recording | None = None,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        recording = recording or Recording()
        self._condition = threading.Condition()
        self._spool = spool
        self._outage = Outage(spool.path)
        self._unwritten = PendingFacts(recording)
        self._fallback = Fallback(spool, self._outage, self._unwritten, recording, self._condition)
        self._inserter = RowInserter(database, detect_duplicates)
        self._buffer = WriteBuffer()
        self._batches = BatchWriter(
            self._inserter,
            self._buffer,
            self._outage,
            self._fallback,
            self._condition,
            wake=self._wake,
            on_fallback=self._drain_soon,
        )
        exclusive, start_outage = self._batches.exclusive, self._batches.start_outage
        self._drainer = SpoolDrainer(self._inserter, spool, self._outage, exclusive, start_outage, now)
        self._thread: threading.Thread | None = None
        #: Whether the thread sleeps until it is woken.
        self._sleeping = False
        self._wakeup = threading.Event()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread, which writes in the background and drains the spool."""
        if self._thread is None:
            with self._condition:
                if self._thread is None:
                    # Each thread has its own event: a thread that hangs may outlive ``close``.
                    self._stopping = threading.Event()
                    self._thread = threading.Thread(
                        target=self._run, args=(self._stopping,), name="waooaw-ledger", daemon=True
                    )
                    self._thread.start()

    def put(self, rows: Sequence[LedgerRow], *, wait: bool, keep: bool = True) -> set[str]:
        """Write rows.

        Args:
            rows: what to write, together.
            wait: whether to wait until the rows are in the ledger or in the spool.
            keep: whether to keep the rows in memory and retry if neither accepts them. If the caller waits too,
                the worker does not acknowledge their messages until they are safe.

        Returns:
            The ids of messages that were delivered although they had ended. Empty without ``wait``.

        Raises:
            AuditUnavailable: neither the ledger nor the spool accepts the rows.
        """
        self.start()
        pending = PendingWrite(rows, True, _characters(rows), awaited=wait, keep=keep)
        if not self._enqueue(pending, self._buffer.urgent if wait else self._buffer.deferred):
            self._batches.spool_or_refuse([pending], no_answer())
        if wait or pending.done:
            self._wait_for(pending)
        return pending.duplicate

    def outage_seconds(self) -> float:
        """Return for how many seconds the database has not answered; 0: it answers."""
        return self._outage.seconds

    def begin(self, rows: Sequence[LedgerRow], *, may_spool: bool = True) -> Callable[[], set[str]]:
        """Start to write rows, and return a function that waits until they are safe.

        The database works while the caller does something else. If another thread wants to write meanwhile, that
        thread receives the answer.

        Args:
            rows: what to write, together.
            may_spool: whether the rows are safe in the spool too. Otherwise the write fails without the database.

        Returns:
            A function that waits, and returns the ids of the messages that are new to the ledger. It raises
            AuditUnavailable if the rows are not safe. You may call it several times.

        Example:
            >>> wait = writer.begin(rows, may_spool=False)
            >>> body = pack(message)  # while the database writes
            >>> new_ids = wait()
        """
        self.start()
        pending = PendingWrite(rows, may_spool, _characters(rows), keep=may_spool)
        if self._enqueue(pending, self._buffer.urgent):
            self._batches.send_urgent()
        else:
            self._batches.spool_or_refuse([pending], no_answer())
        return partial(self._wait_for, pending)

    def flush(self) -> None:
        """Wait until all rows that were passed so far are safe."""
        self._batches.receive()
        with self._condition:
            last = self._buffer.make_all_urgent()
            finished_writes = self._batches.finished
        if last is not None:
            self._write_until(last)
        deadline = time.monotonic() + WAIT_SECONDS
        with self._condition:
            # Wait only for the batch that was being written. Later batches may follow without a pause.
            while (
                self._batches.writing
                and self._batches.finished == finished_writes
                and self._condition.wait(deadline - time.monotonic())
            ):
                pass

    def check(self) -> None:
        """Check that events can be recorded now, in the ledger or in the spool.

        Raises:
            AuditUnavailable: they cannot.
        """
        if not self._outage.active:  # otherwise the thread tries the database
            with self._batches.exclusive() as granted:
                if granted:
                    try:
                        self._inserter.try_write()
                    except AuditUnavailable as error:
                        self._batches.start_outage(error)
                    else:
                        return
        self._spool.check_room()

    def finish(self) -> None:
        """Flush for the last time. Rows that neither the ledger nor the spool accepts are written to the log."""
        self._retry_unwritten()
        self.flush()
        with self._condition:
            remaining = self._unwritten.take()
        log_lost(remaining)

    def close(self) -> None:
        """Flush, and stop the thread."""
        self.finish()
        with self._condition:
            thread, self._thread = self._thread, None
            self._stopping.set()
            self._wakeup.set()
        if thread is not None:
            thread.join(WAIT_SECONDS)
        with self._condition:
            if not self._batches.writing:
                self._inserter.close()

    def _enqueue(self, pending: PendingWrite, queue: deque[PendingWrite]) -> bool:
        """Queue a write, and return whether it was queued. During an outage, nothing is queued."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._condition:
            while not self._buffer.has_room(pending):
                self._wake()
                if not self._condition.wait(deadline - time.monotonic()):
                    return False
            if self._outage.active:  # only the thread waits for the database to come back
                return False
            self._buffer.add(pending, queue)
            if queue is self._buffer.deferred:  # a caller writes the urgent rows: to wake the thread costs more
                self._wake()
        return True

    def _wait_for(self, pending: PendingWrite) -> set[str]:
        self._write_until(pending)
        if pending.error is not None:
            raise pending.error
        return pending.new

    def _write_until(self, pending: PendingWrite) -> None:
        """Write batches until a write is done, or wait for the thread that writes it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not pending.done:
            self._batches.receive()
            with self._condition:
                if pending.done:
                    return
                late = time.monotonic() > deadline
                if self._batches.in_flight is not None:
                    continue
                if late:
                    # A thread that writes it now may still succeed; only a queued write can be taken back.
                    queued = pending in self._buffer.urgent
                    batch = self._buffer.take_all(self._buffer.urgent) if queued else [pending]
                elif self._batches.writing:
                    self._condition.wait(deadline - time.monotonic())
                    continue
                else:
                    batch = self._buffer.take(self._buffer.urgent)
                    self._batches.writing = True
            if late:
                if not queued:
                    self._fallback.withdraw(batch)
                self._batches.spool_or_refuse(batch, no_answer())
            else:
                self._batches.write(batch)

    def _run(self, stopping: threading.Event) -> None:
        """Write deferred rows, drain the spool, and retry unwritten rows, until the writer is closed."""
        idle_rounds = 0
        while not stopping.is_set():
            with self._condition:
                # The thread polls for a second after the last row. To wake it for each row would cost more.
                idle_rounds = 0 if self._buffer.deferred else idle_rounds + 1
                self._sleeping = idle_rounds * BATCH_DELAY_SECONDS > 1.0
                pause = BATCH_DELAY_SECONDS if len(self._buffer.deferred) < BATCH else 0.0
                if self._sleeping:
                    pause = max(min(self._drainer.due, self._unwritten.due) - time.monotonic(), 0.0)
                self._wakeup.clear()
            if not stopping.is_set():
                self._wakeup.wait(pause)
            self._batches.receive()  # the thread that sent the batch may be waiting for its broker
            with self._condition:
                self._sleeping = False
                batch = [] if self._batches.writing else self._buffer.take(self._buffer.deferred)
                if batch:
                    self._batches.writing = True
                    self._condition.notify_all()  # the buffer has room again
            if batch:
                self._batches.write(batch)
            if time.monotonic() >= self._drainer.due:
                self._drainer.drain()
            if time.monotonic() >= self._unwritten.due:
                self._retry_unwritten()

    def _wake(self) -> None:
        """Wake the thread if it sleeps. The caller must hold the lock."""
        if self._sleeping:
            self._sleeping = False
            self._wakeup.set()

    def _drain_soon(self) -> None:
        """Make the thread drain the spool now. The caller must hold the lock."""
        self._drainer.hurry()
        self._wake()

    def _retry_unwritten(self) -> None:
        """Retry the rows that neither the database nor the spool accepted."""
        with self._condition:
            writes = self._unwritten.take()
            if not self._outage.active:
                for pending in writes:
                    self._buffer.add(pending, self._buffer.deferred)
                return
        if writes:
            self._batches.spool_or_refuse(writes, no_answer())


def _characters(rows: Sequence[LedgerRow]) -> int:
    return sum(len(row.text) for row in rows)
