"""The names of a channel's keys on the server: Kombu's names, with the channel's key prefix."""

from __future__ import annotations

from typing import Any

from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY

#: The most pairs of queue and priority whose keys are cached: there may be as many reply queues as callers.
MAX_CACHED_KEYS = 1000
PROBE_KEY = "waooaw.probe"


class Keys:
    """The keys of a channel's queues and of its unacknowledged messages.

    Args:
        channel: The channel whose options name the keys.

    Attributes:
        noted: The key of the unacknowledged messages (a hash), and of the times of their claims (a sorted set).
        index: The second of the two.
        dead_letters: The key of the dead letters (a stream).
        probe: A key that does not exist, to find out whether the server takes writes.
    """

    def __init__(self, channel: Any) -> None:
        self._prefix: str = channel.global_keyprefix
        self._separator: str = channel.sep
        self._steps: list[int] = channel.priority_steps
        self._name_of_list = channel._q_for_pri
        self._priority_of = channel._get_message_priority
        self._cache: dict[tuple[str, int], tuple[str, str]] = {}
        self.noted = self.prefixed(channel.unacked_key), self.prefixed(channel.unacked_index_key)
        self.index = self.noted[1]
        self.dead_letters = self.prefixed(DEAD_LETTERS_KEY)
        self.probe = self.prefixed(PROBE_KEY)

    def prefixed(self, name: str) -> str:
        """Return a name with the channel's key prefix."""
        return f"{self._prefix}{name}"

    def bell(self, queue: str) -> str:
        """Return the key of a queue's doorbell.

        The doorbell is a list of at most one element. A publisher pushes to it, and an idle consumer waits for it
        with BLPOP.
        """
        return self.prefixed(f"{queue}{self._separator}bell")

    def sublists(self, queue: str) -> str:
        """Return the key of the lists into which the messages of a queue are grouped, a set."""
        return self.prefixed(f"{queue}{self._separator}sublists")

    def lists(self, queues: tuple[str, ...], is_reversed: bool = False) -> list[str]:
        """Return the keys of the lists of queues: those of the most urgent priority first, then the next.

        Args:
            queues: The names of the queues.
            is_reversed: Whether those of the least urgent priority come first.
        """
        steps = reversed(self._steps) if is_reversed else self._steps
        return [self.prefixed(self._name_of_list(queue, step)) for step in steps for queue in queues]

    def list_and_bell(self, queue: str, message: Any) -> tuple[str, str]:
        """Return the key of the list that a message of this priority goes to, and of the queue's doorbell."""
        return self.of_priority(queue, self._priority_of(message, reverse=False))

    def of_priority(self, queue: str, priority: int) -> tuple[str, str]:
        """Return the key of the list that messages of this priority go to, and of the queue's doorbell."""
        queue_and_priority = queue, priority
        cached = self._cache.get(queue_and_priority)
        if cached is None:
            cached = self.prefixed(self._name_of_list(*queue_and_priority)), self.bell(queue)
            if len(self._cache) < MAX_CACHED_KEYS:
                self._cache[queue_and_priority] = cached
        return cached
