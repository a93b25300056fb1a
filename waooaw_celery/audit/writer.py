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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from waooaw_celery.audit.engine import PATIENCE, Database
from waooaw_celery.audit.entries import Entry
from waooaw_celery.audit.pen import Pen, Written, never_taken
from waooaw_celery.audit.spool import Spool, SpoolUnavailable
from waooaw_celery.errors import AuditUnavailable

logger = logging.getLogger(__name__)

#: Seconds that an entry for which nobody waits may wait for others.
LINGER = 0.05
#: Entries, and characters in them, written in one transaction, which must end within the time of a statement.
BATCH = 500
BATCH_CHARACTERS = 4 * 1024 * 1024
#: Entries, and characters in them, that may wait in memory; whoever has more waits.
MAX_QUEUED = 10_000
MAX_QUEUED_CHARACTERS = 64 * 1024 * 1024
#: Seconds until a database that was away is tried again.
RETRY_SECONDS = 1.0
#: Seconds between two looks into the spool, which other processes fill too.
SPOOL_SECONDS = 5.0
#: Seconds after which nobody waits any longer: whoever writes has met each deadline of its own by then.
DEADLINE = 3 * PATIENCE
#: Seconds for which a fact waits for the message that it is about.
STRAY_SECONDS = 600.0


#: Writes entries, as a pen does.
_Commit: TypeAlias = Callable[[Sequence[Entry]], Written]


@dataclass(slots=True, eq=False)
class _Put:
    """Entries that were put together, and what became of them."""

    entries: Sequence[Entry]
    #: Whether they may be spooled while the database is away; what may not is refused.
    may_spool: bool
    size: int = 0
    new: set[str] = field(default_factory=set)
    error: AuditUnavailable | None = None
    ended: bool = False


class Writer:
    """The writer of one process.

    Args:
        database: where the ledger's tables are.
        spool: where facts wait while it is away.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self._pen = Pen(database)  # for whoever is writing: one at a time
        #: What was sent on its way, and whose answer nobody has fetched yet.
        self._flight: list[_Put] | None = None
        self._spool = spool
        self._changed = threading.Condition()
        self._alarm = threading.Event()
        #: What somebody waits for, and what nobody does.
        self._urgent: deque[_Put] = deque()
        self._lingering: deque[_Put] = deque()
        self._entries = self._size = 0
        #: Whether somebody is writing, and how often somebody has; whether the thread sleeps deeply.
        self._busy = self._asleep = False
        self._rounds = 0
        #: The moment at which the thread tries the database again; None while it answers.
        self._retry_at: float | None = None
        self._spool_failed = False
        self._away_since = 0.0
        self._look_at = 0.0
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

    def put(self, entries: Sequence[Entry], *, wait: bool, may_spool: bool = True) -> set[str]:
        """Hand over entries.

        Args:
            entries: what to write, together.
            wait: whether to wait until they are safe.
            may_spool: whether the spool is as safe as the database for them.

        Returns:
            The ids of those messages among them that are new to the ledger, when it waited.

        Raises:
            AuditUnavailable: they are neither in the ledger nor in the spool.
        """
        self.start()
        put = _Put(entries, may_spool, sum(len(entry.text) for entry in entries))
        if not self._enqueue(put, self._urgent if wait else self._lingering):
            self._save([put], _refusal())
        return self._finish(put) if wait or put.ended else set()

    def begin(self, entries: Sequence[Entry], *, may_spool: bool = True) -> Callable[[], set[str]]:
        """Begin to write entries, and return what to call to wait until they are safe.

        The database works while the caller does something else; another who wants to write fetches its answer.

        Args:
            entries: what to write, together.
            may_spool: whether the spool is as safe as the database for them.

        Returns:
            A function that does and raises what ``put`` does when it waits. Calling it again changes nothing.
        """
        self.start()
        put = _Put(entries, may_spool, sum(len(entry.text) for entry in entries))
        if self._enqueue(put, self._urgent):
            self._take_off()
        else:
            self._save([put], _refusal())
        return partial(self._finish, put)

    def flush(self) -> None:
        """Return when everything handed over so far is safe."""
        self._land()
        with self._changed:
            self._urgent.extend(self._lingering)
            self._lingering.clear()
            last = self._urgent[-1] if self._urgent else None
            rounds = self._rounds
        if last is not None:
            self._write_until(last)
        deadline = time.monotonic() + DEADLINE
        with self._changed:
            # Only the batch that was on its way: while others go on writing, somebody always is.
            while self._busy and self._rounds == rounds and self._changed.wait(deadline - time.monotonic()):
                pass

    def close(self) -> None:
        """Flush, and end the thread."""
        self.flush()
        with self._changed:
            thread, self._thread = self._thread, None
            self._end.set()
            self._alarm.set()
        if thread is not None:
            thread.join(PATIENCE)
        with self._changed:
            if not self._busy:
                self._pen.close()

    def _finish(self, put: _Put) -> set[str]:
        self._write_until(put)
        if put.error is not None:
            raise put.error
        return put.new

    def _take_off(self) -> None:
        """Send what is urgent on its way, unless somebody is writing: then it is written when somebody waits."""
        with self._changed:
            if self._busy:
                return
            batch = self._take(self._urgent)
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

    def _enqueue(self, put: _Put, queue: deque[_Put]) -> bool:
        """Queue entries and return True, or return False when there they would only wait."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while self._entries and (
                self._entries + len(put.entries) > MAX_QUEUED or self._size + put.size > MAX_QUEUED_CHARACTERS
            ):
                self._wake()
                if not self._changed.wait(deadline - time.monotonic()):
                    return False
            if self._retry_at is not None:  # the thread tries it again and again: nobody else need wait for that
                return False
            queue.append(put)
            self._entries += len(put.entries)
            self._size += put.size
            self._wake()
        return True

    def _wake(self) -> None:
        """Wake the thread, unless it looks by itself in a moment. (The caller holds the lock.)"""
        if self._asleep:
            self._asleep = False
            self._alarm.set()

    def _write_until(self, put: _Put) -> None:
        """Write what waits until this is written too, or wait for whoever is writing it."""
        deadline = time.monotonic() + DEADLINE
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
                    left = self._take_rest(self._urgent) if put in self._urgent else [put]
                elif self._busy:
                    self._changed.wait(deadline - time.monotonic())
                    continue
                else:
                    left = self._take(self._urgent)
                    self._busy = True
            if late:
                self._save(left, _refusal())
            else:
                self._write(left)

    def _run(self, end: threading.Event) -> None:
        """Write what nobody waits for, and ship what was spooled, until the end."""
        idle = 0
        while not end.is_set():
            with self._changed:
                # For a second after the last entry it looks by itself: to wake it for each would cost more.
                idle = 0 if self._lingering else idle + 1
                self._asleep = idle * LINGER > 1.0
                pause = LINGER if len(self._lingering) < BATCH else 0.0
                if self._asleep:
                    pause = max(self._look() - time.monotonic(), 0.0)
                self._alarm.clear()
            if not end.is_set():
                self._alarm.wait(pause)
            self._land()  # whoever sent it may be held up by its broker
            with self._changed:
                self._asleep = False
                batch = [] if self._busy else self._take(self._lingering)
                self._busy = self._busy or bool(batch)
            if batch:
                self._write(batch)
            if time.monotonic() >= self._look():
                self._ship()

    def _look(self) -> float:
        return self._look_at if self._retry_at is None else self._retry_at

    def _take(self, queue: deque[_Put]) -> list[_Put]:
        """Take as much from a queue as one transaction writes. (The caller holds the lock.)"""
        batch: list[_Put] = []
        count = size = 0
        while queue and (
            not batch or (count + len(queue[0].entries) <= BATCH and size + queue[0].size <= BATCH_CHARACTERS)
        ):
            put = queue.popleft()
            batch.append(put)
            count += len(put.entries)
            size += put.size
        self._entries -= count
        self._size -= size
        return batch

    def _take_rest(self, *queues: deque[_Put]) -> list[_Put]:
        """Take all there is in some queues. (The caller holds the lock.)"""
        rest: list[_Put] = []
        for queue in queues:
            while queue:
                rest += self._take(queue)
        return rest

    def _write(self, batch: list[_Put], commit: _Commit | None = None) -> None:
        """Write a batch, or spool what may be spooled of it. (The caller has said that somebody is busy.)"""
        try:
            self._try(batch, commit or self._pen.write)
        except BaseException as bug:
            logger.exception("the ledger's writer failed", extra={"action": "writer_failed"})
            self._save([put for put in batch if not put.ended], AuditUnavailable(repr(bug)))
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

    def _try(self, batch: list[_Put], commit: _Commit) -> None:
        try:
            new, unknown = commit([entry for put in batch for entry in put.entries])
        except AuditUnavailable as error:
            if not never_taken(error):
                self._give_up(batch, error)
            elif len(batch) > 1:
                for number, put in enumerate(batch):  # one of them is the culprit
                    if self._retry_at is not None:  # it went away meanwhile
                        self._save(batch[number:], error)
                        break
                    self._try([put], self._pen.write)
            else:
                self._save(batch, error)
            return
        for put in batch:
            put.new = {entry.message_id for entry in put.entries if entry.kind == "message"} & new
            put.ended = True
        if unknown:
            self._save([_Put(unknown, may_spool=True)], _refusal())

    def _give_up(self, batch: list[_Put], error: AuditUnavailable) -> None:
        """Spool or refuse a batch, and all that waits: the database is away."""
        with self._changed:
            self._note_away(error)
            rest = self._take_rest(self._urgent, self._lingering)
        self._save(batch + rest, error)

    def _save(self, puts: list[_Put], error: AuditUnavailable) -> None:
        """Spool what may be spooled, and refuse the rest."""
        spooled = [put for put in puts if put.may_spool]
        failed: AuditUnavailable | None = None
        try:
            if spooled:
                # At once: each time costs a disk's turn, and others may wait.
                self._spool.append([entry for put in spooled for entry in put.entries])
        except AuditUnavailable as full:
            failed = full
            for put in spooled:
                for entry in put.entries:  # the last place that is left
                    logger.critical("not recorded: %s", entry.text, extra={"action": "entry_lost"})
        for put in puts:
            put.error = failed if put.may_spool else error
            put.ended = True
        with self._changed:
            self._look_at = 0.0
            self._wake()
            self._changed.notify_all()

    def _ship(self) -> None:
        """Write what is in the spool, in order, as far as the database takes it; or find out that it is back."""
        self._look_at = time.monotonic() + SPOOL_SECONDS
        shipped = 0
        try:
            waiting = self._spool.first(BATCH, BATCH_CHARACTERS)
            while (waiting or self._retry_at is not None) and self._take_turn():
                try:
                    if self._retry_at is not None:
                        self._pen.rehearse()
                        self._note_back()
                    shipped += self._ship_part(waiting)
                except AuditUnavailable as error:
                    if isinstance(error, SpoolUnavailable):
                        raise
                    self._give_up([], error)
                    break
                finally:
                    self._rest()
                waiting = self._spool.first(BATCH, BATCH_CHARACTERS, waiting[-1][0]) if waiting else []
            self._spool_failed = False
        except SpoolUnavailable as error:
            if not self._spool_failed:  # one line an incident
                logger.warning("%s", error, extra={"action": "spool_failed"})
            self._spool_failed = True
        except Exception:
            logger.exception("the ledger's writer failed", extra={"action": "writer_failed"})
        if self._retry_at is not None:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        if shipped:
            logger.warning("%d spooled entries are in the ledger", shipped, extra={"action": "spool_shipped"})

    def _take_turn(self) -> bool:
        """Wait until nobody is writing, and be the one who is; return whether that came to be."""
        deadline = time.monotonic() + DEADLINE
        while True:
            self._land()
            with self._changed:
                if not self._busy:
                    self._busy = True
                    return True
                if self._flight is None and not self._changed.wait(deadline - time.monotonic()):
                    return False

    def _ship_part(self, waiting: list[tuple[int, Entry]]) -> int:
        """Ship entries together, or each alone when the database will never take one of them; return how many."""
        if not waiting:
            return 0
        try:
            _, unknown = self._pen.write([entry for _, entry in waiting])
        except AuditUnavailable as error:
            if not never_taken(error):
                raise
            if len(waiting) > 1:
                return sum(self._ship_part([one]) for one in waiting)
            logger.warning("refused for ever: %s", error, extra={"action": "entry_refused"})
            self._spool.refuse(waiting[0][0], str(error))
            return 0
        for number, entry in waiting:
            if entry in unknown and entry.age() > STRAY_SECONDS:
                self._spool.refuse(number, "the ledger has no such message")
        done = [number for number, entry in waiting if entry not in unknown]
        self._spool.remove(done)
        return len(done)

    def _note_away(self, error: AuditUnavailable) -> None:
        if self._retry_at is None:  # one line an incident
            self._away_since = time.monotonic()
            logger.warning(
                "%s. Until it is back, facts are kept in %s",
                error,
                self._spool.path,
                extra={"action": "ledger_away"},
            )
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._wake()

    def _note_back(self) -> None:
        if self._retry_at is not None:
            away = time.monotonic() - self._away_since
            logger.warning("the ledger is back after %.1f s", away, extra={"action": "ledger_back"})
            self._retry_at = None
            self._look_at = 0.0


def _raise(error: Exception, _: Sequence[Entry]) -> Any:
    raise error


def _refusal() -> AuditUnavailable:
    return AuditUnavailable(
        "the ledger's database does not answer, and what it cannot record is not published: check that it runs "
        "and that waooaw_database_url is right"
    )
