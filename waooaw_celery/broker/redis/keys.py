"""The keys of a channel's queues and notes, as the server knows them: Kombu's, with the prefix of all keys."""

from __future__ import annotations

from typing import Any

from waooaw_celery.broker.redis.parking import DEAD_KEY

#: Queues and priorities whose keys are remembered: there may be as many queues of answers as callers.
MAX_CACHED_KEYS = 1000


class Keys:
    """Names of keys.

    Args:
        channel: whose options say how keys are named.

    Attributes:
        noted: the keys of the unacknowledged messages, and of the moments in which they were claimed.
        index: the latter of the two.
        dead: the key of the dead letters.
    """

    def __init__(self, channel: Any) -> None:
        self._prefix: str = channel.global_keyprefix
        self._separator: str = channel.sep
        self._steps: list[int] = channel.priority_steps
        self._name_of_list = channel._q_for_pri
        self._priority_of = channel._get_message_priority
        self._places: dict[tuple[str, int], tuple[str, str]] = {}
        self.noted = self.of(channel.unacked_key), self.of(channel.unacked_index_key)
        self.index = self.noted[1]
        self.dead = self.of(DEAD_KEY)

    def of(self, name: str) -> str:
        """Return a key as the server knows it."""
        return f"{self._prefix}{name}"

    def bell(self, queue: str) -> str:
        """Return the key of a queue's doorbell: a list of at most one element."""
        return self.of(f"{queue}{self._separator}bell")

    def lists(self, queues: tuple[str, ...]) -> list[str]:
        """Return the keys of the lists of queues, all of one priority before those of the next."""
        return [self.of(self._name_of_list(queue, step)) for step in self._steps for queue in queues]

    def place(self, queue: str, message: Any) -> tuple[str, str]:
        """Return the keys of the list of a queue into which a message goes, and of the queue's doorbell."""
        where = queue, self._priority_of(message, reverse=False)
        known = self._places.get(where)
        if known is None:
            known = self.of(self._name_of_list(*where)), self.bell(queue)
            if len(self._places) < MAX_CACHED_KEYS:
                self._places[where] = known
        return known
