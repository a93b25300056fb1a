"""Names of queues and handlers, and how each kind of broker represents priority and queue depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from kombu import Connection, Exchange, Queue

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import TYPE_NAMES, MessageType, Priority
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.urls import check_url, separated_urls, shown_url
from waooaw_celery.messages.validation import AGENT_NAME, RESERVED_NAMES

#: Prefix of the names of agents' queues.
AGENT_QUEUES = "agent."
#: Queue of this package's periodic tasks; the system's worker consumes it, and no agent's worker does.
SYSTEM_QUEUE = "waooaw.system"
#: The highest priority number of a queue on RabbitMQ.
AMQP_MAX_PRIORITY = 9

#: Prefix of the names of event handlers; the name of the subscription follows. The name of a method has no dot, so
#: the two never clash.
EVENT_HANDLERS = "event."

_HANDLER = re.compile(r"(event\.)?[A-Za-z_]\w*")
#: Kombu's driver types whose queues deliver messages by priority.
_ORDERED_DRIVERS = frozenset({"redis", "amqp"})


class HandlerName(NamedTuple):
    """The name of an agent's task, in two parts, such as ``worker-1`` and ``get_status``."""

    agent: str
    handler: str

    def __str__(self) -> str:
        return f"{self.agent}.{self.handler}"

    @property
    def message_type(self) -> MessageType:
        """The type of the messages to this handler: EVENT, the type it is named after, or QUERY for a method."""
        if self.handler.startswith(EVENT_HANDLERS):
            return MessageType.EVENT
        return MessageType(self.handler) if self.handler in TYPE_NAMES else MessageType.QUERY

    @classmethod
    def parse(cls, task_name: str) -> HandlerName | None:
        """Return the parts of a name such as ``worker-1.get_status``, or None if it does not name a handler."""
        agent, _, handler = task_name.partition(".")
        if agent in RESERVED_NAMES or not AGENT_NAME.fullmatch(agent) or not _HANDLER.fullmatch(handler):
            return None
        return cls(agent, handler)


def takes_message(handler: str) -> bool:
    """Whether a handler takes one message and returns no answer, unlike a method, which takes parameters."""
    return handler in TYPE_NAMES or handler.startswith(EVENT_HANDLERS)


def agent_queue(agent: str) -> Queue:
    """Return the queue of an agent, ``agent.<name>``."""
    return _direct_queue(f"{AGENT_QUEUES}{agent}")


def system_queue() -> Queue:
    """Return the queue of this package's periodic tasks."""
    return _direct_queue(SYSTEM_QUEUE)


@lru_cache(maxsize=4096)
def _direct_queue(name: str) -> Queue:
    # The default exchange needs no binding, which could be missing or evicted on Redis.
    return Queue(name, Exchange("", type="direct"), routing_key=name, max_priority=AMQP_MAX_PRIORITY)


def broker_priority(priority: Priority, driver: str) -> int:
    """Return the number that stands for a priority on a kind of broker: Redis delivers 0 first, RabbitMQ 9.

    Args:
        priority: the priority.
        driver: Kombu's driver type, such as ``redis`` or ``amqp``.
    """
    return AMQP_MAX_PRIORITY - priority.rank if driver == "amqp" else priority.rank


def priority_of_number(number: int, driver: str) -> Priority:
    """Return the priority that a number stands for on a kind of broker, as Celery and Kombu read it.

    Redis delivers 0 first, and Kombu rounds a number down to 0, 3, 6 or 9. RabbitMQ delivers the highest first. A
    number above 9 counts as 9.

    Args:
        number: the number, from 0.
        driver: Kombu's driver type, such as ``redis`` or ``amqp``.
    """
    step = min(number, AMQP_MAX_PRIORITY) // 3 * 3
    return Priority.of_rank(AMQP_MAX_PRIORITY - step if driver == "amqp" else step)


def first_url(urls: str | Sequence[str] | None) -> str | None:
    """Return the first of a broker's URLs; Celery accepts one, a list, or several separated by ``;``."""
    return next(iter(separated_urls(urls)), None)


def driver_type(broker_url: str) -> str:
    """Return Kombu's driver type for a broker's URL: ``redis``, ``amqp``, ``memory``, …

    Raises:
        ConfigurationError: Kombu has no transport for the URL, or its client library is not installed.
    """
    check_url("broker_url", broker_url)
    try:
        return str(Connection(broker_url).transport.driver_type)
    except (KeyError, ImportError, ValueError) as error:
        raise ConfigurationError(
            f"Kombu cannot use the broker URL {shown_url(broker_url)} ({error}): "
            "use a URL such as redis://localhost:6379/0 or amqp://guest:guest@localhost:5672//"
        ) from error


def check_ordered(driver: str, allow_unordered: bool) -> None:
    """Refuse a broker that ignores priority.

    Args:
        driver: Kombu's driver type.
        allow_unordered: the setting ``waooaw_allow_unordered``.

    Raises:
        ConfigurationError: the broker ignores priority, and the setting does not accept that.
    """
    if driver not in _ORDERED_DRIVERS and not allow_unordered:
        raise ConfigurationError(
            f"the broker {driver!r} does not order messages by priority: use Redis, Valkey or RabbitMQ, "
            "or set waooaw_allow_unordered = True if order does not matter, and set waooaw_database_url, such as "
            "sqlite:///waooaw.db, or waooaw_redis_url to store agents and receipts"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth(JsonForm):
    """The number of messages that wait in a queue.

    Attributes:
        queue: name of the queue.
        total: number of waiting messages; those that workers hold are not counted.
        by_priority: the number for each priority; None if it is not known, as on RabbitMQ unless the messages were
            read.
        by_sender: how many of them each agent sent, the largest number first; None if that is not known. On
            RabbitMQ with a ledger, how many open messages each has: also those that run or are not due.
            ``?`` stands for messages that do not name their sender. At most 10,000 messages of a queue are read:
            of each priority the newest on Redis, the first on RabbitMQ.
        busy_keys: how many keys have messages that wait until an earlier one of their key has ended.
        blocked: how many messages these are. On RabbitMQ, workers hold them, and ``total`` does not count them.
    """

    queue: str
    total: int
    by_priority: dict[Priority, int] | None
    by_sender: dict[str, int] | None = None
    busy_keys: int = 0
    blocked: int = 0


def queue_depth(connection: Connection, queue: Queue) -> QueueDepth:
    """Return the number of messages that wait in a queue; 0 if the queue does not exist."""
    with connection.channel() as opened:
        channel: Any = opened  # its class depends on the transport
        if connection.transport.driver_type == "redis":
            return _redis_depth(channel, queue.name)
        try:
            total = channel.queue_declare(queue.name, passive=True).message_count
        except connection.channel_errors:  # no such queue
            total = 0
        return QueueDepth(queue=queue.name, total=total, by_priority=None)


def queue_depths(connection: Connection, queues: Sequence[Queue]) -> list[QueueDepth]:
    """Return the number of messages that wait in each of several queues: on Redis, in one round trip."""
    if connection.transport.driver_type != "redis":
        return [queue_depth(connection, queue) for queue in queues]
    with connection.channel() as opened:
        return _redis_depths(opened, [queue.name for queue in queues])


def _add_grouped(channel: Any, lists: Iterable[bytes | str], count: dict[Priority, int]) -> list[int]:
    """Add the lengths of lists whose entries begin with the number of their priority.

    Returns:
        The lengths of those that have the messages of a key.
    """
    pipeline = channel.client.pipeline(transaction=False)
    names = [
        (each.decode() if isinstance(each, bytes) else each).removeprefix(channel.global_keyprefix)
        for each in lists
    ]
    for name in names:
        pipeline.llen(name)
        pipeline.execute_command("LRANGE", f"{channel.global_keyprefix}{name}", -1, -1)
    found = pipeline.execute()
    for length, first in zip(found[::2], found[1::2], strict=True):
        if first:
            number = int((first[0].encode() if isinstance(first[0], str) else first[0]).partition(b":")[0])
            count[list(Priority)[number]] += length
    return [length for name, length in zip(names, found[::2], strict=True) if f"{channel.sep}group:" in name]


def _redis_depth(channel: Any, name: str) -> QueueDepth:
    return _redis_depths(channel, [name])[0]


def _redis_depths(channel: Any, names: Sequence[str]) -> list[QueueDepth]:
    # Kombu stores each priority in its own list. Its key is the name of the queue; for all but the first priority,
    # a separator and the rank follow.
    pipeline = channel.client.pipeline(transaction=False)
    for name in names:
        for each in Priority:
            pipeline.llen(f"{name}{channel.sep}{each.rank}" if each.rank else name)
        pipeline.smembers(f"{name}{channel.sep}sublists")
    found = iter(pipeline.execute())
    counts, sublists = [], []
    blocked: dict[str, list[int]] = {}
    for _ in names:
        counts.append({each: next(found) for each in Priority})
        sublists.append(next(found))
    for name, count, lists in zip(names, counts, sublists, strict=True):
        if lists:  # its consumers group its messages
            blocked[name] = _add_grouped(channel, lists, count)
    return [
        QueueDepth(
            queue=name,
            total=sum(count.values()),
            by_priority=count,
            busy_keys=len(blocked.get(name, ())),
            blocked=sum(blocked.get(name, ())),
        )
        for name, count in zip(names, counts, strict=True)
    ]
