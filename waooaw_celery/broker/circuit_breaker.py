"""The circuit breaker of the door: a broker that does not answer is tried by one sender at a time, not by all.

The pattern is Michael Nygard's (Release It!, 2007): closed while all goes well; open for a pause after a failure,
when sends are refused at once; then one is let through, and what becomes of it decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from amqp.exceptions import ConnectionError as AMQPConnectionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable

logger = logging.getLogger(__name__)

#: Seconds for which sends are refused after the first failure, and at most.
FIRST_PAUSE, MAX_PAUSE_SECONDS = 0.5, 5.0
#: What is raised when a broker does not answer, and not when it answers that it does not want a message.
_OUTAGES = (OSError, RedisConnectionError, RedisTimeoutError, AMQPConnectionError)


class CircuitBreaker:
    """Whether the broker is worth trying, as one process knows it. Safe for several threads.

    Args:
        first_pause: seconds for which sends are refused after the first failure; each further one doubles them.
        longest_pause: seconds for which they are refused at most.
    """

    def __init__(self, first_pause: float = FIRST_PAUSE, longest_pause: float = MAX_PAUSE_SECONDS) -> None:
        self._first, self._longest = first_pause, longest_pause
        self._lock = threading.Lock()
        #: When the next sender may try; None while the broker answers.
        self._retry_at: float | None = None
        self._pause = 0.0
        self._failed_at = 0.0

    def check(self) -> None:
        """Let a sender try, unless the broker has just not answered.

        Raises:
            BrokerUnavailable: it has not; its ``uncertain`` is False, since nothing was tried.
        """
        if self._retry_at is None:
            return
        with self._lock:
            now = time.monotonic()
            if self._retry_at is None:
                return
            if now < self._retry_at:
                refusal = BrokerUnavailable(
                    f"nothing was published: the broker did not answer {now - self._failed_at:.1f} s ago, and is "
                    f"tried again in {self._retry_at - now:.1f} s. Check that it runs, and send again later"
                )
                refusal.uncertain = False
                raise refusal
            self._retry_at = now + self._longest  # this one tries it, and all others wait for what comes of that

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Learn from a publish whether the broker answers; the block raises what Kombu raises."""
        try:
            yield
        except Exception as error:
            if is_outage(error):
                self._open(error)
            raise
        if self._retry_at is not None:
            self._close()

    def _open(self, error: Exception) -> None:
        with self._lock:
            if self._retry_at is None:  # one line an incident
                logger.warning("the broker does not answer: %s", error, extra={"action": "broker_away"})
                self._pause = 0.0
            self._pause = min(max(2 * self._pause, self._first), self._longest)
            self._failed_at = time.monotonic()
            self._retry_at = self._failed_at + self._pause

    def _close(self) -> None:
        with self._lock:
            if self._retry_at is not None:
                self._retry_at = None
                logger.warning("the broker answers again", extra={"action": "broker_back"})


def is_outage(error: BaseException | None) -> bool:
    """Whether an error of a publish, or what it was raised from, says that the broker does not answer."""
    while error is not None:
        if isinstance(error, StoreUnavailable):  # the ledger, or the Redis beside it: they are written in between
            return False
        if isinstance(error, _OUTAGES):
            return True
        error = error.__cause__
    return False
