"""What waits in the queues: how many messages, of which priority, and from whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kombu import Queue

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.broker.waiting.amqp import AmqpWaitingMessages
from waooaw_celery.broker.waiting.redis import RedisWaitingMessages
from waooaw_celery.broker.waiting.waiting_message import WaitingMessages
from waooaw_celery.errors import BrokerUnavailable, ConfigurationError, WaooawError
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import AGENT_QUEUES, QueueDepth, queue_depth
from waooaw_celery.store.redis_refusals import explained

#: The most messages of a queue that are read to count their senders.
MAX_READ = 10_000


def queue_depths(app: AgentApp, queues: Sequence[Queue], *, read: bool | None = None) -> list[QueueDepth]:
    """Return how many messages wait in queues.

    Args:
        app: the application.
        queues: the queues; one that does not exist is empty.
        read: whether to read the messages, to count their senders too. None: only on Redis, where they stay in
            their queue meanwhile.

    Raises:
        BrokerUnavailable: the broker does not answer.
        AuditUnavailable: the broker is RabbitMQ, and the ledger, which knows the senders, does not answer.
        ConfigurationError: ``read`` is True, and the messages of this kind of broker cannot be read.
    """
    with _connected(app) as connection:
        depths = [queue_depth(connection, queue) for queue in queues]
        if read is not False and app.driver == "amqp" and app.components.has_ledger:
            depths = _with_open_messages(app, depths)
        if not (app.driver == "redis" if read is None else read):
            return depths
        with _waiting_messages(app, connection) as waiting:
            return [_read(waiting, depth) for depth in depths]


def _with_open_messages(app: AgentApp, depths: list[QueueDepth]) -> list[QueueDepth]:
    """Add what the ledger knows of queues that cannot be read: senders, and keys that are busy."""
    from waooaw_celery.ledger.open_messages import count_blocked, count_by_sender

    agents = [depth.queue.removeprefix(AGENT_QUEUES) for depth in depths]
    senders, blocked = count_by_sender(app.database, agents), count_blocked(app.database, agents)
    found = []
    for agent, depth in zip(agents, depths, strict=True):
        keys, messages = blocked.get(agent, (0, 0))
        found.append(replace(depth, by_sender=senders.get(agent, {}), busy_keys=keys, blocked=messages))
    return found


@contextmanager
def waiting_messages(app: AgentApp) -> Iterator[WaitingMessages]:
    """Open the waiting messages of an application's broker.

    Raises:
        BrokerUnavailable: the broker does not answer.
        ConfigurationError: the messages of this kind of broker cannot be read.
    """
    with _connected(app) as connection, _waiting_messages(app, connection) as waiting:
        yield waiting


def _read(waiting: WaitingMessages, depth: QueueDepth) -> QueueDepth:
    """Return a depth with what reading the messages adds."""
    if not depth.total:
        return replace(depth, by_priority=dict.fromkeys(Priority, 0), by_sender={})
    senders: Counter[str] = Counter()
    priorities: Counter[Priority] = Counter()
    for message in waiting.read(depth.queue, MAX_READ):
        senders[message.from_agent or "?"] += 1
        priorities[message.priority] += 1
    by_priority = depth.by_priority
    if by_priority is None and depth.total <= MAX_READ:
        by_priority = {priority: priorities[priority] for priority in Priority}
    return replace(depth, by_priority=by_priority, by_sender=dict(senders.most_common()))


@contextmanager
def _connected(app: AgentApp) -> Iterator[Any]:
    """Connect to the broker."""
    try:
        with app.connection_for_write() as connection:  # it has deadlines
            yield connection
    except WaooawError:  # some are a Kombu or connection error too
        raise
    except BROKER_ERRORS as error:
        raise BrokerUnavailable(f"the broker does not answer: {explained(error)}") from error


@contextmanager
def _waiting_messages(app: AgentApp, connection: Any) -> Iterator[WaitingMessages]:
    if app.driver == "redis":
        with connection.channel() as channel:
            yield RedisWaitingMessages(channel, app.settings.dead_letters_max)
    elif app.driver == "amqp":
        yield AmqpWaitingMessages(connection, app.dead_letters)
    else:
        raise ConfigurationError(f"the queues of the broker {app.driver!r} cannot be read")
