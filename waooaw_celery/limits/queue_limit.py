"""Back-pressure: a limit of the messages that wait in an agent's queue."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from waooaw_celery.errors import QueueFull
from waooaw_celery.messages.message import Message

#: Seconds for which a process uses the length of a queue that it has read. Meanwhile it adds what it sends.
READ_SECONDS = 0.25
#: The bounds, in seconds, of the time after which a refused sender is told to try again.
SHORTEST_RETRY, LONGEST_RETRY = 0.1, 60.0


@dataclass(slots=True)
class _Known:
    """What a process knows of a queue.

    Attributes:
        length: messages that waited when it was read, and those that this process has sent since.
        read_at: when it was read, by the monotonic clock.
        rate: messages by which it became shorter each second, between the last two reads.
    """

    length: int
    read_at: float
    rate: float = 0.0


class QueueLimit:
    """Refuses messages to agents in whose queues too many wait. Safe for several threads.

    The length is read from the broker, so it is right after any crash. Each process reads it at most every
    ``READ_SECONDS``, so several processes together may exceed the limit by what they send meanwhile.

    Args:
        most: The most messages that may wait in a queue.
        read: Returns the length of an agent's queue, or None if the broker does not answer.
    """

    def __init__(self, most: int, read: Callable[[str], int | None]) -> None:
        self._most, self._read = most, read
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def check(self, messages: Sequence[Message]) -> None:
        """Count messages that are about to be sent: all of them, or none.

        Events are not refused: one slow subscriber would keep them from all others.

        Args:
            messages: The messages.

        Raises:
            QueueFull: The queue of a recipient has no room for them.
        """
        wanted = Counter(message.to_agent for message in messages if message.event is None)
        with self._lock:
            lengths = {agent: self._length(agent, count) for agent, count in wanted.items()}
            for agent, count in wanted.items():
                length = lengths[agent]
                if length is not None and length + count > self._most:
                    raise QueueFull(agent, self._most, length, self._retry_after(agent, length + count))
            for agent, count in wanted.items():
                if lengths[agent] is not None:
                    self._known[agent].length += count

    def _length(self, agent: str, count: int) -> int | None:
        """Return the length of a queue; it is read again when it is old, or leaves no room."""
        known, now = self._known.get(agent), time.monotonic()
        is_young = known is not None and now - known.read_at < READ_SECONDS
        if known is not None and is_young and known.length + count <= self._most:
            return known.length
        length = self._read(agent)
        if length is None:  # the publish that follows says that the broker does not answer
            self._known.pop(agent, None)
            return None
        rate = 0.0
        if known is not None:
            rate = max(known.length - length, 0) / max(now - known.read_at, 0.001)
        self._known[agent] = _Known(length, now, rate)
        return length

    def _retry_after(self, agent: str, wanted: int) -> float:
        """Return when there may be room, if the queue becomes shorter as fast as between the last two reads."""
        rate = self._known[agent].rate
        seconds = (wanted - self._most) / rate if rate > 0 else 1.0
        return min(max(seconds, SHORTEST_RETRY), LONGEST_RETRY)
