"""Counts the wrong credentials of each client."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Wrong credentials of one client within ``WINDOW_SECONDS`` after which it is told to wait.
MAX_FAILURES, WINDOW_SECONDS = 20, 60.0
#: Clients whose wrong credentials are counted.
_MAX_REMEMBERED = 10_000


class Failures:
    """Counts the wrong credentials of each client, in bounded space."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, client: str) -> bool:
        """Count wrong credentials, and return whether they were too many. The first time, the log says so.

        Args:
            client: the address of the client.
        """
        now = time.monotonic()
        times = self._times.setdefault(client, deque(maxlen=MAX_FAILURES + 1))
        self._times.move_to_end(client)
        while times and times[0] < now - WINDOW_SECONDS:
            times.popleft()
        was_too_many = len(times) > MAX_FAILURES
        times.append(now)
        while len(self._times) > _MAX_REMEMBERED:
            self._times.popitem(last=False)
        if len(times) > MAX_FAILURES and not was_too_many:
            logger.warning(
                "%s has sent wrong credentials more than %d times within %g s",
                client,
                MAX_FAILURES,
                WINDOW_SECONDS,
                extra={"action": "edge_wrong_credentials"},
            )
        return len(times) > MAX_FAILURES
