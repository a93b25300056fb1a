"""Helpers for tests of rate limits: a clock that the test moves, limiters, paced senders, and restrictions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st

from waooaw_celery import RateLimiter, RateLimitExceeded
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.rules import MAX_LIMIT, MAX_PERIOD, Demand, Quota, Rule
from waooaw_celery.limits.storage import LimitStorage
from waooaw_celery.store.restrictions import KnownRestrictions, Pause, Restrictions

#: A time in microseconds.
START = 1_700_000_000_000_000


class Clock:
    """A clock in microseconds that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)


def limiter_at(clock: Callable[[], int], *quota: Any, **options: Any) -> RateLimiter:
    """Return a limiter in memory that uses a clock."""
    return RateLimiter(MemoryStorage(clock), *quota, **options)


def passing(limiter: RateLimiter, agent: str, **options: Any) -> int:
    """Return how many messages pass until one is refused."""
    count = 0
    while True:
        try:
            limiter.acquire(agent, **options)
        except RateLimitExceeded:
            return count
        count += 1


@st.composite
def paced_rules(draw: st.DrawFn) -> Rule:
    """Return a rule with any limit, burst and window from a minute on: Redis expires counters by its own clock."""
    limit = draw(st.integers(1, 200) | st.integers(1, 1_000_000) | st.integers(1, MAX_LIMIT))
    period = draw(st.sampled_from([60, 3600, 86_400, MAX_PERIOD]) | st.integers(60, MAX_PERIOD))
    return Rule(limit, period, draw(st.integers(1, min(limit, 20)) | st.integers(1, limit)))


def check_pace(storage: LimitStorage, clock: Clock, rule: Rule, gaps: list[float]) -> None:
    """Check that a bucket refills at the rate of its rule, to the microsecond, whatever its sender does.

    Args:
        storage: A storage that uses the clock.
        clock: The clock.
        rule: A rule with a burst.
        gaps: The pauses of the sender, in the time between two messages at the rate. After each of them it sends
            one message as soon as it may.
    """
    quota, burst = Quota((rule,)), rule.burst or 0
    message_us = Fraction(rule.period * 1_000_000, rule.limit)
    assert storage.decide("a", [Demand("", burst, burst)], quota, 0, charge=True) is None
    sent, level, last, start = burst, Fraction(0), clock.now, clock.now

    for gap in gaps:
        if sent == rule.limit:  # more are a matter of the window
            return
        clock.now += round(gap * message_us)
        refusal = storage.decide("a", [Demand("", 1, 1)], quota, 0, charge=True)
        held = min(level + (clock.now - last) / message_us, Fraction(burst))
        if held < 1:
            assert refusal is not None
            assert refusal.wait_us == -((held - 1) * message_us // 1)
            clock.now += refusal.wait_us
            refusal = storage.decide("a", [Demand("", 1, 1)], quota, 0, charge=True)
            held = min(level + (clock.now - last) / message_us, Fraction(burst))
        assert refusal is None
        sent, level, last = sent + 1, held - 1, clock.now
        if clock.now - start <= rule.period * 1_000_000:  # none has left the window
            assert storage.status("a", [""], quota, 0)[0].remaining == min(int(level), rule.limit - sent)


class MemoryRestrictions(Restrictions):
    """Restrictions in memory, whose store can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Pause] = {}
        self.limited: set[str] = set()
        self.reads, self.is_available = 0, True

    def _read(self) -> KnownRestrictions:
        self.reads += 1
        if not self.is_available:
            raise StoreUnavailable("the store is away")
        return KnownRestrictions(dict(self.stored), frozenset(self.limited))

    def _pause(self, agent: str, by: str, reason: str | None) -> None:
        self.stored[agent] = Pause(agent=agent, by=by, since=datetime.now(UTC), reason=reason)

    def _resume(self, agent: str) -> bool:
        return self.stored.pop(agent, None) is not None

    def _set_limited(self, agent: str, limited: bool) -> None:
        (self.limited.add if limited else self.limited.discard)(agent)

    def close(self) -> None:
        pass
