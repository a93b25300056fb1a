"""Helpers for tests of rate limits in memory: a clock that the test moves, and limiters that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from waooaw_celery import RateLimiter, RateLimitExceeded
from waooaw_celery.limits.memory import MemoryStorage

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
