"""Back-pressure: limits of the messages that wait in an agent's queue, of all senders or of each."""

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
#: Queues, or queues and senders, of which a process remembers lengths, before it forgets the old ones.
MAX_KNOWN = 10_000


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
        read: Returns how many wait, or None if they cannot be counted now. It is called with an agent, and with a
            sender if there is a limit for each.
        by_sender: Whether the limit is one for the messages of each sender in a queue.
    """

    def __init__(self, most: int, read: Callable[..., int | None], *, by_sender: bool = False) -> None:
        self._most, self._read, self._by_sender = most, read, by_sender
        self._known: dict[tuple[str, ...], _Known] = {}
        self._lock = threading.Lock()

    def check(self, messages: Sequence[Message]) -> None:
        """Count messages that are about to be sent: all of them, or none.

        Events are not refused: one slow subscriber would keep them from all others.

        Args:
            messages: The messages.

        Raises:
            QueueFull: The queue of a recipient has no room for them.
        """
        wanted = Counter(self._key(message) for message in messages if message.event is None)
        with self._lock:
            lengths = {key: self._length(key, count) for key, count in wanted.items()}
            for key, count in wanted.items():
                length = lengths[key]
                if length is not None and length + count > self._most:
                    agent, *sender = key
                    raise QueueFull(agent, self._most, length, self._retry_after(key, length + count), *sender)
            for key, count in wanted.items():
                if lengths[key] is not None:
                    self._known[key].length += count
            if len(self._known) > MAX_KNOWN:
                self._forget_old()

    def _key(self, message: Message) -> tuple[str, ...]:
        """Return what is limited: an agent's queue, or what a sender has in it."""
        return (message.to_agent, message.from_agent) if self._by_sender else (message.to_agent,)

    def _forget_old(self) -> None:
        now = time.monotonic()
        self._known = {key: known for key, known in self._known.items() if now - known.read_at < READ_SECONDS}

    def _length(self, key: tuple[str, ...], count: int) -> int | None:
        """Return the length of a queue; it is read again when it is old, or leaves no room."""
        known, now = self._known.get(key), time.monotonic()
        is_young = known is not None and now - known.read_at < READ_SECONDS
        if known is not None and is_young and known.length + count <= self._most:
            return known.length
        length = self._read(*key)
        if length is None:  # the publish that follows says that the broker does not answer
            self._known.pop(key, None)
            return None
        rate = 0.0
        if known is not None:
            rate = max(known.length - length, 0) / max(now - known.read_at, 0.001)
        self._known[key] = _Known(length, now, rate)
        return length

    def _retry_after(self, key: tuple[str, ...], wanted: int) -> float:
        """Return when there may be room, if the queue becomes shorter as fast as between the last two reads."""
        rate = self._known[key].rate
        seconds = (wanted - self._most) / rate if rate > 0 else 1.0
        return min(max(seconds, SHORTEST_RETRY), LONGEST_RETRY)
