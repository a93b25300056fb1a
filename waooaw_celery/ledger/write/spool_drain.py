"""Ships what is in the spool to the ledger, in order, as far as the database takes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import DEADLINE_SECONDS
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.write.buffer import BATCH, BATCH_CHARACTERS
from waooaw_celery.ledger.write.inserter import RowInserter, is_permanent_error
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.ledger.write.spool import Spool, SpoolUnavailable
from waooaw_celery.store.clock_reading import local_now

logger = logging.getLogger(__name__)

#: Seconds between two looks into the spool, which other processes fill too.
SPOOL_SECONDS = 5.0
#: Seconds for which a fact waits for the message that it is about.
STRAY_SECONDS = 600.0
#: Seconds for which it is looked, once the database answers, whether it takes a message that was withdrawn: what a
#: server was given before it froze it carries out when it thaws, within the time that a statement may take.
WITHDRAWAL_SECONDS = 3 * DEADLINE_SECONDS
#: What an entry raises that was damaged where it waited.
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)


class SpoolDrainer:
    """Ships the spool of this computer. For one thread.

    Args:
        pen: what it writes with.
        spool: what it ships.
        outage: whether the database is away: it finds out when it is back.
        turn: waits until nobody else uses the pen, tells whether that came to be, and keeps others out.
        give_up: called, in a turn, when the database went away.
        now: tells the time by which facts are written down.
    """

    def __init__(
        self,
        pen: RowInserter,
        spool: Spool,
        outage: Outage,
        turn: Callable[[], AbstractContextManager[bool]],
        give_up: Callable[[AuditUnavailable], None],
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self._now = now
        self._pen, self._spool, self._outage = pen, spool, outage
        self._turn, self._give_up = turn, give_up
        self._look_at = 0.0
        #: Whether the spool failed in the last look, and in this one.
        self._failed = self._failing = False
        #: Numbers of entries that are in the ledger, and that the spool could not remove.
        self._done: set[int] = set()
        #: When it was first seen that the ledger does not have a message that was withdrawn.
        self._looked_for: dict[str, float] = {}

    @property
    def due(self) -> float:
        """The moment at which there is something to do again."""
        return self._look_at if self._outage.retry_at is None else self._outage.retry_at

    def hurry(self) -> None:
        """Make it due now: something was spooled."""
        self._look_at = 0.0

    def ship(self) -> None:
        """Ship what waits, or find out that the database is back."""
        self._look_at = time.monotonic() + SPOOL_SECONDS
        shipped = 0
        try:
            self._failing = False
            self._with_spool(self._spool.salvage)
            self._with_spool(self._remove)
            waiting = self._first(0)
            # The database is tried whatever becomes of the spool.
            while waiting or self._outage.lasts:
                with self._turn() as mine:
                    if not mine:
                        break
                    try:
                        if self._outage.lasts:
                            self._pen.rehearse()
                            self._outage.end()
                            self.hurry()
                        shipped += self._ship_part(waiting)
                    except SpoolUnavailable as error:
                        self._tell(error)
                    except AuditUnavailable as error:
                        self._give_up(error)
                        break
                waiting = self._first(waiting[-1][0]) if waiting else []
            self._failed = self._failing
        except Exception:
            logger.exception("the ledger's writer failed", extra={"action": "writer_failed"})
        if self._outage.lasts:
            self._outage.put_off()
        if shipped:
            logger.warning("%d spooled entries are in the ledger", shipped, extra={"action": "spool_shipped"})

    def _first(self, after: int) -> list[tuple[int, LedgerRow]]:
        """Return the entries behind a number that are to be shipped next, as far as the spool can be read."""
        found: list[tuple[int, LedgerRow]] = []
        self._with_spool(lambda: found.extend(self._spool.first(BATCH, BATCH_CHARACTERS, after)))
        return found

    def _with_spool(self, do: Callable[[], None]) -> None:
        try:
            do()
        except SpoolUnavailable as error:
            self._tell(error)

    def _tell(self, error: SpoolUnavailable) -> None:
        if not self._failed and not self._failing:  # one line an incident
            logger.warning("%s", error, extra={"action": "spool_failed"})
        self._failing = True

    def _remove(self, numbers: Sequence[int] = ()) -> None:
        """Remove entries that are in the ledger: these, and those that could not be removed before."""
        self._done.update(numbers)
        if self._done:
            try:
                self._spool.remove(sorted(self._done))
            except SpoolUnavailable:
                if not self._spool.drop(self._done):
                    raise
            self._done.clear()

    def _ship_part(self, waiting: list[tuple[int, LedgerRow]]) -> int:
        """Ship entries together, or each alone when the database will never take one of them; return how many."""
        waiting = [(number, entry) for number, entry in waiting if number not in self._done]
        if not waiting:
            return 0
        try:
            _, unknown = self._pen.write([entry for _, entry in waiting], late=True)
        except (AuditUnavailable, *_UNREADABLE) as error:
            if isinstance(error, AuditUnavailable) and not is_permanent_error(error):
                raise
            if len(waiting) > 1:
                return sum(self._ship_part([one]) for one in waiting)
            logger.warning("refused for ever: %s", error, extra={"action": "entry_refused"})
            self._spool.refuse(waiting[0][0], str(error) or repr(error))
            return 0
        needless: list[int] = []
        strays: list[int] = []
        for number, entry in waiting:
            if entry not in unknown:
                self._looked_for.pop(entry.message_id, None)
            elif entry.kind == "withdrawal":
                if self._is_needless(entry):
                    needless.append(number)
            elif entry.age(self._now()) > STRAY_SECONDS:
                strays.append(number)
        done = [number for number, entry in waiting if entry not in unknown]
        self._remove(done + needless)
        for number in strays:
            self._spool.refuse(number, "the ledger has no such message")
        return len(done)

    def _is_needless(self, withdrawal: LedgerRow) -> bool:
        """Whether the ledger will never have the message, so that nothing is to be withdrawn."""
        since = self._looked_for.setdefault(withdrawal.message_id, time.monotonic())
        if time.monotonic() - since < WITHDRAWAL_SECONDS:
            return False
        del self._looked_for[withdrawal.message_id]
        return True
