"""The reference clock: the time that all processes of a system share, even if a computer's own clock is wrong.

The reference is the clock of the ledger's PostgreSQL or, without a ledger, of the Redis that stores agents and
receipts. A ledger in SQLite is on one computer, whose clock is the reference.

Using it costs no round trip per message. A process reads the reference at first use and then once a minute, in the
background. In between it adds the time that has passed on the computer's steady clock, which cannot be set. A step
of the computer's own clock, by NTP or an operator, therefore changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from billiard import current_process

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.store.clock_reading import WARN_SECONDS, Reading, Source, local_and_steady, read, steady

logger = get_logger(__name__)

#: Error in seconds up to which a computer's clock is used unchanged. The times that one computer records are then
#: in exact order, which does not depend on round trips.
TOLERANCE = 0.1
#: Seconds between two readings, and from a failed reading to the next.
MEASURE_SECONDS, RETRY_SECONDS = 60.0, 10.0
#: Shortest time between two readings in seconds, even if the computer's clock is set repeatedly.
PAUSE_SECONDS = 1.0
#: Seconds that the first use waits for the first reading.
FIRST_SECONDS = 1.0


class ReferenceClock:
    """The reference clock, as one process knows it. Without a reading it shows this computer's time.

    Args:
        name: whose clock the reference is, such as ``the ledger's database``; None: it is this computer's clock.
        source: opens a connection to the reference; None: it is this computer's clock.
    """

    def __init__(self, name: str | None = None, source: Source | None = None) -> None:
        self._name, self._source = name, source
        self._reading: Reading | None = None
        self._first = threading.Event()
        #: When the next reading is due, by the steady clock; None before the first.
        self._due: float | None = None
        self._not_before = float("-inf")
        self._warned = self._failed = False

    @property
    def reading(self) -> Reading | None:
        """The newest reading; None if there is none yet, or the reference is this computer's clock."""
        return self._reading

    @property
    def has_source(self) -> bool:
        """Whether the reference is a clock other than this computer's."""
        return self._source is not None

    def now(self) -> datetime:
        """Return the time, aware UTC. It never raises, and only the first use waits for a reading."""
        return datetime.fromtimestamp(self._now(), UTC)

    def corrected(self, time_: datetime) -> datetime:
        """Return the reference's time for a ``LocalTime``; any other datetime is returned unchanged."""
        return self.correction()(time_) if isinstance(time_, LocalTime) else time_

    def correction(self) -> Callable[[datetime], datetime]:
        """Return a function that does what ``corrected`` does, for many times at once."""
        return partial(_corrected, self._ahead())

    def to_local(self, time_: datetime) -> datetime:
        """Return the time that this computer's clock shows at a time of the reference, for a local timer."""
        ahead = self._ahead()
        return time_ + timedelta(seconds=ahead) if ahead else time_

    def measure(self) -> Reading | None:
        """Read the reference now, and return the reading; None if it is this computer's clock.

        Raises:
            StoreUnavailable: the reference does not answer.
        """
        if self._name is None or self._source is None:
            return None
        self._due = steady() + RETRY_SECONDS
        reading = read(self._name, self._source)
        self._reading, self._due = reading, steady() + MEASURE_SECONDS
        self._warn(reading)
        return reading

    def report(self) -> dict[str, Any] | None:
        """Return the newest reading as a JSON object for a heartbeat, or None if there is none. It does not block.

        The keys are ``reference`` (whose clock), ``ahead`` and ``error`` (seconds) and ``age`` (seconds since the
        reading).
        """
        self._refresh(wait=False)
        reading = self._reading
        if reading is None:
            return None
        return {
            "reference": reading.name,
            # Computed now, because the computer's clock may have been set after the reading.
            "ahead": round(_ahead_of(reading), 3),
            "error": round(reading.error, 6),
            "age": round(steady() - reading.steady, 3),
        }

    def _now(self) -> float:
        return time.time() - self._ahead()

    def _ahead(self) -> float:
        """Return the seconds by which this computer's clock is wrong, or 0 within the tolerance."""
        if self._source is None:
            return 0.0
        local, now = local_and_steady()  # the same pair answers all that follows: this is asked for each message
        if self._is_due(local, now):
            self._refresh(wait=True)
            local, now = local_and_steady()
        reading = self._reading
        if reading is None:
            return 0.0
        ahead = local - (reading.reference + now - reading.steady)
        return ahead if abs(ahead) > TOLERANCE + reading.error else 0.0

    def _is_due(self, local: float, now: float) -> bool:
        """Whether to read the reference: it was long ago, or this computer's clock was set after the reading."""
        due, reading = self._due, self._reading
        if due is None:
            return True
        if now < self._not_before:
            return False
        was_set = reading is not None and abs((local - now) - (reading.local - reading.steady)) > TOLERANCE
        return now >= due or was_set

    def _refresh(self, *, wait: bool) -> None:
        """Start a reading in a thread if one is due, or if this computer's clock was set."""
        if self._source is None:
            return
        local, now = local_and_steady()
        if not self._is_due(local, now):
            return
        due = self._due
        # Two threads may pass here at once; then the reference is read twice, which is harmless.
        self._due, self._not_before = now + RETRY_SECONDS, now + PAUSE_SECONDS
        thread = threading.Thread(target=self._measure_quietly, name="waooaw-clock", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            return
        if wait and due is None:
            self._first.wait(FIRST_SECONDS)

    def _measure_quietly(self) -> None:
        try:
            self.measure()
            self._failed = False
        except WaooawError as error:  # the next reading is due in a few seconds
            if not self._failed and _is_main_process():  # one line for each outage
                logger.warning(
                    "%s. Until the time of %s can be read, its last reading applies, or this computer's clock",
                    error,
                    self._name,
                    extra={"action": "clock_not_read"},
                )
            self._failed = True
        except Exception:
            logger.exception("could not read the time of %s", self._name, extra={"action": "clock_failed"})
        finally:
            self._first.set()

    def _warn(self, reading: Reading) -> None:
        """Log once that this computer's clock is wrong, and once that it is right again."""
        wrong = reading.differs_by(WARN_SECONDS)
        if wrong and not self._warned and _is_main_process():
            logger.warning(
                "this computer's clock is %s: this process uses the time of %s instead. Set the clock: check that "
                "NTP (chrony, systemd-timesyncd, w32time) runs on both computers",
                reading,
                reading.name,
                extra={"action": "clock_wrong", "ahead": round(reading.ahead, 3)},
            )
        elif self._warned and not wrong and _is_main_process():
            logger.warning("this computer's clock is correct again", extra={"action": "clock_right"})
        self._warned = wrong


def _corrected(ahead: float, time_: datetime) -> datetime:
    if not isinstance(time_, LocalTime):
        return time_
    plain = datetime.combine(time_, time_.time(), UTC)
    return plain - timedelta(seconds=ahead) if ahead else plain


def _is_main_process() -> bool:
    """Whether this process logs; the pool processes of a worker do not, or each would log the same line."""
    return str(current_process().name) == "MainProcess"


def _ahead_of(reading: Reading) -> float:
    """Return the seconds by which this computer's clock is ahead of the reference now, by its last reading."""
    local, now = local_and_steady()
    return local - (reading.reference + now - reading.steady)
