"""Writes entries to the ledger: in order, many in one statement, none lost.

Whoever must know that an entry is safe writes it; several at once take turns, and one writes for all. What nobody
waits for is written by a thread, a moment later, together. While the database is away, facts go to the spool on
this computer, and are shipped when it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import DEADLINE_SECONDS, Database
from waooaw_celery.ledger.database.rows import LedgerRow, withdrawal_row
from waooaw_celery.ledger.write.buffer import BATCH, PendingWrite, WriteBuffer
from waooaw_celery.ledger.write.inserter import RowInserter, WriteOutcome, is_permanent_error
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.ledger.write.pending_facts import PendingFacts, lose
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.ledger.write.spool import Spool
from waooaw_celery.ledger.write.spool_drain import SpoolDrainer
from waooaw_celery.store.clock_reading import local_now

logger = logging.getLogger(__name__)

#: Seconds that an entry for which nobody waits may wait for others.
BATCH_DELAY_SECONDS = 0.05
#: Seconds after which nobody waits any longer: whoever writes has met each deadline of its own by then.
DEADLINE_SECONDS = 3 * DEADLINE_SECONDS

#: Writes entries, as a pen does.
_Commit: TypeAlias = Callable[[Sequence[LedgerRow]], WriteOutcome]


class LedgerWriter:
    """The writer of one process.

    Args:
        database: where the ledger's tables are.
        spool: where facts wait while it is away.
        asks: whether whoever begins to handle a message waits to hear whether it had ended.
        recording: where it tells the worker's other processes that it can write nowhere.
        now: tells the time by which facts are written down.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        asks: bool = False,
        recording: Recording | None = None,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self._recording = recording or Recording()
        self._kept = PendingFacts(self._recording)
        self._pen = RowInserter(database, asks)  # for whoever is writing: one at a time
        #: What was sent on its way, and whose answer nobody has fetched yet.
        self._flight: list[PendingWrite] | None = None
        self._spool = spool
        self._outage = Outage(spool.path)
        self._shipper = SpoolDrainer(self._pen, spool, self._outage, self._turn, partial(self._give_up, []), now)
        self._changed = threading.Condition()
        self._alarm = threading.Event()
        self._waiting = WriteBuffer()
        #: Whether somebody is writing, and how often somebody has; whether the thread sleeps deeply.
        self._busy = self._asleep = False
        self._rounds = 0
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    def start(self) -> None:
        """Begin to write in the background, and to ship what is in the spool."""
        if self._thread is None:
            with self._changed:
                if self._thread is None:
                    self._end = threading.Event()  # each thread has its own: one that hangs may outlive a close
                    self._thread = threading.Thread(
                        target=self._run, args=(self._end,), name="waooaw-ledger", daemon=True
                    )
                    self._thread.start()

    def put(self, entries: Sequence[LedgerRow], *, wait: bool, keep: bool = True) -> set[str]:
        """Hand over entries.

        Args:
            entries: what to write, together.
            wait: whether to wait until they are safe.
            keep: whether to keep them in memory, and try again, when they can be written nowhere. If somebody
                waits for them, the worker does not acknowledge their messages before they are safe.

        Returns:
            The ids of those messages that were to begin, by these entries, and had ended before; when it waited.

        Raises:
            AuditUnavailable: they are neither in the ledger nor in the spool.
        """
        self.start()
        put = PendingWrite(entries, True, sum(len(entry.text) for entry in entries), waited=wait, keep=keep)
        if not self._enqueue(put, self._waiting.urgent if wait else self._waiting.lingering):
            self._save([put], _refusal())
        if wait or put.ended:
            self._finish(put)
        return put.twice

    def begin(self, entries: Sequence[LedgerRow], *, may_spool: bool = True) -> Callable[[], set[str]]:
        """Begin to write entries, and return what to call to wait until they are safe.

        The database works while the caller does something else; another who wants to write fetches its answer.

        Args:
            entries: what to write, together.
            may_spool: whether the spool is as safe as the database for them.

        Returns:
            A function that waits, and returns the ids of those messages among them that are new to the ledger. It
            raises what ``put`` raises. Calling it again changes nothing.
        """
        self.start()
        put = PendingWrite(entries, may_spool, sum(len(entry.text) for entry in entries), keep=may_spool)
        if self._enqueue(put, self._waiting.urgent):
            self._take_off()
        else:
            self._save([put], _refusal())
        return partial(self._finish, put)

    def flush(self) -> None:
        """Return when everything handed over so far is safe."""
        self._land()
        with self._changed:
            last = self._waiting.hurry()
            rounds = self._rounds
        if last is not None:
            self._write_until(last)
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            # Only the batch that was on its way: while others go on writing, somebody always is.
            while self._busy and self._rounds == rounds and self._changed.wait(deadline - time.monotonic()):
                pass

    def check(self) -> None:
        """Find out whether what becomes of messages could be written down now: in the ledger, or in the spool.

        Raises:
            AuditUnavailable: it could not.
        """
        if not self._outage.lasts:  # else the thread tries the database
            with self._turn() as mine:
                if mine:
                    try:
                        self._pen.rehearse()
                    except AuditUnavailable as error:
                        self._give_up([], error)
                    else:
                        return
        self._spool.check_room()

    def finish(self) -> None:
        """Flush for the last time: what can be written nowhere goes to the log."""
        self._write_kept()
        self.flush()
        with self._changed:
            left = self._kept.take()
        lose(left)

    def close(self) -> None:
        """Flush, and end the thread."""
        self.finish()
        with self._changed:
            thread, self._thread = self._thread, None
            self._end.set()
            self._alarm.set()
        if thread is not None:
            thread.join(DEADLINE_SECONDS)
        with self._changed:
            if not self._busy:
                self._pen.close()

    def _finish(self, put: PendingWrite) -> set[str]:
        self._write_until(put)
        if put.error is not None:
            raise put.error
        return put.new

    def _take_off(self) -> None:
        """Send what is urgent on its way, unless somebody is writing: then it is written when somebody waits."""
        with self._changed:
            if self._busy:
                return
            batch = self._waiting.take(self._waiting.urgent)
            self._busy = True
        try:
            on_its_way = self._pen.send([entry for put in batch for entry in put.entries])
        except AuditUnavailable as error:
            self._write(batch, partial(_raise, error))
            return
        except BaseException:
            self._write(batch)
            raise
        if not on_its_way:
            self._write(batch)
            return
        with self._changed:
            self._flight = batch
            self._changed.notify_all()

    def _land(self) -> None:
        """Fetch the answer to what was sent on its way."""
        with self._changed:
            batch, self._flight = self._flight, None
        if batch is not None:
            self._write(batch, self._pen.answer)

    def _enqueue(self, put: PendingWrite, queue: deque[PendingWrite]) -> bool:
        """Queue entries and return True, or return False when there they would only wait."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while not self._waiting.has_room(put):
                self._wake()
                if not self._changed.wait(deadline - time.monotonic()):
                    return False
            if self._outage.lasts:  # the thread tries it again and again: nobody else need wait for that
                return False
            self._waiting.add(put, queue)
            self._wake()
        return True

    def _wake(self) -> None:
        """Wake the thread, unless it looks by itself in a moment. (The caller holds the lock.)"""
        if self._asleep:
            self._asleep = False
            self._alarm.set()

    def _write_until(self, put: PendingWrite) -> None:
        """Write what waits until this is written too, or wait for whoever is writing it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not put.ended:
            self._land()
            with self._changed:
                if put.ended:
                    return
                late = time.monotonic() > deadline
                if self._flight is not None:
                    continue
                if late:
                    # Whoever is writing may still write it; nobody else does, once it was refused.
                    queued = put in self._waiting.urgent
                    left = self._waiting.take_all(self._waiting.urgent) if queued else [put]
                elif self._busy:
                    self._changed.wait(deadline - time.monotonic())
                    continue
                else:
                    left = self._waiting.take(self._waiting.urgent)
                    self._busy = True
            if late:
                if not queued:
                    self._withdraw(left)
                self._save(left, _refusal())
            else:
                self._write(left)

    def _run(self, end: threading.Event) -> None:
        """Write what nobody waits for, and ship what was spooled, until the end."""
        idle = 0
        while not end.is_set():
            with self._changed:
                # For a second after the last entry it looks by itself: to wake it for each would cost more.
                idle = 0 if self._waiting.lingering else idle + 1
                self._asleep = idle * BATCH_DELAY_SECONDS > 1.0
                pause = BATCH_DELAY_SECONDS if len(self._waiting.lingering) < BATCH else 0.0
                if self._asleep:
                    pause = max(min(self._shipper.due, self._kept.due) - time.monotonic(), 0.0)
                self._alarm.clear()
            if not end.is_set():
                self._alarm.wait(pause)
            self._land()  # whoever sent it may be held up by its broker
            with self._changed:
                self._asleep = False
                batch = [] if self._busy else self._waiting.take(self._waiting.lingering)
                if batch:
                    self._busy = True
                    self._changed.notify_all()  # there is room again
            if batch:
                self._write(batch)
            if time.monotonic() >= self._shipper.due:
                self._shipper.ship()
            if time.monotonic() >= self._kept.due:
                self._write_kept()

    def _write_kept(self) -> None:
        """Try again to write what could be written nowhere."""
        with self._changed:
            kept = self._kept.take()
            if not self._outage.lasts:
                for put in kept:
                    self._waiting.add(put, self._waiting.lingering)
                return
        if kept:
            self._save(kept, _refusal())

    def _write(self, batch: list[PendingWrite], commit: _Commit | None = None) -> None:
        """Write a batch, or spool what may be spooled of it. (The caller has said that somebody is busy.)"""
        try:
            self._try(batch, commit or self._pen.write)
        except BaseException as bug:
            logger.exception("the ledger's writer failed", extra={"action": "writer_failed"})
            left = [put for put in batch if not put.ended]
            self._withdraw(left)
            self._save(left, AuditUnavailable(repr(bug)))
            if not isinstance(bug, Exception):
                raise
        finally:
            self._rest()

    def _rest(self) -> None:
        """Let others write."""
        with self._changed:
            self._busy = False
            self._rounds += 1
            self._changed.notify_all()

    def _try(self, batch: list[PendingWrite], commit: _Commit) -> None:
        try:
            became, unknown = commit([entry for put in batch for entry in put.entries])
        except AuditUnavailable as error:
            if not is_permanent_error(error):
                self._give_up(batch, error)
            elif len(batch) > 1:
                for number, put in enumerate(batch):  # one of them is the culprit
                    if self._outage.lasts:  # it went away meanwhile
                        self._save(batch[number:], error)
                        break
                    self._try([put], self._pen.write)
            else:
                self._save(batch, error)
            return
        for put in batch:
            put.new = {entry.message_id for entry in put.entries if entry.kind == "message"} & became.new
            if became.twice:
                put.twice = {entry.message_id for entry in put.entries if entry.kind != "message"} & became.twice
            put.ended = True
            self._release(put)
        if unknown:
            self._save([PendingWrite(unknown, may_spool=True)], _refusal())

    def _give_up(self, batch: list[PendingWrite], error: AuditUnavailable) -> None:
        """Spool or refuse a batch, and all that waits: the database is away."""
        with self._changed:
            self._outage.note(error)
            self._wake()
            rest = self._waiting.take_all(self._waiting.urgent, self._waiting.lingering)
        if error.uncertain:
            self._withdraw(batch)
        self._save(batch + rest, error)

    def _save(self, puts: list[PendingWrite], error: AuditUnavailable) -> None:
        """Spool what may be spooled, and refuse the rest."""
        spooled = [put for put in puts if put.may_spool]
        failed: AuditUnavailable | None = None
        try:
            if spooled:
                # At once: each time costs a disk's turn, and others may wait.
                self._spool.append([entry for put in spooled for entry in put.entries])
        except AuditUnavailable as full:
            failed = full
            if is_permanent_error(error):  # to try it again would be in vain
                lose([put for put in spooled if put.keep])
            else:
                if self._outage.lasts:
                    self._recording.fail()
                with self._changed:
                    self._kept.add(spooled, full)
        for put in puts:
            put.error = failed if put.may_spool else error
            put.ended = True
            if put.may_spool and failed is None:
                self._release(put)
        with self._changed:
            self._shipper.hurry()
            self._wake()
            self._changed.notify_all()

    def _release(self, put: PendingWrite) -> None:
        for message_id in put.held:
            self._recording.release(message_id)

    def _withdraw(self, puts: list[PendingWrite]) -> None:
        """Have messages ended that are refused, and that the database may take all the same."""
        entries = [entry for put in puts if not put.may_spool for entry in put.entries]
        withdrawals = [withdrawal_row(entry) for entry in entries if entry.kind == "message"]
        try:
            if withdrawals:
                self._spool.append(withdrawals)
        except AuditUnavailable as full:
            for entry in withdrawals:
                logger.critical("%s: not recorded: %s", full, entry.text, extra={"action": "entry_lost"})

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Wait until nobody is writing, tell whether that came to be, and keep others out while the block runs."""
        mine = self._take_turn()
        try:
            yield mine
        finally:
            if mine:
                self._rest()

    def _take_turn(self) -> bool:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self._land()
            with self._changed:
                if not self._busy:
                    self._busy = True
                    return True
                if self._flight is None and not self._changed.wait(deadline - time.monotonic()):
                    return False


def _raise(error: Exception, _: Sequence[LedgerRow]) -> Any:
    raise error


def _refusal() -> AuditUnavailable:
    return AuditUnavailable(
        "the ledger's database does not answer, and what it cannot record is not published: check that it runs "
        "and that waooaw_database_url is right"
    )
