"""The time that all processes of a system share, whatever their own computers' clocks say.

The reference is the clock of the ledger's PostgreSQL, or of the Redis that keeps agents and receipts where there
is no ledger. A ledger in SQLite belongs to one computer: that computer's clock is the reference.

Reading the reference costs no round trip per message. A process asks it once at first use and once a minute from
then on, in the background, and counts on with the computer's steady clock, which nobody sets. So a step of the
computer's own clock (NTP, an operator) changes nothing either.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from billiard import current_process

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.store.clock_reading import WARN_SECONDS, Reading, Source, read, steady

logger = logging.getLogger(__name__)

#: Seconds by which a computer's clock may be wrong and is still used as it is. Within them the order of what one
#: computer writes down is exact, and does not depend on how long an answer took.
TOLERANCE = 0.1
#: Seconds between two readings, and after one that failed.
MEASURE_SECONDS, RETRY_SECONDS = 60.0, 10.0
#: Seconds that must lie between two attempts, also when somebody sets the clock again and again.
PAUSE_SECONDS = 1.0
#: Seconds that the first use of a clock waits for its first reading.
FIRST_SECONDS = 1.0


class ReferenceClock:
    """The reference's time as one process knows it.

    ``now()`` never fails: without a reading it returns this computer's own time.

    Args:
        name: whose clock the reference is, for sentences; None: there is none but this computer's.
        source: how to ask it; None: as above.
    """

    def __init__(self, name: str | None = None, source: Source | None = None) -> None:
        self._name, self._source = name, source
        self._reading: Reading | None = None
        self._first = threading.Event()
        #: When it is asked again, by the steady clock; None: it was never asked.
        self._due: float | None = None
        self._not_before = float("-inf")
        self._warned = self._failed = False

    @property
    def reading(self) -> Reading | None:
        """The newest reading, or None: there was none so far, or the reference is this computer's own clock."""
        return self._reading

    @property
    def has_source(self) -> bool:
        """Whether the reference is another clock than this computer's."""
        return self._source is not None

    def now(self) -> datetime:
        """Return the time, aware UTC. No round trip, except that the first use waits for a first reading."""
        return datetime.fromtimestamp(self._now(), UTC)

    def corrected(self, moment: datetime) -> datetime:
        """Return a moment that this computer's clock gave, by the reference, as a plain datetime.

        A moment that somebody named stays as it is: only a ``LocalTime`` is changed.
        """
        if not isinstance(moment, LocalTime):
            return moment
        plain = datetime.combine(moment, moment.time(), UTC)
        ahead = self._ahead()
        return plain - timedelta(seconds=ahead) if ahead else plain

    def to_local(self, moment: datetime) -> datetime:
        """Return what this computer's clock shows at a moment, for a timer that goes by it."""
        ahead = self._ahead()
        return moment + timedelta(seconds=ahead) if ahead else moment

    def measure(self) -> Reading | None:
        """Ask the reference now, and return the reading; None: it is this computer's own clock.

        Raises:
            StoreUnavailable: it does not answer.
        """
        if self._name is None or self._source is None:
            return None
        self._due = steady() + RETRY_SECONDS
        reading = read(self._name, self._source)
        self._reading, self._due = reading, steady() + MEASURE_SECONDS
        self._warn(reading)
        return reading

    def report(self) -> dict[str, Any] | None:
        """Return the newest reading for a heartbeat, as JSON values; None: there is none. It returns at once.

        The keys are ``reference`` (whose clock), ``ahead`` and ``error`` (seconds) and ``age`` (seconds since it
        was read).
        """
        self._refresh(wait=False)
        reading = self._reading
        if reading is None:
            return None
        return {
            "reference": reading.name,
            # As it is now: it may have been set since it was read.
            "ahead": round(time.time() - self._anchored(reading), 3),
            "error": round(reading.error, 6),
            "age": round(steady() - reading.steady, 3),
        }

    def _now(self) -> float:
        local = time.time()
        self._refresh(wait=True)
        reading = self._reading
        if reading is None:
            return local
        anchored = self._anchored(reading)
        return local if abs(anchored - local) <= TOLERANCE + reading.error else anchored

    def _ahead(self) -> float:
        """Return the seconds by which this computer's clock is to be corrected."""
        now = self._now()
        ahead = time.time() - now
        return ahead if abs(ahead) > TOLERANCE / 2 else 0.0

    def _anchored(self, reading: Reading) -> float:
        return reading.reference + steady() - reading.steady

    def _refresh(self, *, wait: bool) -> None:
        """See to it that the reference is asked when that is due, in a thread of its own."""
        if self._source is None:
            return
        now, due = steady(), self._due
        if due is not None and (now < self._not_before or (now < due and not self._was_set())):
            return
        # Two threads may see this at once: then it is asked twice, which does no harm.
        self._due, self._not_before = now + RETRY_SECONDS, now + PAUSE_SECONDS
        thread = threading.Thread(target=self._measure_quietly, name="waooaw-clock", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down; the last reading does
            return
        if wait and due is None:
            self._first.wait(FIRST_SECONDS)

    def _was_set(self) -> bool:
        """Whether somebody set this computer's clock since the reading."""
        reading = self._reading
        if reading is None:
            return False
        return abs((time.time() - steady()) - (reading.local - reading.steady)) > TOLERANCE

    def _measure_quietly(self) -> None:
        try:
            self.measure()
            self._failed = False
        except WaooawError as error:  # asked again in a few seconds
            if not self._failed and _speaks():  # one line an incident
                logger.warning(
                    "the time of %s is not known: %s. Until it is, this computer's clock counts, as last compared",
                    self._name,
                    error,
                    extra={"action": "clock_not_read"},
                )
            self._failed = True
        except Exception:
            logger.exception("the time of %s could not be read", self._name, extra={"action": "clock_failed"})
        finally:
            self._first.set()

    def _warn(self, reading: Reading) -> None:
        """Log once that the clock is wrong, and once that it is right again."""
        wrong = reading.differs_by(WARN_SECONDS)
        if wrong and not self._warned and _speaks():
            logger.warning(
                "this computer's clock is %s: what this process sends, expires and writes down goes by the time "
                "of %s. Set the clock: check that NTP (chrony, systemd-timesyncd, w32time) runs here and there",
                reading,
                reading.name,
                extra={"action": "clock_wrong", "ahead": round(reading.ahead, 3)},
            )
        elif self._warned and not wrong and _speaks():
            logger.warning("this computer's clock is right again", extra={"action": "clock_right"})
        self._warned = wrong


def _speaks() -> bool:
    """Whether this process tells the log: of a worker only the main one, or each of its pool would."""
    return str(current_process().name) == "MainProcess"
