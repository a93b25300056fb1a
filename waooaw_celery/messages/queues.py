"""From names to queues: which queue is whose, what a task name says, and what a priority is on each broker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from kombu import Connection, Exchange, Queue
from kombu.utils.url import maybe_sanitize_url

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.message import TYPE_NAMES, MessageType, Priority
from waooaw_celery.messages.validation import AGENT_NAME, RESERVED_NAMES

#: How the names of agents' queues begin.
AGENT_QUEUES = "agent."
#: Where the periodic tasks of this package run; no agent's worker consumes it.
SYSTEM_QUEUE = "waooaw.system"
#: The highest priority number that a queue on RabbitMQ takes.
AMQP_MAX_PRIORITY = 9

#: How the names of the handlers of events begin, each followed by the name of its subscription: no method's name
#: has a dot, so none meets one of these.
EVENT_HANDLERS = "event."

_HANDLER = re.compile(r"(event\.)?[A-Za-z_]\w*")
#: Drivers of Kombu whose queues hand out messages by priority.
_ORDERED_DRIVERS = frozenset({"redis", "amqp"})


class HandlerName(NamedTuple):
    """The two parts of the name of an agent's task."""

    agent: str
    handler: str

    def __str__(self) -> str:
        return f"{self.agent}.{self.handler}"

    @property
    def message_type(self) -> MessageType:
        """What a message to this handler is: an EVENT, the type it is named after, or else a QUERY to a method."""
        if self.handler.startswith(EVENT_HANDLERS):
            return MessageType.EVENT
        return MessageType(self.handler) if self.handler in TYPE_NAMES else MessageType.QUERY

    @classmethod
    def parse(cls, task_name: str) -> HandlerName | None:
        """Return the parts of ``worker-1.get_status``, or None for a task that is no agent's handler."""
        agent, _, handler = task_name.partition(".")
        if agent in RESERVED_NAMES or not AGENT_NAME.fullmatch(agent) or not _HANDLER.fullmatch(handler):
            return None
        return cls(agent, handler)


def takes_message(handler: str) -> bool:
    """Whether a handler takes one message, whose answer nobody awaits, and not the parameters of a method."""
    return handler in TYPE_NAMES or handler.startswith(EVENT_HANDLERS)


def agent_queue(agent: str) -> Queue:
    """Return the queue of an agent, ``agent.<name>``, as every broker declares it."""
    return _direct_queue(f"{AGENT_QUEUES}{agent}")


def system_queue() -> Queue:
    """Return the queue of this package's own periodic tasks."""
    return _direct_queue(SYSTEM_QUEUE)


@lru_cache(maxsize=4096)
def _direct_queue(name: str) -> Queue:
    # The anonymous exchange needs no binding that could be missing or evicted on Redis.
    return Queue(name, Exchange("", type="direct"), routing_key=name, max_priority=AMQP_MAX_PRIORITY)


def broker_priority(priority: Priority, driver: str) -> int:
    """Return the number that makes this priority mean the same on every broker.

    Redis hands out 0 first, RabbitMQ 9.

    Args:
        priority: rank 0, 3, 6 or 9; rank 0 is handled first.
        driver: Kombu's driver type, such as ``redis`` or ``amqp``.
    """
    return AMQP_MAX_PRIORITY - priority.rank if driver == "amqp" else priority.rank


def first_url(urls: str | Sequence[str] | None) -> str | None:
    """Return the first of a broker's URLs: Celery takes one, a list, or several with ``;`` between."""
    if isinstance(urls, list | tuple):
        urls = urls[0] if urls else None
    return urls.partition(";")[0] if isinstance(urls, str) else None


def driver_type(broker_url: str) -> str:
    """Return Kombu's name for the kind of broker behind a URL: ``redis``, ``amqp``, ``memory``, …

    Raises:
        ConfigurationError: Kombu knows no such broker, or its library is not installed.
    """
    try:
        if "://" not in broker_url:  # Kombu would take it for the name of a host
            raise ValueError("it has no ://")
        return str(Connection(broker_url).transport.driver_type)
    except (KeyError, ImportError, ValueError) as error:
        raise ConfigurationError(
            f"the broker URL {maybe_sanitize_url(broker_url)!r} is of no kind that Kombu can use ({error}): "
            "it begins with redis://, rediss://, redis+socket:// or amqp://"
        ) from error


def check_ordered(driver: str, allow_unordered: bool) -> None:
    """Refuse a broker that ignores priority.

    Raises:
        ConfigurationError: it does, and the setting that accepts it is off.
    """
    if driver not in _ORDERED_DRIVERS and not allow_unordered:
        raise ConfigurationError(
            f"the broker {driver!r} does not order messages by priority: use Redis, Valkey or RabbitMQ, "
            "or set waooaw_allow_unordered = True when order does not matter. Without a Redis a ledger keeps "
            "agents and receipts, in SQLite too: set waooaw_database_url, such as sqlite:///waooaw.db"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """How many messages wait in a queue.

    Attributes:
        queue: its name.
        total: all of them; a message that a worker holds is not counted.
        by_priority: the same by priority, or None where the broker does not tell (RabbitMQ).
    """

    queue: str
    total: int
    by_priority: dict[Priority, int] | None


def queue_depth(connection: Connection, queue: Queue) -> QueueDepth:
    """Return how many messages wait in a queue; none when the broker does not know it."""
    with connection.channel() as opened:
        channel: Any = opened  # each transport has its own
        if connection.transport.driver_type == "redis":
            return _redis_depth(channel, queue.name)
        try:
            total = channel.queue_declare(queue.name, passive=True).message_count
        except connection.channel_errors:  # no such queue
            total = 0
        return QueueDepth(queue=queue.name, total=total, by_priority=None)


def _redis_depth(channel: Any, name: str) -> QueueDepth:
    # Kombu keeps each priority step in a list of its own: the queue's name, and for all but the first step a
    # separator and the number of the step.
    keys = [f"{name}{channel.sep}{each.rank}" if each.rank else name for each in Priority]
    pipeline = channel.client.pipeline(transaction=False)
    for key in keys:
        pipeline.llen(key)
    counts = dict(zip(Priority, pipeline.execute(), strict=True))
    return QueueDepth(queue=name, total=sum(counts.values()), by_priority=counts)
