"""Which messages a consumer holds, and what becomes of those it lets go."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import RedisError

from waooaw_celery.broker.redis.leases.restore import put_back_message

logger = logging.getLogger(__name__)

#: Messages claimed at once when a consumer sets no bound.
MAX_PREFETCH = 500
#: Failures of the server after which a channel that closes leaves the rest to the end of their leases.
MOST_CUTS = 3


class QoS(redis.QoS):
    """The messages that a channel has claimed and not acknowledged.

    They were noted as unacknowledged when they were claimed; acknowledgements are collected, and travel with the
    next claim.
    """

    channel: Any

    def can_consume(self) -> bool:
        """Return whether the channel may claim more."""
        return self.window() > 0

    def can_consume_max_estimate(self) -> int:
        """Return how many messages the channel may claim."""
        return self.window()

    def window(self) -> int:
        """Return how many messages the channel may claim at once."""
        claimed = len(self.channel.claimed)
        most: int = MAX_PREFETCH - claimed
        return min(most, self.prefetch_count - len(self._delivered) - claimed) if self.prefetch_count else most

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Hold a message that was claimed."""
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: at once, or together with the next claim."""
        if self._delivered.pop(delivery_tag, None) is not None:
            self.channel.acknowledge(delivery_tag)
        else:
            self.channel.acknowledge_adopted(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Let a message go: to the back of its queue, or for good."""
        message = self._delivered.get(delivery_tag)
        if message is not None and requeue:
            put_back_message(self.channel, message, front=False)
            self._delivered.pop(delivery_tag, None)
            self.channel.tell_of_room()
        elif requeue:
            self.channel.let_go_adopted(delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Any = None) -> list[Any]:
        """Put back all that the channel holds, to the front of their queues.

        Returns:
            Nothing: Kombu would write what could not be put back, payloads and all, into a file. It is noted in
            the server, and handed out again when its lease ends.
        """
        errors: list[Exception] = []
        away = 0
        for tag, message in reversed(list(self._delivered.items())):
            self._delivered.pop(tag, None)
            if away == MOST_CUTS:  # each further attempt would take as long
                errors.append(errors[-1])
                continue
            try:
                put_back_message(self.channel, message, front=True)
            except (RedisError, OSError) as error:
                errors.append(error)
                away += 1
            except Exception as error:  # noqa: BLE001 - the others are to be put back all the same
                errors.append(error)
        if errors:
            logger.warning(
                "%d messages come back when their leases end: %s",
                len(errors),
                errors[0],
                extra={"action": "left_behind"},
            )
        return []

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: what other consumers lost is looked for by the keeper of the leases."""

    def held(self) -> dict[str, Any]:
        """Return the messages that the channel holds by their delivery tags."""
        return dict(self._delivered)

    def hand_on(self, messages: Mapping[str, Any]) -> dict[str, Any]:
        """Hold messages no longer, and return those of them that were still held."""
        return {tag: message for tag, message in messages.items() if self._delivered.pop(tag, None) is not None}

    def tags(self) -> tuple[str, ...]:
        """Return the tags of all messages that the channel holds."""
        return (*tuple(self._delivered), *(claim.tag for claim in tuple(self.channel.claimed)))
