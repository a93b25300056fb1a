"""Which messages a broker has: looked up exactly on Redis and Valkey, and guessed with care on RabbitMQ."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.messages.queues import agent_queue

#: How often a broker is asked before something counts as missing.
PASSES = 2
#: Bytes of a list that are looked at together, about, and the most items.
CHUNK_BYTES = 2_000_000
MAX_ITEMS = 1000
#: Unacknowledged messages that are looked at together, about.
SCAN_COUNT = 200

#: Ids of messages by the name of the agent that they are for.
WantedMessages = dict[str, set[str]]

#: An id in the headers of a message as it travels. In its body, which is text in a JSON document, each quotation
#: mark has a backslash before it.
_ID = re.compile(rb'"id":\s*"([^"\\]+)"')


class OutOfTime(Exception):
    """It was not looked through in time."""


class BrokerInventory(ABC):
    """A broker that is asked what it has.

    Attributes:
        exact: whether it tells of each single message, also of one that a worker holds.
    """

    exact: bool = False

    @abstractmethod
    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        """Return those of these messages that are neither in their agent's queue nor held by a worker.

        Args:
            wanted: which messages.
            deadline: by the monotonic clock.

        Raises:
            OutOfTime: there is too much to look through.
        """


class RedisInventory(BrokerInventory):
    """Redis or Valkey: queues are lists, and what workers hold is in a hash.

    Args:
        channel: Kombu's or ours, which knows the names of the keys.
    """

    exact = True

    def __init__(self, channel: Any) -> None:
        self._keys = Keys(channel)
        self._client: Any = Redis(connection_pool=channel.pool)

    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        left = {agent: set(ids) for agent, ids in wanted.items()}
        self._look_into_queues(left, deadline)
        self._look_at_held(left, deadline)
        # A message that was put back meanwhile was in neither.
        self._look_into_queues(left, deadline)
        return {agent: ids for agent, ids in left.items() if ids}

    def _look_into_queues(self, left: WantedMessages, deadline: float) -> None:
        for agent, ids in left.items():
            for list_ in self._keys.lists((agent_queue(agent).name,)):
                for raw in self._items(list_, deadline) if ids else ():
                    ids.difference_update(_ids(raw))

    def _items(self, list_: str, deadline: float) -> Iterator[bytes]:
        """Yield the items of a list from the end at which they are added: so what moves on is not passed over."""
        start, count = 0, 20
        while True:
            _check(deadline)
            items = self._client.lrange(list_, start, start + count - 1)
            yield from items
            if len(items) < count:
                return
            start += count
            size = sum(map(len, items))
            count = max(min(count * CHUNK_BYTES // max(size, 1), 2 * count, MAX_ITEMS), 1)

    def _look_at_held(self, left: WantedMessages, deadline: float) -> None:
        cursor = 0
        while any(left.values()):
            _check(deadline)
            cursor, held = self._client.hscan(self._keys.noted[0], cursor, count=SCAN_COUNT)
            for raw in held.values():
                found = _ids(raw)
                for ids in left.values():
                    ids.difference_update(found)
            if not cursor:
                return


class AmqpInventory(BrokerInventory):
    """RabbitMQ, into whose queues nobody can look: where none waits, those that no worker has begun are missing.

    Args:
        connection: to the broker.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        #: How often a queue was found empty. After two looks it is not asked again: what is published into it then
        #: must not stand in for what else it had lost.
        self._found_empty: Counter[str] = Counter()

    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        return {agent: set(ids) for agent, ids in wanted.items() if ids and self._is_empty(agent, deadline)}

    def _is_empty(self, agent: str, deadline: float) -> bool:
        _check(deadline)
        if self._found_empty[agent] >= PASSES:
            return True
        empty = not self._waiting(agent)
        self._found_empty[agent] = self._found_empty[agent] + 1 if empty else 0
        return empty

    def _waiting(self, agent: str) -> int:
        """Return how many messages wait in an agent's queue, which is made again when it is gone."""
        queue = agent_queue(agent)
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue.name, passive=True).message_count)
        except self._connection.channel_errors:
            with self._connection.channel() as channel:
                queue(channel).declare()
            return 0


@contextmanager
def broker_inventory(app: Any) -> Iterator[BrokerInventory | None]:
    """Give the broker of an application, or None when it is of a kind that cannot be asked."""
    with app.connection_for_write() as connection:  # the one that has deadlines on RabbitMQ too
        if app.driver == "redis":
            with connection.channel() as channel:
                yield RedisInventory(channel)
        elif app.driver == "amqp":
            yield AmqpInventory(connection)
        else:
            yield None


def _ids(raw: bytes) -> set[str]:
    return {found.decode("ascii", "replace") for found in _ID.findall(raw)}


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise OutOfTime
