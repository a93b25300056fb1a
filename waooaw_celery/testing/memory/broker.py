"""A broker in memory: queues that deliver messages by priority, and in the order in which they were sent."""

from __future__ import annotations

import heapq
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Where the number of a message stands in its properties, by which a redelivered message returns to its place.
PLACE = "waooaw_place"


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    place: int
    visible_at: float = field(compare=False)
    document: str = field(compare=False)


class MemoryBroker:
    """The queues of one harness. Safe for several threads.

    Messages are kept as JSON texts, as a real broker keeps bytes: what a sender changes later changes nothing.

    Args:
        now: returns the time in seconds since 1970.

    Attributes:
        on_publish: called with the queue and the message before it is stored; it may raise, and returns how often
            to store the message, and for how many seconds to hold it back.
        on_acknowledge: called with the delivery tag of a message before it is acknowledged; it may raise.
        listeners: called with each remote control command.
        retried: the ids of the messages of which another attempt was published since somebody looked.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.RLock()
        self._queues: dict[str, list[_Waiting]] = {}
        self._places = itertools.count(1)
        self.changed = threading.Condition(self._lock)
        self.on_publish: Callable[[str, dict[str, Any]], tuple[int, float]] = lambda queue, message: (1, 0.0)
        self.on_acknowledge: Callable[[str], None] = lambda tag: None
        self.listeners: list[Callable[[Any], None]] = []
        self.retried: set[str] = set()

    def declare(self, queue: str) -> None:
        """Create a queue, unless it exists."""
        with self._lock:
            self._queues.setdefault(queue, [])

    def exists(self, queue: str) -> bool:
        """Return whether a queue was declared."""
        return queue in self._queues

    def put(self, queue: str, message: dict[str, Any]) -> None:
        """Store a message; one that returns gets its old place."""
        properties = message["properties"]
        is_new = PLACE not in properties
        copies, seconds = self.on_publish(queue, message) if is_new else (1, 0.0)
        if is_new and message["headers"].get("retries"):
            self.retried.add(str(message["headers"].get("id")))
        with self.changed:
            waiting = self._queues.setdefault(queue, [])
            for _ in range(copies):
                place = next(self._places) if is_new else properties[PLACE]
                text = json.dumps({**message, "properties": {**properties, PLACE: place}}, default=str)
                priority = int(properties.get("priority") or 0)
                heapq.heappush(waiting, _Waiting(priority, place, self._now() + seconds, text))
            self.changed.notify_all()

    def take(self, queue: str) -> dict[str, Any] | None:
        """Remove and return the next message of a queue that may be delivered; None: there is none."""
        with self._lock:
            waiting, now = self._queues.get(queue, []), self._now()
            for each in sorted(waiting):
                if each.visible_at <= now:
                    waiting.remove(each)
                    heapq.heapify(waiting)
                    found: dict[str, Any] = json.loads(each.document)
                    return found
        return None

    def size(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        return len(self._queues.get(queue, ()))

    def purge(self, queue: str) -> int:
        """Remove the messages of a queue, and return how many they were."""
        with self._lock:
            removed = len(self._queues.get(queue, ()))
            self._queues[queue] = []
            return removed

    def delete(self, queue: str) -> None:
        """Delete a queue with its messages."""
        with self._lock:
            self._queues.pop(queue, None)

    def next_visible(self) -> float | None:
        """Return when a message that is held back may be delivered, in seconds since 1970; None: there is none."""
        now = self._now()
        with self._lock:
            times = [each.visible_at for waiting in self._queues.values() for each in waiting]
        return min((time for time in times if time > now), default=None)

    def message_ids(self, queue: str) -> Iterator[str]:
        """Yield the ids of the messages that wait in a queue."""
        with self._lock:
            documents = [each.document for each in self._queues.get(queue, ())]
        for document in documents:
            yield str(json.loads(document)["headers"].get("id"))
