"""What a channel's consumers have handled: it is forgotten together with the next claim, or at once."""

from __future__ import annotations

from collections import deque
from typing import Any

from waooaw_celery.broker.redis.scripts import CLAIM


class Acknowledgements:
    """Tags of messages that were handled and are noted as unacknowledged still.

    Repeating one does no harm, so those whose answer got lost are said again. Threads of a pool add to them.

    Args:
        channel: whose messages they are.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._waiting: deque[str] = deque()
        self._on_their_way: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tag: str) -> None:
        """Remember that a message was handled."""
        self._waiting.append(tag)

    def send(self) -> list[str]:
        """Return those that the next claim takes along."""
        self._on_their_way += self._take()
        return self._on_their_way

    def arrived(self) -> None:
        """Forget those that the last claim took along: it was answered."""
        self._on_their_way.clear()

    def flush(self, *, also_on_their_way: bool = False) -> None:
        """Say now what waits.

        Args:
            also_on_their_way: whether to say again what went with a claim that was not answered.

        Raises:
            RedisError: the server cannot be reached; they wait still.
        """
        if also_on_their_way:
            self._waiting.extend(self._on_their_way)
            self._on_their_way.clear()
        tags = self._take()
        if not tags:
            return
        try:
            forget(self._channel, self._channel.scripts_client, *tags)
        except BaseException:
            self._waiting.extendleft(reversed(tags))
            raise

    def _take(self) -> list[str]:
        tags: list[str] = []
        try:
            while True:
                tags.append(self._waiting.popleft())
        except IndexError:  # another thread may have been faster: looking first would prove nothing
            return tags


def forget(channel: Any, client: Any, *tags: str) -> None:
    """Remove the notes of messages.

    Args:
        channel: whose they are.
        client: over which to do it.
        tags: under which they are noted.
    """
    CLAIM(client, [*channel.keys.noted, channel.keys.dead], [0, "", 0, 0, *tags])
