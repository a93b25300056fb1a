"""The cancellations that one worker knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from waooaw_celery.errors import BackendUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: How many started messages a worker remembers at least; it remembers at most twice as many.
MIN_STARTED = 10_000
#: The reason that the result backend stores for a request that was cancelled.
CANCELLED = "cancelled"


class CancelAnswer(StrEnum):
    """A worker's answer to the remote control command that cancels a message."""

    PROMISED = "promised"  #: it never had the message, and will drop it if it comes
    DROPPED = "dropped"  #: the message waited here and was dropped; the worker has recorded that
    BEGUN = "begun"  #: it has started the message, now or earlier, and records the outcome itself
    STOPPING = "stopping"  #: the handler is being stopped; the worker records how it ends
    NOT_STOPPABLE = "not stoppable"  #: the handler runs in a thread, and is no coroutine


class CancellationRegistry:
    """The cancellations that one worker knows. It hears of each at once, and reads all from the store repeatedly.

    Safe for several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By message id: whether a running handler is stopped too, and when the cancellation was learnt.
        self._known: dict[str, tuple[bool, float]] = {}
        #: Messages whose outcome this worker may not have recorded yet: the newest, and those before them.
        self._taken: set[str] = set()
        self._taken_before: set[str] = set()

    def add(self, message_id: str, running: bool) -> None:
        """Add a cancellation.

        Args:
            message_id: the message.
            running: whether a running handler is stopped too.
        """
        with self._lock:
            before, _ = self._known.get(message_id, (False, 0.0))
            self._known[message_id] = before or running, time.monotonic()

    def learn(self, requested: Mapping[str, bool], asked_at: float) -> list[str]:
        """Replace what is known with what the store says.

        Args:
            requested: by message id, whether a running handler is stopped too.
            asked_at: when the store was asked, in seconds of the monotonic clock; what was added later stays.

        Returns:
            The ids of messages whose running handlers are to be stopped.
        """
        with self._lock:
            self._known = {
                **{id_: (running, asked_at) for id_, running in requested.items()},
                **{id_: known for id_, known in self._known.items() if known[1] >= asked_at},
            }
            return [id_ for id_, (running, _) in self._known.items() if running]

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._known

    def stops(self, message_id: str) -> bool:
        """Return whether a running handler of a message is to be stopped."""
        return self._known.get(message_id, (False, 0.0))[0]

    def take(self, message_id: str) -> None:
        """Remember that this worker starts a message."""
        with self._lock:
            if len(self._taken) >= MIN_STARTED:
                self._taken_before, self._taken = self._taken, set()
            self._taken.add(message_id)

    def has_taken(self, message_id: str) -> bool:
        """Return whether this worker has started a message, among the last ``MIN_STARTED``."""
        # In this order: meanwhile another thread may turn the newest into those before them.
        return message_id in self._taken or message_id in self._taken_before


def cancellations_of(app: Any) -> CancellationRegistry:
    """Return the cancellations that the worker of an AgentApp knows."""
    cancellations: CancellationRegistry = app.cancellations
    return cancellations


def notify_caller(app: Any, message_id: str) -> None:
    """Store the result of a request as cancelled, for the caller that waits. An outage is logged.

    Args:
        app: the application, an AgentApp.
        message_id: id of the request.
    """
    try:
        app.result_collector.revoke(message_id, CANCELLED)
    except BackendUnavailable as error:
        logger.warning(
            "could not notify the caller of %s that it is cancelled: %s",
            message_id,
            error,
            extra={"action": "caller_not_told", "message_id": message_id},
        )
