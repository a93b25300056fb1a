"""The waiting messages on Redis: queues are lists, one for each priority."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from redis import Redis

from waooaw_celery.broker.incoming.delivery import LEASE_TAG_PREFIX
from waooaw_celery.broker.redis.groups.sublists import message_of, sublists
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.redis.scripts import COUNT_SENDER, DEAD_LETTER, TAKE
from waooaw_celery.broker.waiting.waiting_message import BATCH_SIZE, WaitingMessage, WaitingMessages, parse_item
from waooaw_celery.messages.enums import Priority

#: Items of a list that one command reads.
CHUNK = 200
#: The most messages that the server looks at to count those of one sender: it does nothing else meanwhile.
SCANNED = 20_000


class RedisWaitingMessages(WaitingMessages):
    """The waiting messages on Redis or Valkey.

    Args:
        channel: a channel, Kombu's or this package's, for the names of the keys.
        dead_letters_max: about how many dead letters the broker keeps.
    """

    def __init__(self, channel: Any, dead_letters_max: int) -> None:
        self._keys = Keys(channel)
        self._client: Any = Redis(connection_pool=channel.pool)
        self._dead_letters_max = dead_letters_max

    def read(self, queue: str, limit: int) -> Iterator[WaitingMessage]:
        for priority, key in self._lists(queue):
            start = 0
            # From the end where items are added, so that no item that moves is skipped.
            while limit > 0 and (items := self._client.lrange(key, start, start + min(CHUNK, limit) - 1)):
                yield from (parse_item(message_of(item), priority) for item in items)
                start += len(items)
                limit -= len(items)

    def take(self, queue: str, sender: str) -> Iterator[Sequence[WaitingMessage]]:
        for priority, key in self._lists(queue):
            start, examined = 0, BATCH_SIZE
            while examined == BATCH_SIZE:
                prefix = f"{LEASE_TAG_PREFIX}{uuid4().hex}:"
                arguments = [start, BATCH_SIZE, prefix, queue, sender]
                examined, *taken = TAKE(self._client, [*self._keys.noted, key, self._keys.bell(queue)], arguments)
                start += examined - len(taken)
                if taken:
                    yield [
                        parse_item(item, priority, f"{prefix}{number}")
                        for number, item in enumerate(taken, start=1)
                    ]

    def count(self, queue: str, sender: str) -> int:
        """Return how many messages of a sender wait in a queue, among the first ``SCANNED``, about.

        Args:
            queue: the queue's name.
            sender: the agent that sent them.
        """
        keys = [self._keys.sublists(queue), *self._keys.lists((queue,))]
        return int(COUNT_SENDER(self._client, keys, [sender, SCANNED]))

    def bury(self, queue: str, batch: Sequence[WaitingMessage], reason: str) -> Sequence[WaitingMessage]:
        self._client.script_load(DEAD_LETTER.text)
        keys = [*self._keys.noted, self._keys.dead_letters]
        with self._client.pipeline(transaction=False) as pipeline:
            for message in batch:
                arguments = [message.tag, queue, reason, "", self._dead_letters_max]
                pipeline.execute_command(*DEAD_LETTER.command(keys, arguments))
            done = pipeline.execute()
        return [message for message, is_dead in zip(batch, done, strict=True) if is_dead]

    def forget(self, batch: Sequence[WaitingMessage]) -> None:
        unacked, index = self._keys.noted
        tags = [message.tag for message in batch]
        with self._client.pipeline() as pipeline:
            pipeline.hdel(unacked, *tags)
            pipeline.zrem(index, *tags)
            pipeline.execute()

    def _lists(self, queue: str) -> Iterator[tuple[Priority, str]]:
        """Yield the lists of a queue, each with the priority of its messages."""
        yield from zip(Priority, self._keys.lists((queue,)), strict=True)
        for key in sublists(self._client, self._keys, queue):
            first = self._client.lindex(key, -1)
            if first is not None:  # messages of one key may have several priorities
                yield list(Priority)[int(first.partition(b":")[0])], key
