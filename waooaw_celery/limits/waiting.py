"""Whoever waits for its turn at a rate limit: how long yet, and how."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import TypeAlias

from waooaw_celery.errors import InvalidMessage, RateLimitExceeded


class LimitWait:
    """A wait that was begun.

    Args:
        wait: seconds in all; None: none.

    Raises:
        InvalidMessage: this is no number of seconds.
    """

    def __init__(self, wait: float | None) -> None:
        if wait is not None and (isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0):
            raise InvalidMessage(f"wait must be None or a number of seconds, not {wait!r}")
        self._until = time.monotonic() + (wait or 0.0)
        self._waits = bool(wait)

    def end_before(self, moment: datetime | None, now: datetime) -> None:
        """Wait no longer than until a moment: what has expired by then need not be sent.

        Args:
            moment: which, or None.
            now: the time, by the same clock.
        """
        if moment is not None:
            left = (moment - now).total_seconds()
            self._until = min(self._until, time.monotonic() + left)

    def pause(self, error: RateLimitExceeded) -> float:
        """Return the seconds until it is worth asking again, or raise the error when that would be too late."""
        left = self._until - time.monotonic()
        if not self._waits or math.isinf(error.retry_after) or left < error.retry_after:
            raise error
        return error.retry_after

    def rest(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class AsyncLimitWait(LimitWait):
    """A wait that holds no thread: whoever began it waits elsewhere, and asks again."""

    def rest(self, seconds: float) -> None:
        """Have the one who began it wait.

        Raises:
            Later: always.
        """
        raise RetryAfter(seconds)


class RetryAfter(Exception):
    """It is worth asking again after some seconds; nothing was sent or counted."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"in {seconds:.3f} s")
        self.seconds = seconds


#: How long to wait: seconds, a wait that was begun, or None for not at all.
Wait: TypeAlias = float | LimitWait | None


def limit_wait(wait: Wait) -> LimitWait:
    """Return a wait that was begun, or begin one.

    Raises:
        InvalidMessage: this is no number of seconds.
    """
    return wait if isinstance(wait, LimitWait) else LimitWait(wait)
