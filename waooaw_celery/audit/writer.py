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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from waooaw_celery.audit.engine import PATIENCE, Database, Line
from waooaw_celery.audit.entries import Entry
from waooaw_celery.audit.spool import Spool
from waooaw_celery.audit.statements import WRITE, lists, outcome, settle_strays, write
from waooaw_celery.errors import AuditUnavailable

logger = logging.getLogger(__name__)

#: Seconds that an entry for which nobody waits may wait for others.
LINGER = 0.05
#: Entries written in one transaction.
BATCH = 500
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
        self._database = database
        self._line = Line(database)  # for whoever is writing: one at a time
        self._spool = spool
        self._changed = threading.Condition()
        self._alarm = threading.Event()
        #: What somebody waits for, and what nobody does.
        self._urgent: deque[_Put] = deque()
        self._lingering: deque[_Put] = deque()
        self._entries = self._size = 0
        #: Whether somebody is writing, whether the thread sleeps deeply, whether it is to end.
        self._busy = self._asleep = self._closing = False
        #: The moment from which the database is tried again; None while it answers.
        self._retry_at: float | None = None
        self._away_since = 0.0
        self._look_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write in the background, and to ship what is in the spool."""
        if self._thread is None:
            with self._changed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="waooaw-ledger", daemon=True)
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
        elif wait:
            self._write_until(put)
        if put.error is not None:
            raise put.error
        return put.new

    def flush(self) -> None:
        """Return when everything handed over so far is safe, or the deadline is over."""
        with self._changed:
            left = [queue[-1] for queue in (self._urgent, self._lingering) if queue]
            self._urgent.extend(self._lingering)
            self._lingering.clear()
        for put in left:
            self._write_until(put)
        deadline = time.monotonic() + DEADLINE
        with self._changed:
            while self._busy and self._changed.wait(deadline - time.monotonic()):
                pass

    def close(self) -> None:
        """Flush, and end the thread."""
        self.flush()
        self._closing = True
        thread, self._thread = self._thread, None
        self._alarm.set()
        if thread is not None:
            thread.join(PATIENCE)
        self._closing = False
        with self._changed:
            if not self._busy:
                self._line.close()

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
            if self._retry_at is not None and time.monotonic() < self._retry_at:
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
            with self._changed:
                if put.ended:
                    return
                if self._busy:
                    if not self._changed.wait(deadline - time.monotonic()):
                        put.error = _refusal()
                        return
                    continue
                batch = self._take(self._urgent)
            self._write(batch)

    def _run(self) -> None:
        """Write what nobody waits for, and ship what was spooled, until the end."""
        idle = 0
        while not self._closing:
            with self._changed:
                # For a second after the last entry it looks by itself: to wake it for each would cost more.
                idle = 0 if self._lingering else idle + 1
                self._asleep = idle * LINGER > 1.0
                self._alarm.clear()
            self._alarm.wait(max(self._look() - time.monotonic(), 0.0) if self._asleep else LINGER)
            with self._changed:
                self._asleep = False
                batch = [] if self._busy else self._take(self._lingering)
            if batch:
                self._write(batch)
            if time.monotonic() >= self._look():
                self._ship()

    def _look(self) -> float:
        return self._look_at if self._retry_at is None else self._retry_at

    def _take(self, queue: deque[_Put]) -> list[_Put]:
        """Take as much from a queue as one transaction writes. (The caller holds the lock, and writes it.)"""
        batch: list[_Put] = []
        count = 0
        while queue and (count == 0 or count + len(queue[0].entries) <= BATCH):
            put = queue.popleft()
            batch.append(put)
            count += len(put.entries)
            self._size -= put.size
        self._entries -= count
        self._busy = bool(batch)
        return batch

    def _write(self, batch: list[_Put]) -> None:
        """Write a batch, or spool what may be spooled of it."""
        try:
            self._try(batch)
        except Exception as bug:
            logger.exception("the ledger's writer failed", extra={"action": "writer_failed"})
            self._save([put for put in batch if not put.ended], AuditUnavailable(repr(bug)))
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _try(self, batch: list[_Put]) -> None:
        try:
            new, unknown = self._commit([entry for put in batch for entry in put.entries])
        except AuditUnavailable as error:
            if not _never_taken(error):
                self._note_away(error)
                self._save(batch + self._take_rest(), error)
            elif len(batch) > 1:
                for put in batch:  # one of them is the culprit
                    self._try([put])
            else:
                self._save(batch, error)
            return
        self._note_back()
        if unknown:
            self._spool.append(unknown)
        for put in batch:
            put.new = {entry.message_id for entry in put.entries if entry.kind == "message"} & new
            put.ended = True

    def _take_rest(self) -> list[_Put]:
        rest: list[_Put] = []
        with self._changed:
            for queue in (self._urgent, self._lingering):
                while queue:
                    rest += self._take(queue)
            self._busy = True
        return rest

    def _save(self, batch: list[_Put], error: AuditUnavailable) -> None:
        """Spool what may be spooled, and refuse the rest."""
        for put in batch:
            if not put.may_spool:
                put.error = error
            else:
                try:
                    self._spool.append(put.entries)
                    self._look_at = 0.0
                except AuditUnavailable as full:
                    for entry in put.entries:  # the last place that is left
                        logger.critical("not recorded: %s", entry.text, extra={"action": "entry_lost"})
                    put.error = full
            put.ended = True

    def _commit(self, entries: Sequence[Entry]) -> tuple[set[str], list[Entry]]:
        """Write entries, all or none.

        Returns:
            The ids of the messages that are new, and the strays about whose messages nothing is known yet.
        """
        # In one order everywhere, so that two processes never wait for each other's rows in a circle.
        ordered = sorted(entries, key=lambda entry: entry.message_id)
        messages = [entry for entry in ordered if entry.kind == "message"]
        facts = [entry for entry in ordered if entry.kind == "fact"]
        strays = [entry for entry in ordered if entry.kind == "stray"]
        if self._database.is_postgresql and not strays:
            return outcome(self._line.run("write to the ledger", WRITE, lists(messages, facts)))[0], []
        with self._database.begin("write to the ledger") as connection:
            settled, unknown = settle_strays(connection, strays) if strays else ([], [])
            return write(connection, messages, facts + settled)[0], unknown

    def _ship(self) -> None:
        """Write what is in the spool, in order, as far as the database takes it."""
        self._look_at = time.monotonic() + SPOOL_SECONDS
        shipped, last = 0, 0
        try:
            while waiting := self._spool.first(BATCH, last):
                shipped += self._ship_part(waiting)
                last = waiting[-1][0]
                self._note_back()
        except AuditUnavailable as error:
            self._note_away(error)
        if shipped:
            logger.warning("%d spooled entries are in the ledger", shipped, extra={"action": "spool_shipped"})

    def _ship_part(self, waiting: list[tuple[int, Entry]]) -> int:
        """Ship entries together, or each alone when the database will never take one of them; return how many."""
        try:
            _, unknown = self._commit([entry for _, entry in waiting])
        except AuditUnavailable as error:
            if not _never_taken(error):
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

    def _note_back(self) -> None:
        if self._retry_at is not None:
            away = time.monotonic() - self._away_since
            logger.warning("the ledger is back after %.1f s", away, extra={"action": "ledger_back"})
            self._retry_at = None
            self._look_at = 0.0


def _refusal() -> AuditUnavailable:
    return AuditUnavailable(
        "the ledger's database does not answer, and what it cannot record is not published: check that it runs "
        "and that waooaw_database_url is right"
    )


def _never_taken(error: AuditUnavailable) -> bool:
    """Whether the database answered, and will answer the same to these rows at any time."""
    cause: Any = error.__cause__
    known: Any = getattr(cause, "orig", cause)
    return any(kind.__name__ in ("DataError", "IntegrityError") for kind in type(known).__mro__)
