"""Waiting for a rate limit: how long a caller still waits, and whether it blocks its thread."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import TypeAlias

from waooaw_celery.errors import InvalidMessage, QueueFull, RateLimitExceeded


class LimitWait:
    """One wait for a rate limit, started when the object is made.

    Args:
        wait: Seconds to wait in total; None: do not wait.

    Raises:
        InvalidMessage: ``wait`` is not a number of seconds.
    """

    def __init__(self, wait: float | None) -> None:
        if wait is not None and (isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0):
            raise InvalidMessage(f"wait must be None or a number of seconds, not {wait!r}")
        self._deadline = time.monotonic() + (wait or 0.0)
        self._may_wait = bool(wait)

    def cap_at(self, expiry: datetime | None, now: datetime) -> None:
        """End the wait at an expiry: a message that has expired need not be sent.

        Args:
            expiry: The expiry, or None.
            now: The time, by the same clock.
        """
        if expiry is not None:
            left = (expiry - now).total_seconds()
            self._deadline = min(self._deadline, time.monotonic() + left)

    def seconds_until_retry(self, error: RateLimitExceeded | QueueFull) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            RateLimitExceeded, QueueFull: ``error`` itself, when the wait would end before that attempt.
        """
        left = self._deadline - time.monotonic()
        if not self._may_wait or math.isinf(error.retry_after) or left < error.retry_after:
            raise error
        return error.retry_after

    def sleep(self, seconds: float) -> None:
        """Block the thread for this many seconds."""
        time.sleep(seconds)


class AsyncLimitWait(LimitWait):
    """A wait that blocks no thread: the caller awaits the seconds on its event loop and calls again."""

    def sleep(self, seconds: float) -> None:
        """Return control to the caller.

        Raises:
            RetryAfter: Always.
        """
        raise RetryAfter(seconds)


class RetryAfter(Exception):
    """Nothing was sent or counted; call again after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"retry in {seconds:.3f} s")
        self.seconds = seconds


#: How long to wait: seconds, a wait that has started, or None for not at all.
Wait: TypeAlias = float | LimitWait | None


def limit_wait(wait: Wait) -> LimitWait:
    """Return the wait that has started, or start one.

    Raises:
        InvalidMessage: ``wait`` is not a number of seconds.
    """
    return wait if isinstance(wait, LimitWait) else LimitWait(wait)
