"""The publisher's circuit breaker: if the broker does not answer, one sender at a time tries it, and not all.

The pattern is Michael Nygard's (*Release It!*, 2007). The breaker is closed while publishes succeed. After a
failure it is open for a pause, and refuses all sends at once. Then it lets one send through, whose outcome closes
the breaker or opens it again.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from amqp.exceptions import ConnectionError as AMQPConnectionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.redis_refusals import RedisRefuses, remedy, takes_no_writes

logger = get_logger(__name__)

#: Seconds for which sends are refused: after the first failure, and the maximum.
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 5.0
#: What the error of a refused send says after an outage: what the broker did, and what to do.
_NO_ANSWER = "did not answer", "Check that it runs"
#: What is raised if a broker does not answer. A broker that refuses a message raises other errors.
_OUTAGES = (RedisConnectionError, RedisTimeoutError, AMQPConnectionError)
#: The errors of the operating system that come from a socket. All others come from a file, such as the spool.
_SOCKET_ERRORS = (ConnectionError, TimeoutError, socket.gaierror, socket.herror, ssl.SSLError)
#: Codes of further ones. py-amqp's own errors about its socket have no code.
_SOCKET_CODES = frozenset(
    code
    for name in ("EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET", "ENOTCONN", "EADDRNOTAVAIL")
    if (code := getattr(errno, name, None)) is not None
) | {None}


class CircuitBreaker:
    """Decides whether one process may try the broker. Safe for several threads.

    Args:
        first_pause: Seconds for which sends are refused after the first failure. Each further one doubles them.
        longest_pause: The maximum of these seconds.
    """

    def __init__(self, first_pause: float = FIRST_PAUSE_SECONDS, longest_pause: float = MAX_PAUSE_SECONDS) -> None:
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._lock = threading.Lock()
        #: When the next sender may try; None while the breaker is closed.
        self._retry_at: float | None = None
        self._pause = 0.0
        self._failed_at = 0.0
        self._failure = _NO_ANSWER

    def check(self, *, tries: bool = True) -> None:
        """Return if a sender may try the broker.

        Args:
            tries: Whether the sender tries it now, so that the others wait for the outcome. False: it asks again
                before it does.

        Raises:
            BrokerUnavailable: The breaker is open. ``uncertain`` is False, because nothing was tried.
        """
        if self._retry_at is None:
            return
        with self._lock:
            now = time.monotonic()
            if self._retry_at is None:
                return
            if now < self._retry_at:
                did, advice = self._failure
                refusal = BrokerUnavailable(
                    f"nothing was published: the broker {did} {now - self._failed_at:.1f} s ago, and is tried "
                    f"again in {self._retry_at - now:.1f} s. {advice}, and send again later"
                )
                refusal.uncertain = False
                raise refusal
            if tries:
                self._retry_at = now + self._longest_pause  # the others wait for its outcome

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Open or close the breaker by the outcome of the block, which publishes.

        Raises:
            Exception: Whatever the block raises.
        """
        try:
            yield
        except Exception as error:
            if is_outage(error):
                self._open(error)
            raise
        if self._retry_at is not None:
            self._close()

    def _open(self, error: Exception) -> None:
        reason = _refusal(error)
        with self._lock:
            self._failure = _NO_ANSWER if reason is None else ("refused", f"The reason: {reason}. Remove it")
            if self._retry_at is None:  # one log line for each incident
                if reason is None:
                    logger.warning("the broker does not answer: %s", error, extra={"action": "broker_away"})
                else:
                    logger.warning("the broker takes no messages: %s", reason, extra={"action": "broker_refuses"})
                self._pause = 0.0
            self._pause = min(max(2 * self._pause, self._first_pause), self._longest_pause)
            self._failed_at = time.monotonic()
            self._retry_at = self._failed_at + self._pause

    def _close(self) -> None:
        with self._lock:
            if self._retry_at is not None:
                self._retry_at = None
                logger.warning("the broker answers again", extra={"action": "broker_back"})


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error of a publish, or one of its causes, means that the broker takes no messages now.

    It does not answer, or it answers that it is a replica. An error of the operating system says so only when it
    comes from a socket.
    """
    while error is not None:
        if isinstance(error, StoreUnavailable):  # the ledger or the receipt store, which a publish also uses
            return False
        if isinstance(error, _OUTAGES) or takes_no_writes(error):
            return True
        if isinstance(error, OSError):
            return isinstance(error, _SOCKET_ERRORS) or error.errno in _SOCKET_CODES
        error = error.__cause__
    return False


def _refusal(error: BaseException | None) -> str | None:
    """Return why the broker refuses all messages; None if it does not answer."""
    while error is not None:
        if isinstance(error, RedisRefuses) or takes_no_writes(error):
            return remedy(error)
        error = error.__cause__
    return None
