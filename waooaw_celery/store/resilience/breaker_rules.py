"""The rules of the circuit breaker of an agent: what a report, a probe and an operator change in its record.

``lua/breaker.lua`` has the same rules, for Redis. The ledger, and a process whose store is away, use these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

#: The parts of the window: requests are counted for each, and a part is forgotten as a whole.
PARTS = 10


class BreakerState(StrEnum):
    """Whether requests to an agent are let through: all, none, or one as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a circuit breaker opens, and for how long.

    Attributes:
        failures: failed requests within the window that open it, if at least half of the requests failed; 0: none.
        window: seconds for which requests are counted.
        open_seconds: seconds until one request is let through as a probe.
    """

    failures: int = 10
    window: float = 30.0
    open_seconds: float = 10.0

    @property
    def part_seconds(self) -> float:
        """The length of a part of the window."""
        return self.window / PARTS


class Counted(NamedTuple):
    """Requests that one process has counted.

    Attributes:
        parts_ago: how many parts of the window ago they ended.
        failures: how many failed.
        successes: how many were answered.
    """

    parts_ago: int
    failures: int
    successes: int


@dataclass(slots=True)
class BreakerRecord:
    """What is stored about the circuit breaker of an agent. A closed one without failures has no record.

    All times are seconds since 1970 by the store's clock.

    Attributes:
        counts: failed and answered requests, by the number of their part of the window.
        opened_at: since when it is open; None: it is closed.
        retry_at: when a probe may be sent; None: it is closed, or was opened by hand.
        probe: id of the request that is the probe, or None.
        probe_until: when the probe's place is free again, whatever became of it.
        by: who opened it by hand, or None.
        reason: why, or None.
        until: when it closes by itself after it was opened by hand; None: not by itself.
    """

    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    opened_at: float | None = None
    retry_at: float | None = None
    probe: str | None = None
    probe_until: float = 0.0
    by: str | None = None
    reason: str | None = None
    until: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without what is None. The counts are a list, as Lua's JSON has no other keys."""
        form: dict[str, Any] = {
            name: value
            for name in ("opened_at", "retry_at", "probe", "probe_until", "by", "reason", "until")
            if (value := getattr(self, name)) is not None
        }
        form["counts"] = [[part, *numbers] for part, numbers in sorted(self.counts.items())]
        return form

    @classmethod
    def from_dict(cls, form: dict[str, Any]) -> Self:
        """Return the record of a JSON form."""
        counts = {int(part): (int(failures), int(successes)) for part, failures, successes in form["counts"] or ()}
        return cls(**{**form, "counts": counts})

    def state(self, now: float) -> BreakerState:
        """Return the state at a time."""
        if self.opened_at is None or (self.until is not None and now >= self.until):
            return BreakerState.CLOSED
        if self.retry_at is None or now < self.retry_at:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def has_probe(self, now: float) -> bool:
        """Return whether a probe is on its way."""
        return self.probe is not None and now < self.probe_until

    def retry_after(self, now: float) -> float:
        """Return the seconds until a request may be let through again; infinite if it is open without an end."""
        if self.by is not None:
            return math.inf if self.until is None else max(self.until - now, 0.0)
        if self.has_probe(now):  # it may be answered at any moment
            return min(self.probe_until - now, 1.0)
        return max((self.retry_at or now) - now, 0.0)

    def failures(self) -> int:
        """Return the counted failures."""
        return sum(failures for failures, _ in self.counts.values())

    def successes(self) -> int:
        """Return the counted answers."""
        return sum(successes for _, successes in self.counts.values())


def report(
    record: BreakerRecord, counted: Sequence[Counted], limits: BreakerLimits, now: float
) -> BreakerRecord | None:
    """Return the record after requests were counted; None: it has nothing to keep.

    Requests that end while the breaker is open were sent before it opened, and do not count.
    """
    if record.state(now) is not BreakerState.CLOSED:
        return record
    newest = math.floor(now / limits.part_seconds)
    counts = {part: each for part, each in record.counts.items() if newest - PARTS < part <= newest}
    for parts_ago, failures, successes in counted:
        if 0 <= parts_ago < PARTS:
            known = counts.get(newest - parts_ago, (0, 0))
            counts[newest - parts_ago] = known[0] + failures, known[1] + successes
    result = BreakerRecord(counts=counts)
    failed = result.failures()
    if not failed:
        return None
    if 0 < limits.failures <= failed and failed >= result.successes() and any(each.failures for each in counted):
        return BreakerRecord(opened_at=now, retry_at=now + limits.open_seconds)
    return result


def take_probe(record: BreakerRecord, request: str, lease: float, now: float) -> bool:
    """Give the probe's place to a request if it is free, and return whether it was."""
    if record.state(now) is not BreakerState.HALF_OPEN or record.has_probe(now):
        return False
    record.probe, record.probe_until = request, now + lease
    return True


def end_probe(
    record: BreakerRecord, request: str, works: bool | None, limits: BreakerLimits, now: float
) -> BreakerRecord | None:
    """Return the record after its probe has ended; None: it is closed. Only the newest probe counts.

    Args:
        record: the record.
        request: id of the request that was the probe.
        works: whether the agent works; None: it is not known, and the next request is the probe.
        limits: for how long it is open if the agent does not work.
        now: the time.
    """
    if record.by is not None or record.probe != request:
        return record
    if works:
        return None
    record.probe, record.probe_until = None, 0.0
    if works is False:
        record.retry_at = now + limits.open_seconds
    return record


def open_by_hand(by: str, reason: str | None, seconds: float | None, now: float) -> BreakerRecord:
    """Return the record of a breaker that an operator opens, for some seconds or without an end."""
    return BreakerRecord(opened_at=now, by=by, reason=reason, until=None if seconds is None else now + seconds)
