"""Bounds how often one process tries requests again, in proportion to the requests that it handles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds over which requests and retries are counted.
WINDOW_SECONDS = 10
#: RetryPolicy in these seconds that are always allowed, so that a process with few requests retries them.
LEAST_RETRIES = 100


class RetryBudget:
    """The retries of requests that one process still may make. Safe for several threads.

    In each ten seconds it allows a hundred retries and a share of the requests that were begun in them. These are
    the numbers of Finagle's retry budget.

    Args:
        share: retries for each request, such as 0.2; None: there is no limit.
        now: returns the time in seconds.

    Example:
        >>> budget = RetryBudget(0.2)
        >>> sum(budget.withdraw() for _ in range(200))
        100
    """

    def __init__(self, share: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._share, self._now = share, now
        self._lock = threading.Lock()
        #: Requests and retries by second.
        self._requests: dict[int, int] = {}
        self._retries: dict[int, int] = {}

    def deposit(self) -> None:
        """Count a request that is handled for the first time."""
        with self._lock:
            _add(self._requests, int(self._now()))

    def withdraw(self) -> bool:
        """Return whether a request may be tried again, and count the retry if it may."""
        if self._share is None:
            return True
        with self._lock:
            second = int(self._now())
            requests, retries = (_sum(counts, second) for counts in (self._requests, self._retries))
            allowed = retries + 1 <= LEAST_RETRIES + self._share * requests
            if allowed:
                _add(self._retries, second)
            return allowed


def _add(counts: dict[int, int], second: int) -> None:
    counts[second] = counts.get(second, 0) + 1
    for old in [each for each in counts if each <= second - WINDOW_SECONDS]:
        del counts[old]


def _sum(counts: dict[int, int], second: int) -> int:
    return sum(count for each, count in counts.items() if each > second - WINDOW_SECONDS)
