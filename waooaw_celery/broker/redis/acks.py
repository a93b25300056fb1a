"""Acknowledgements of one channel: sent together with the next claim, or at once."""

from __future__ import annotations

from collections import deque
from typing import Any

from waooaw_celery.broker.redis.scripts import CLAIM


class Acknowledgements:
    """The delivery tags of handled messages that the server still lists as unacknowledged.

    An acknowledgement can be repeated without harm, so those whose reply was lost are sent again. The threads of a
    worker's pool may add tags.

    Args:
        channel: The channel that delivered the messages.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._pending: deque[str] = deque()
        self._in_flight: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, tag: str) -> None:
        """Add the tag of a handled message."""
        self._pending.append(tag)

    def take_for_claim(self) -> list[str]:
        """Return the tags to send with the next claim."""
        self._in_flight += self._take_pending()
        return self._in_flight

    def confirm_claim(self) -> None:
        """Drop the tags that were sent with the last claim: the server has answered it."""
        self._in_flight.clear()

    def flush(self, *, include_in_flight: bool = False) -> None:
        """Send the pending acknowledgements now.

        Args:
            include_in_flight: Whether to send again the tags of a claim that was not answered.

        Raises:
            RedisError: The server cannot be reached. The tags stay pending.
        """
        if include_in_flight:
            self._pending.extend(self._in_flight)
            self._in_flight.clear()
        tags = self._take_pending()
        if not tags:
            return
        try:
            remove_unacked(self._channel, self._channel.scripts_client, *tags)
        except BaseException:
            self._pending.extendleft(reversed(tags))
            raise

    def _take_pending(self) -> list[str]:
        tags: list[str] = []
        try:
            while True:
                tags.append(self._pending.popleft())
        except IndexError:  # checking the length first proves nothing: another thread may take the last tag
            return tags


def remove_unacked(channel: Any, client: Any, *tags: str) -> None:
    """Remove messages from the unacknowledged ones.

    Args:
        channel: The channel that delivered the messages.
        client: The Redis client to use.
        tags: The delivery tags.
    """
    CLAIM(client, [*channel.keys.noted, channel.keys.dead_letters], [0, "", 0, 0, *tags])
