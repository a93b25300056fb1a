"""Reads one source of samples again and again in its own thread, with a deadline.

A scrape never waits for a source: it gets what was read last. A source that hangs has one thread that hangs, and
is shown as down when its deadline is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from waooaw_celery.errors import WaooawError
from waooaw_celery.maintenance.fleet.samples import Samples
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds that one reading may take.
DEADLINE_SECONDS = 10.0
#: Intervals after which the samples of a source are dropped, if it cannot be read.
STALE_INTERVALS = 4
#: Seconds that ``stop`` waits for a reading that has begun.
STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source is.

    Attributes:
        up: whether its newest reading succeeded in time.
        tried: whether it was read at least once, with or without success.
        age: seconds since it was last read successfully; None: never.
        seconds: seconds that the newest reading took; None: there was none.
        samples: what was read, unless it is too old.
    """

    up: bool
    tried: bool
    age: float | None
    seconds: float | None
    samples: Samples


class Source:
    """Reads one source in the background.

    Args:
        name: its name in metrics and logs.
        read: returns its samples. It should have deadlines of its own; any error means that the source is down.
        interval: seconds between the starts of two readings.
        deadline: seconds after which a reading counts as failed.

    Example:
        >>> source = Source("broker", read_queues, interval=15)
        >>> source.start()
        >>> source.state().up
        True
    """

    def __init__(
        self, name: str, read: Callable[[], Samples], interval: float, deadline: float = DEADLINE_SECONDS
    ) -> None:
        self.name = name
        self._read, self._interval, self._deadline = read, interval, deadline
        self._lock = threading.Lock()
        self._samples, self._read_at = Samples(), float("-inf")
        self._began: float | None = None
        self._seconds: float | None = None
        self._failed = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"waooaw-exporter-{name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more. A reading that has begun is waited for, but not for long."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def state(self) -> SourceState:
        """Return how the source is; this never waits."""
        now = time.monotonic()
        with self._lock:
            age = now - self._read_at
            hangs = self._began is not None and now - self._began > self._deadline
            is_stale = age > STALE_INTERVALS * self._interval + self._deadline
            return SourceState(
                up=age < float("inf") and not self._failed and not hangs,
                tried=self._seconds is not None or hangs,
                age=None if age == float("inf") else age,
                seconds=self._seconds,
                samples=Samples() if is_stale else self._samples,
            )

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            with self._lock:
                self._began = began
            found: Samples | None = None
            error: Exception | None = None
            try:
                found = self._read()
            except Exception as failure:  # noqa: BLE001 - whatever fails, the other sources are still exported
                error = failure
            self._note(found, error, time.monotonic() - began)
            self._stopped.wait(max(self._interval - (time.monotonic() - began), 0.1))

    def _note(self, found: Samples | None, error: Exception | None, seconds: float) -> None:
        too_late = seconds > self._deadline
        failed_before = self._failed
        with self._lock:
            self._began, self._seconds = None, seconds
            self._failed = found is None or too_late
            if found is not None:
                self._samples, self._read_at = found, time.monotonic()
        extra = {"action": "source_down", "source": self.name}
        if error is not None and not failed_before:
            is_known = isinstance(error, WaooawError | OSError)
            logger.warning(
                "the source %s of the metrics cannot be read: %s",
                self.name,
                escaped(str(error) or type(error).__name__),
                extra=extra,
                exc_info=None if is_known else error,
            )
        elif too_late and not failed_before:
            logger.warning("reading the source %s of the metrics took %.1f s", self.name, seconds, extra=extra)
        elif failed_before and not self._failed:
            logger.info("the source %s of the metrics can be read again", self.name, extra={"action": "source_up"})
