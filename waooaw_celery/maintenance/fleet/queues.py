"""What waits in the queues of the agents, as the broker tells it.

On Redis one round trip counts all queues, and another one reads the next message of each list that is not empty.
RabbitMQ tells a number for each queue and nothing about its messages: to be read, they would have to be taken
out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from redis import Redis

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.broker.redis.groups.sublists import message_of, sublists
from waooaw_celery.broker.redis.keys import Keys
from waooaw_celery.broker.waiting.waiting_message import parse_item
from waooaw_celery.errors import BrokerUnavailable, WaooawError
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.samples import OTHER, Samples, agent_labels, sender_label
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.queues import AGENT_QUEUES, QueueDepth, agent_queue, queue_depths, system_queue
from waooaw_celery.store.redis_refusals import explained

#: The label of the queue of the periodic tasks.
SYSTEM = "(system)"
#: The priority of messages whose priority the broker does not tell.
UNKNOWN = "unknown"
#: Pairs of agent and sender that have series of their own.
MAX_SENDERS = 20
#: Lists whose next messages are read together, and the most lists of a queue with grouped messages.
_LISTS, _SUBLISTS = 50, 200
#: How many of the fullest queues are read for their senders, how many messages of each list at a time and at most,
#: and the bytes of all of them. A list whose next message is larger than the last number is left out.
_QUEUES, _CHUNK, _READ, _BYTES, _LARGE = 20, 20, 100, 8 * 2**20, 64 * 2**10


class QueueReader:
    """Reads the queues of the known agents.

    Args:
        app: the application.
        agents: the known agents.
    """

    def __init__(self, app: AgentApp, agents: KnownAgents) -> None:
        self._app, self._agents = app, agents

    def read(self) -> Samples:
        """Return what waits.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        names = self._agents.names()
        queues = [*map(agent_queue, names), system_queue()]
        samples = Samples()
        try:
            with self._app.connection_for_write() as connection:  # it has deadlines
                depths = queue_depths(connection, queues)
                label = agent_labels(names)
                for depth in depths:
                    _count(samples, depth, _labelled(depth.queue, label))
                if self._app.driver == "redis":
                    with connection.channel() as channel:
                        self._read_lists(samples, channel, depths, label)
        except WaooawError:  # some are a Kombu or connection error too
            raise
        except BROKER_ERRORS as error:
            raise BrokerUnavailable(f"the broker does not say what waits: {explained(error)}") from error
        return samples

    def _read_lists(self, samples: Samples, channel: Any, depths: Sequence[QueueDepth], label: Any) -> None:
        """Add what the messages themselves tell: how old the next ones are, and who sent those that follow."""
        keys = Keys(channel)
        # Its own client: the channel's adds the key prefix to some commands only.
        client: Any = Redis(connection_pool=channel.pool)
        now = self._app.reference_clock.now()
        small: dict[str, list[tuple[Priority, str]]] = {}
        lists = [(depth, *each) for depth in depths if depth.total for each in _lists(client, keys, depth.queue)]
        for start in range(0, len(lists), _LISTS):
            part = lists[start : start + _LISTS]
            with client.pipeline(transaction=False) as pipeline:
                for _, _, key in part:
                    pipeline.lindex(key, -1)
                items = pipeline.execute()
            for (depth, priority, key), item in zip(part, items, strict=True):
                if item is None:
                    continue
                found = _priority_of(item, priority)
                sent_at = _sent_at(message_of(item))
                if sent_at is not None:
                    age = max((now - sent_at).total_seconds(), 0.0)
                    agent = _labelled(depth.queue, label)
                    samples.highest(metrics.QUEUE_OLDEST, age, agent, found.name.lower())
                if len(item) <= _LARGE:
                    small.setdefault(depth.queue, []).append((found, key))
        if not self._app.components.has_ledger:  # which knows the senders of all messages
            fullest = sorted(depths, key=lambda depth: -depth.total)[:_QUEUES]
            _count_senders(samples, client, {each.queue: small.get(each.queue, []) for each in fullest}, label)


def _count(samples: Samples, depth: QueueDepth, agent: str) -> None:
    if depth.by_priority is None:
        samples.add(metrics.QUEUE_MESSAGES, depth.total, agent, UNKNOWN)
        return
    for priority, number in depth.by_priority.items():
        samples.add(metrics.QUEUE_MESSAGES, number, agent, priority.name.lower())
    samples.add(metrics.QUEUE_BUSY_KEYS, depth.busy_keys, agent)


def _lists(client: Any, keys: Keys, queue: str) -> list[tuple[Priority, str]]:
    own = list(zip(Priority, keys.lists((queue,)), strict=True))
    # Each entry of a grouped list begins with its priority, which replaces this one.
    return own + [(Priority.LOW, key) for key in sublists(client, keys, queue)[:_SUBLISTS]]


def _count_senders(
    samples: Samples, client: Any, queues: dict[str, list[tuple[Priority, str]]], label: Any
) -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    left = _BYTES
    for queue, lists in queues.items():
        for priority, key in lists:
            for start in range(0, _READ, _CHUNK):
                if left <= 0:
                    break
                items = client.lrange(key, -start - _CHUNK, -start - 1)  # from the end that is claimed next
                for item in items:
                    left -= len(item)
                    sender = sender_label(parse_item(message_of(item), priority).from_agent)
                    pairs[_labelled(queue, label), sender] += 1
                if len(items) < _CHUNK:
                    break
    add_senders(samples, pairs)


def add_senders(samples: Samples, pairs: Counter[tuple[str, str]]) -> None:
    """Add the largest pairs of agent and sender, and for each agent the sum of its others.

    Args:
        samples: what to add to.
        pairs: how many messages each pair has.
    """
    shown = [pair for pair, _ in sorted(pairs.items(), key=lambda each: (-each[1], each[0]))[:MAX_SENDERS]]
    for pair in shown:
        samples.add(metrics.QUEUE_SENDERS, pairs[pair], *pair)
    for (agent, sender), number in pairs.items():
        if (agent, sender) not in shown:
            samples.add(metrics.QUEUE_SENDERS, number, agent, OTHER)


def _labelled(queue: str, label: Any) -> str:
    return str(label(queue.removeprefix(AGENT_QUEUES))) if queue.startswith(AGENT_QUEUES) else SYSTEM


def _priority_of(item: bytes, priority: Priority) -> Priority:
    """Return the priority of an entry: in a grouped list it begins with the number, otherwise it is the list's."""
    number, separator, _ = item[:4].partition(b":")
    if not separator or not number.isdigit() or int(number) >= len(Priority):
        return priority
    return list(Priority)[int(number)]


def _sent_at(item: bytes) -> datetime | None:
    """Return when a message was sent; None if it does not say so, because anybody can write anything there."""
    try:
        sent_at = datetime.fromisoformat(json.loads(item)["headers"][ENVELOPE_HEADER]["sent_at"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return sent_at if sent_at.tzinfo is not None else None
