"""One reading of another computer's clock, and how far it differs from this one's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

#: Seconds beyond which a wrong clock is logged.
WARN_SECONDS = 2.0
#: Seconds by which clocks may disagree for a purge: what it removes cannot be brought back.
MOST_SKEW = 60.0
#: How often a reference is asked in one reading, unless an answer came within so many seconds.
ATTEMPTS, QUICK_SECONDS = 3, 0.02

#: Whether the system has a clock that nobody sets and that counts on while the computer sleeps.
_COUNTS_SLEEP = hasattr(time, "CLOCK_BOOTTIME")

#: Gives, for as long as a connection is open, what asks a reference for its time in seconds since 1970.
Source: TypeAlias = Callable[[], AbstractContextManager[Callable[[], float]]]


def local_now() -> datetime:
    """Return the time by this computer's clock, aware UTC."""
    return datetime.now(UTC)


def steady() -> float:
    """Return the seconds of a clock that nobody sets; only differences mean something.

    It counts on while the computer sleeps, where its system has such a clock.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _COUNTS_SLEEP else time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reference said, beside what this computer's clock said at that moment.

    Attributes:
        name: whose clock it is, such as ``the ledger's database``.
        reference: its time, in seconds since 1970.
        local: this computer's time, in seconds since 1970.
        steady: the moment by the steady clock.
        error: half the round trip in seconds: the reference is no further from ``reference`` than this.
    """

    name: str
    reference: float
    local: float
    steady: float
    error: float

    @property
    def ahead(self) -> float:
        """Seconds that this computer's clock is ahead of the reference; negative when it is behind."""
        return self.local - self.reference

    def differs_by(self, seconds: float) -> bool:
        """Whether the clocks differ by more than this for certain, however long the answer took."""
        return abs(self.ahead) - self.error > seconds

    def __str__(self) -> str:
        return f"{difference(self.ahead)} {self.name} (give or take {self.error:.3f} s)"


def difference(ahead: float) -> str:
    """Return a difference between two clocks in words, such as ``3600.0 s ahead of``."""
    return f"{abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'}"


def read(name: str, source: Source) -> Reading:
    """Ask a reference for its time.

    Args:
        name: whose clock it is.
        source: how to ask it. Connecting is not part of the round trip.

    Returns:
        Of up to three answers, the one that came soonest.

    Raises:
        StoreUnavailable: it does not answer.
    """
    readings: list[Reading] = []
    with source() as ask:
        while len(readings) < ATTEMPTS and not any(2 * each.error < QUICK_SECONDS for each in readings):
            local, before = time.time(), steady()
            reference = ask()
            half = (steady() - before) / 2
            readings.append(
                Reading(name=name, reference=reference, local=local + half, steady=before + half, error=half)
            )
    return min(readings, key=lambda each: each.error)


def redis_source(connect: Callable[[], Any]) -> Source:
    """Return how to ask a Redis for its time.

    Args:
        connect: returns a client; it is closed afterwards.
    """

    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        with connect() as client:
            yield lambda: redis_time(client.time())

    return source


def redis_time(answer: tuple[int, int]) -> float:
    """Return the seconds since 1970 of an answer to Redis's TIME: seconds and microseconds."""
    return answer[0] + answer[1] / 1e6
