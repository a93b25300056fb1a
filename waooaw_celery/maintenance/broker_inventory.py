"""Finds out which messages a broker has: exactly on Redis and Valkey, by queue length on RabbitMQ."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from waooaw_celery.broker.redis.groups.sublists import sublists
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.messages.queues import agent_queue

#: How often the broker is asked before a message counts as missing.
PASSES = 2
#: Bytes of a Redis list that one command reads, about, and the most items.
CHUNK_BYTES = 2_000_000
MAX_ITEMS = 1000
#: Unacknowledged messages that one HSCAN reads, about.
SCAN_COUNT = 200

#: Message ids by the name of the recipient.
WantedMessages = dict[str, set[str]]

#: The id in the headers of an encoded message. In its body, a string in a JSON document, quotation marks are
#: escaped.
_ID = re.compile(rb'"id":\s*"([^"\\]+)"')


class OutOfTime(Exception):
    """The broker could not be searched before the deadline."""


class BrokerInventory(ABC):
    """Looks up messages in a broker.

    Attributes:
        exact: whether it finds every single message, also those that workers hold.
    """

    exact: bool = False

    @abstractmethod
    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        """Return those messages that are neither in their recipient's queue nor held by a worker.

        Args:
            wanted: the messages to look up.
            deadline: the time limit, by the monotonic clock.

        Raises:
            OutOfTime: the deadline passed.
        """


class RedisInventory(BrokerInventory):
    """Looks up messages in Redis or Valkey: queues are lists, and a hash contains what workers hold.

    Args:
        channel: a channel, Kombu's or this package's, for the names of the keys.
    """

    exact = True

    def __init__(self, channel: Any) -> None:
        self._keys = Keys(channel)
        self._client: Any = Redis(connection_pool=channel.pool)

    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        missing = {agent: set(ids) for agent, ids in wanted.items()}
        self._remove_queued(missing, deadline)
        self._remove_held(missing, deadline)
        # A message that went back to its queue in between was seen in neither.
        self._remove_queued(missing, deadline)
        return {agent: ids for agent, ids in missing.items() if ids}

    def _remove_queued(self, missing: WantedMessages, deadline: float) -> None:
        for agent, ids in missing.items():
            queue = agent_queue(agent).name
            for key in self._keys.lists((queue,)):
                self._remove_listed(ids, key, deadline)
            for key in sublists(self._client, self._keys, queue) if ids else ():
                self._remove_listed(ids, key, deadline)

    def _remove_listed(self, ids: set[str], key: str, deadline: float) -> None:
        for raw in self._items(key, deadline) if ids else ():
            ids.difference_update(_ids(raw))

    def _items(self, key: str, deadline: float) -> Iterator[bytes]:
        """Yield the items of a list, from the end where items are added: so no item that moves is skipped."""
        start, count = 0, 20
        while True:
            _check_deadline(deadline)
            items = self._client.lrange(key, start, start + count - 1)
            yield from items
            if len(items) < count:
                return
            start += count
            size = sum(map(len, items))
            count = max(min(count * CHUNK_BYTES // max(size, 1), 2 * count, MAX_ITEMS), 1)

    def _remove_held(self, missing: WantedMessages, deadline: float) -> None:
        cursor = 0
        while any(missing.values()):
            _check_deadline(deadline)
            cursor, held = self._client.hscan(self._keys.noted[0], cursor, count=SCAN_COUNT)
            for raw in held.values():
                found = _ids(raw)
                for ids in missing.values():
                    ids.difference_update(found)
            if not cursor:
                return


class AmqpInventory(BrokerInventory):
    """Guesses by queue lengths on RabbitMQ, whose queues cannot be read.

    If an agent's queue is empty, all its messages that no worker has begun count as missing.

    Args:
        connection: a connection to the broker.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        #: How often a queue was empty. After two passes it counts as empty for this run: the messages that this
        #: run publishes must not hide the other ones that it lost.
        self._empty_passes: Counter[str] = Counter()

    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        return {agent: set(ids) for agent, ids in wanted.items() if ids and self._is_empty(agent, deadline)}

    def _is_empty(self, agent: str, deadline: float) -> bool:
        _check_deadline(deadline)
        if self._empty_passes[agent] >= PASSES:
            return True
        is_empty = not self._queue_length(agent)
        self._empty_passes[agent] = self._empty_passes[agent] + 1 if is_empty else 0
        return is_empty

    def _queue_length(self, agent: str) -> int:
        """Return how many messages are in an agent's queue; a deleted queue is declared again."""
        queue = agent_queue(agent)
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue.name, passive=True).message_count)
        except self._connection.channel_errors:
            with self._connection.channel() as channel:
                queue(channel).declare()
            return 0


class ListedInventory(BrokerInventory):
    """Looks up messages with a transport that can list those that wait.

    Args:
        find_ids: returns the ids of the messages that wait for an agent.
    """

    exact = True

    def __init__(self, find_ids: Callable[[str], Iterable[str]]) -> None:
        self._find_ids = find_ids

    def missing(self, wanted: WantedMessages, deadline: float) -> WantedMessages:
        missing = {agent: ids - set(self._find_ids(agent)) for agent, ids in wanted.items()}
        return {agent: ids for agent, ids in missing.items() if ids}


@contextmanager
def broker_inventory(app: Any) -> Iterator[BrokerInventory | None]:
    """Open the inventory of an application's broker; it is None for a broker that cannot be asked."""
    with app.connection_for_write() as connection:  # on RabbitMQ, this one has deadlines
        if app.driver == "redis":
            with connection.channel() as channel:
                yield RedisInventory(channel)
        elif app.driver == "amqp":
            yield AmqpInventory(connection)
        else:
            find_ids = getattr(connection.transport, "waiting_ids", None)
            yield None if find_ids is None else ListedInventory(find_ids)


def _ids(raw: bytes) -> set[str]:
    return {found.decode("ascii", "replace") for found in _ID.findall(raw)}


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise OutOfTime
