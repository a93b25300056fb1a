"""The messages that a channel holds: how many it may claim, and what happens to those that it gives up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import RedisError

from waooaw_celery.broker.redis.leases.restore import requeue_delivered, requeue_undelivered, withdraw_delivery
from waooaw_celery.broker.redis.leases.worker_requests import not_begun
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.wording import counted

logger = get_logger(__name__)

#: The most messages that are claimed at once for a consumer without a prefetch count.
MAX_PREFETCH = 500
#: After so many failures of the server, a closing channel leaves the other messages to the end of their leases.
MAX_FAILURES = 3


class QoS(redis.QoS):
    """The messages that a channel has claimed and not acknowledged.

    The claim has already listed them as unacknowledged. Acknowledgements are collected, and sent with the next
    claim.
    """

    channel: Any

    def can_consume(self) -> bool:
        """Return whether the channel may claim more messages."""
        return self.window() > 0

    def can_consume_max_estimate(self) -> int:
        """Return how many messages the channel may claim."""
        return self.window()

    def window(self) -> int:
        """Return how many messages the channel may claim at once."""
        claimed = len(self.channel.claimed)
        limit: int = MAX_PREFETCH - claimed
        if not self.prefetch_count:
            return limit
        held, batches = len(self._delivered) + claimed, self.channel.batches
        # After that: a thread of the pool may acknowledge messages of a batch meanwhile.
        uncounted = batches.uncounted() if batches is not None else 0
        free: int = self.prefetch_count - held + uncounted
        return min(limit, free)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Hold a delivered message."""
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, at once or together with the next claim."""
        if self._delivered.pop(delivery_tag, None) is not None:
            self.channel.acknowledge(delivery_tag)
        else:
            self.channel.acknowledge_adopted(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Remove a message, or put it back to the end of its queue."""
        message = self._delivered.get(delivery_tag)
        if message is not None and requeue:
            try:
                requeue_delivered(self.channel, message, front=False)
            finally:  # a message that could not be put back comes back when its lease ends
                self._delivered.pop(delivery_tag, None)
                self.channel.notify_capacity()
        elif requeue:
            self.channel.release_adopted(delivery_tag)
        else:
            self.ack(delivery_tag)

    def hand_back(self, delivery_tag: str) -> None:
        """Put a message back to the front of its queue, unchanged: it does not count as redelivered."""
        message = self._delivered.get(delivery_tag)
        if message is None:
            return
        try:
            requeue_undelivered(self.channel, message._raw.claim)
        finally:  # a message that could not be put back comes back when its lease ends
            self._delivered.pop(delivery_tag, None)
            self.channel.notify_capacity()

    def restore_unacked(self, client: Any = None) -> list[Any]:
        """Put all messages that the channel holds back to the front of their queues.

        Returns:
            An empty list. Kombu would write the messages that could not be put back, with their payloads, into a
            file. These are still on the server, and are redelivered when their leases end.
        """
        errors: list[Exception] = []
        server_failures = 0
        waiting = not_begun(self._delivered)
        for tag, message in reversed(list(self._delivered.items())):
            self._delivered.pop(tag, None)
            if server_failures == MAX_FAILURES:  # each further attempt would wait for a timeout
                errors.append(errors[-1])
                continue
            try:
                if tag in waiting:
                    withdraw_delivery(self.channel, getattr(message._raw, "claim", None))
                requeue_delivered(self.channel, message, front=True)
            except (RedisError, OSError) as error:
                errors.append(error)
                server_failures += 1
            except Exception as error:  # noqa: BLE001 - one bad message must not keep back the others
                errors.append(error)
        if errors:
            logger.warning(
                "could not requeue %s, to be redelivered at the end of the lease: %s",
                counted(len(errors), "message"),
                errors[0],
                extra={"action": "left_behind"},
            )
        return []

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the thread that renews the leases also restores overdue messages."""

    def held(self) -> dict[str, Any]:
        """Return the messages that the channel holds, by delivery tag."""
        return dict(self._delivered)

    def pop_held(self, messages: Mapping[str, Any]) -> dict[str, Any]:
        """Give up messages, and return those of them that the channel still held."""
        return {tag: message for tag, message in messages.items() if self._delivered.pop(tag, None) is not None}

    def tags(self) -> tuple[str, ...]:
        """Return the delivery tags of all messages that the channel has claimed or holds."""
        return (*tuple(self._delivered), *(claim.tag for claim in tuple(self.channel.claimed)))
