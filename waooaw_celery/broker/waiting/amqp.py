"""The waiting messages on RabbitMQ, which must be consumed to be read.

One channel gets all messages of a queue and gives back those that are not taken out: RabbitMQ puts them into their
old places, marked as redelivered. It does the same if this process dies. Meanwhile workers find fewer messages, or
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from amqp.exceptions import NotFound

from waooaw_celery.broker.incoming.delivery import to_redis_item
from waooaw_celery.broker.waiting.waiting_message import BATCH_SIZE, WaitingMessage, WaitingMessages, of_headers
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY


class AmqpWaitingMessages(WaitingMessages):
    """The waiting messages on RabbitMQ.

    Args:
        connection: a connection that only this object uses, so that its channels can be closed.
        dead_letters: the broker's dead letters, a DeadLetterQueue.
    """

    def __init__(self, connection: Any, dead_letters: Any) -> None:
        self._connection, self._dead_letters = connection, dead_letters
        self._channel: Any = None

    def read(self, queue: str, limit: int) -> Iterator[WaitingMessage]:
        with self._all_messages(queue, limit) as messages:
            for message in messages:
                yield of_headers(_headers(message), _priority(message))

    def take(self, queue: str, sender: str) -> Iterator[Sequence[WaitingMessage]]:
        taken: list[WaitingMessage] = []
        others: list[Any] = []
        with self._all_messages(queue) as messages:
            for message in messages:
                found = of_headers(_headers(message), _priority(message))
                if found.from_agent == sender:
                    taken.append(replace(found, raw=_item(message), tag=message.delivery_tag))
                else:
                    others.append(message.delivery_tag)
            for tag in others:  # at once, so that workers need not wait for what follows
                self._channel.basic_reject(tag, requeue=True)
            for start in range(0, len(taken), BATCH_SIZE):
                yield taken[start : start + BATCH_SIZE]

    def bury(self, queue: str, batch: Sequence[WaitingMessage], reason: str) -> Sequence[WaitingMessage]:
        self._dead_letters.add(queue, reason, *(message.raw for message in batch))
        return batch

    def forget(self, batch: Sequence[WaitingMessage]) -> None:
        for message in batch:
            self._channel.basic_ack(message.tag)

    @contextmanager
    def _all_messages(self, queue: str, limit: int | None = None) -> Iterator[Iterator[Any]]:
        """Get the messages that wait now, and put those back that are not acknowledged when the block ends."""
        count = self._count(queue)  # it leaves out what arrives meanwhile
        with self._connection.channel() as self._channel:
            yield self._get(queue, count if limit is None else min(count, limit))

    def _count(self, queue: str) -> int:
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except NotFound:  # there is no such queue
            return 0

    def _get(self, queue: str, count: int) -> Iterator[Any]:
        for _ in range(count):
            message = self._channel.basic_get(queue, no_ack=False)
            if message is None:
                return
            yield message


def _headers(message: Any) -> Any:
    return message.properties.get("application_headers") or {}


def _item(message: Any) -> bytes:
    """Return a message in the form in which it would travel on Redis."""
    properties = message.properties
    encoding = properties.get("content_type"), properties.get("content_encoding")
    return to_redis_item(message.body, *encoding, _headers(message), properties)


def _priority(message: Any) -> Priority:
    number = message.properties.get("priority")
    rank = AMQP_MAX_PRIORITY - number if isinstance(number, int) else Priority.LOW.rank
    return Priority.of_rank(min(max(rank, 0), Priority.LOW.rank))
