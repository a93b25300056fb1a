"""A reading of a reference clock, and its difference from this computer's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

#: Difference in seconds from which a wrong clock is logged.
WARN_SECONDS = 2.0
#: Difference in seconds above which a purge does not run, because it cannot be undone.
MAX_SKEW_SECONDS = 60.0
#: Round trips of one reading; a round trip shorter than QUICK_SECONDS ends it.
ATTEMPTS, QUICK_SECONDS = 3, 0.02

#: How often both of this computer's clocks are read until they are read within so many seconds.
_CLOCK_ATTEMPTS, _SAME_INSTANT_SECONDS = 10, 0.001

#: Whether the system has a clock that cannot be set and that runs while the computer sleeps.
_COUNTS_SLEEP = hasattr(time, "CLOCK_BOOTTIME")

#: Opens a connection to a reference, and yields a function that returns its time in seconds since 1970.
Source: TypeAlias = Callable[[], AbstractContextManager[Callable[[], float]]]


def local_now() -> datetime:
    """Return the time of this computer's clock, aware UTC."""
    return datetime.now(UTC)


#: Returns the seconds of a clock that cannot be set; only differences between two calls are meaningful. Where the
#: system has such a clock, it also runs while the computer sleeps. It is read several times for each message, so
#: no function of Python stands around it.
steady: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if _COUNTS_SLEEP else time.monotonic


def local_and_steady() -> tuple[float, float]:
    """Return this computer's time in seconds since 1970, and the steady clock's, of the same instant.

    A thread can be interrupted between two readings. On a busy computer the difference would look like a wrong
    clock, so the readings are then repeated.
    """
    for _ in range(_CLOCK_ATTEMPTS):
        before, local, after = steady(), time.time(), steady()
        if after - before < _SAME_INSTANT_SECONDS:
            break
    return local, (before + after) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The time of a reference clock and of this computer's clocks, at the same instant.

    Attributes:
        name: whose clock it is, such as ``the ledger's database``.
        reference: time of the reference, in seconds since 1970.
        local: time of this computer, in seconds since 1970.
        steady: time of the steady clock, in seconds.
        error: largest error of ``reference`` in seconds: half the round trip.
    """

    name: str
    reference: float
    local: float
    steady: float
    error: float

    @property
    def ahead(self) -> float:
        """Seconds by which this computer's clock is ahead of the reference; negative if it is behind."""
        return self.local - self.reference

    def differs_by(self, seconds: float) -> bool:
        """Whether the clocks differ by more than this, even with the largest error."""
        return abs(self.ahead) - self.error > seconds

    def __str__(self) -> str:
        return f"{difference(self.ahead)} {self.name} (give or take {self.error:.3f} s)"


def difference(ahead: float) -> str:
    """Return the difference of a clock as text, such as ``3600.0 s ahead of``."""
    return f"{abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'}"


def read(name: str, source: Source) -> Reading:
    """Read a reference clock.

    Args:
        name: whose clock it is.
        source: opens a connection to the reference. Connecting does not count as part of the round trip.

    Returns:
        The reading with the shortest of up to three round trips.

    Raises:
        StoreUnavailable: the reference does not answer.
    """
    readings: list[Reading] = []
    with source() as ask:
        while len(readings) < ATTEMPTS and not any(2 * each.error < QUICK_SECONDS for each in readings):
            local, before = local_and_steady()
            reference = ask()
            half = (steady() - before) / 2
            readings.append(
                Reading(name=name, reference=reference, local=local + half, steady=before + half, error=half)
            )
    return min(readings, key=lambda each: each.error)


def redis_source(connect: Callable[[], Any]) -> Source:
    """Return a source that reads the clock of a Redis.

    Args:
        connect: returns a client, which is closed after each reading.
    """

    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        with connect() as client:
            yield lambda: redis_time(client.time())

    return source


def redis_time(answer: tuple[int, int]) -> float:
    """Return the seconds since 1970 from the reply to Redis's TIME, which is seconds and microseconds."""
    return answer[0] + answer[1] / 1e6
