"""Kombu's transport to a broker in memory. Unlike Kombu's own ``memory://`` it delivers by priority."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import Any
from weakref import WeakValueDictionary

from kombu.transport import TRANSPORT_ALIASES, virtual

from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.testing.memory.broker import MemoryBroker

#: The scheme of the URLs of these brokers; the name of the broker follows.
SCHEME = "waooaw-testing"

_brokers: WeakValueDictionary[str, MemoryBroker] = WeakValueDictionary()


def broker_url(name: str, broker: MemoryBroker) -> str:
    """Return the URL under which this process reaches a broker.

    Args:
        name: its name, unique in the process.
        broker: the broker, which the caller keeps alive.
    """
    _brokers[name] = broker
    TRANSPORT_ALIASES.setdefault(SCHEME, f"{__name__}:Transport")
    return f"{SCHEME}://{name}"


class Channel(virtual.Channel):
    """A channel of the broker in memory."""

    supports_fanout = True

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._name: str = connection.client.hostname

    @property
    def broker(self) -> MemoryBroker:
        """The broker that has the name of the URL now: connections are kept from one test to the next."""
        return _brokers[self._name]

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message."""
        self.broker.on_acknowledge(delivery_tag)
        super().basic_ack(delivery_tag, multiple)

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.broker.put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        message = self.broker.take(queue)
        if message is None:
            raise Empty
        return message

    def _restore(self, message: Any) -> None:
        if self._name not in _brokers:  # its test has ended
            return
        document = message.serializable()
        document["properties"]["delivery_info"]["redelivered"] = True
        self.broker.put(document["properties"]["delivery_info"]["routing_key"], document)

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        for listener in self.broker.listeners:
            listener(self.message_to_python(message))

    def _queue_bind(self, *_: Any) -> None:
        """Do nothing: Kombu itself knows the bindings."""

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self.broker.exists(queue)

    def _new_queue(self, queue: str, **_: Any) -> None:
        self.broker.declare(queue)

    def _size(self, queue: str) -> int:
        return self.broker.size(queue)

    def _purge(self, queue: str) -> int:
        return self.broker.purge(queue)

    def _delete(self, queue: str, *_: Any, **__: Any) -> None:
        self.broker.delete(queue)


class Transport(virtual.Transport):
    """Kombu's transport to a broker in memory."""

    Channel = Channel
    driver_type = driver_name = SCHEME
    #: Exchanges and bindings, for all connections of the process.
    global_state = virtual.BrokerState()
    implements = virtual.Transport.implements.extend(exchange_type=frozenset(["direct", "topic", "fanout"]))

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = self.global_state

    def driver_version(self) -> str:
        """Return that there is no driver."""
        return "N/A"

    def waiting_ids(self, agent: str) -> Iterator[str]:
        """Yield the ids of the messages that wait for an agent."""
        return _brokers[self.client.hostname].message_ids(agent_queue(agent).name)
