"""What is to be cancelled, as one worker knows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from celery.utils.collections import LimitedSet

#: Messages that a worker remembers to have begun.
MAX_REMEMBERED = 50_000


class CancelAnswer(StrEnum):
    """What a worker says when it is told to cancel a message."""

    PROMISED = "promised"  #: it never had the message, and drops it when it comes
    DROPPED = "dropped"  #: the message waited here and was dropped; the worker has noted that
    BEGUN = "begun"  #: it has begun the message at some time, and tells itself how that ended
    STOPPING = "stopping"  #: the handler was told to stop; the worker notes how it ends
    NOT_STOPPABLE = "not stoppable"  #: the handler runs in a thread, and is no coroutine


class CancellationRegistry:
    """What one worker knows of cancelled messages: told to it at once, and read from the store again and again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By id: whether a handler that has begun is to be stopped too, and when this was learnt.
        self._known: dict[str, tuple[bool, float]] = {}
        #: Whose end this worker may not have told yet.
        self._taken: Any = LimitedSet(maxlen=MAX_REMEMBERED)

    def add(self, message_id: str, running: bool) -> None:
        """Learn that a message is to be cancelled."""
        with self._lock:
            before, _ = self._known.get(message_id, (False, 0.0))
            self._known[message_id] = before or running, time.monotonic()

    def learn(self, requested: Mapping[str, bool], asked_at: float) -> list[str]:
        """Learn all that is to be cancelled, and forget what no longer is.

        Args:
            requested: what the store says.
            asked_at: when it was asked, by the monotonic clock: what was learnt later stays.

        Returns:
            The ids that are to be stopped too when they run.
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
        """Whether the handler of a message is to be stopped."""
        return self._known.get(message_id, (False, 0.0))[0]

    def take(self, message_id: str) -> None:
        """Remember that this worker begins a message."""
        with self._lock:
            self._taken.add(message_id)

    def has_taken(self, message_id: str) -> bool:
        """Whether this worker has begun a message, as far as it remembers."""
        return message_id in self._taken


def cancellations_of(app: Any) -> CancellationRegistry:
    """Return what the worker of an application, which stands above here, knows of cancelled messages."""
    cancels: CancellationRegistry = app.cancellations
    return cancels
