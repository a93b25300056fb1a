"""Helpers for the transport tests: Kombu's and this package's connections, with keys that only one test uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection, Queue
from redis import Redis

from waooaw_celery.broker.connection import ClaimConnection
from waooaw_celery.store.connection import store_url

KINDS: dict[str, type[Connection]] = {"ours": ClaimConnection, "kombu": Connection}

#: Separates a queue's name from a priority, and from the suffix of its doorbell.
SEPARATOR = "\x06\x16"


class Broker:
    """A Redis server, with keys for unacknowledged messages that only one test uses.

    Args:
        url: The server's URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = Redis.from_url(store_url(url))
        self.unacked = f"unacked-{uuid4().hex}"
        self._open: list[Connection] = []

    def connect(self, kind: str = "ours", url: str | None = None, tls: Any = None, **options: Any) -> Connection:
        """Return a connection of Kombu's kind or of ours."""
        keys = {"unacked_key": self.unacked, "unacked_index_key": f"{self.unacked}-index"}
        connection = KINDS[kind](url or self.url, ssl=tls, transport_options=keys | options)
        self._open.append(connection)
        return connection

    def unacked_count(self) -> int:
        """Return how many messages are unacknowledged."""
        return int(self.redis.hlen(self.unacked))

    def close(self) -> None:
        """Close all open connections."""
        for connection in self._open:
            connection.close()
        self.redis.close()


class Reader:
    """A consumer without an event loop that stores the messages it receives.

    Args:
        connection: The connection to consume over.
        queues: The queues to consume.
        prefetch: The most messages that it may hold; None: no limit.
        options: Options of Kombu's consumer.
    """

    def __init__(
        self, connection: Connection, *queues: Queue, prefetch: int | None = None, **options: Any
    ) -> None:
        self.connection = connection
        self.channel: Any = connection.channel()
        self.messages: list[Any] = []
        self.times: list[float] = []
        self.redelivered: list[bool] = []
        self.consumer = connection.Consumer(
            list(queues), channel=self.channel, callbacks=[self._take], prefetch_count=prefetch, **options
        )
        self.consumer.consume()

    def _take(self, _: Any, message: Any) -> None:
        self.times.append(time.monotonic())
        self.redelivered.append(bool(message.delivery_info.get("redelivered")))
        self.messages.append(message)

    def drain(self, seconds: float) -> list[Any]:
        """Receive messages for some seconds, and return the bodies of all messages so far."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            with suppress(TimeoutError, Empty):
                self.connection.drain_events(timeout=min(left, 0.2))
        return self.bodies

    def take(self, count: int, seconds: float = 15.0) -> list[Any]:
        """Wait until a number of messages has arrived in total, and return their bodies."""

        deadline = time.monotonic() + seconds
        while len(self.messages) < count:
            if time.monotonic() > deadline:
                pytest.fail(f"only {self.bodies} arrived within {seconds:g} s, not {count} messages")
            with suppress(TimeoutError, Empty):
                self.connection.drain_events(timeout=0.2)
        return self.bodies

    @property
    def bodies(self) -> list[Any]:
        """The bodies of all messages so far."""
        return [message.payload for message in self.messages]

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """Consume in a thread and acknowledge all messages while the block runs."""
        ended = threading.Event()

        def run() -> None:
            acknowledged = 0
            while not ended.is_set():
                with suppress(TimeoutError, Empty):
                    self.connection.drain_events(timeout=0.2)
                for message in self.messages[acknowledged:]:
                    message.ack()
                    acknowledged += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)


def new_queue(**options: Any) -> Queue:
    """Return a queue with a unique name."""
    return Queue(f"t-{uuid4().hex[:10]}", routing_key=f"t-{uuid4().hex[:10]}", **options)


def send(connection: Connection, queue: Queue, *bodies: Any, **options: Any) -> None:
    """Publish bodies directly to a queue."""
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        for body in bodies:
            producer.publish(body, routing_key=queue.name, exchange="", **options)


def queue_items(broker: Broker, queue: Queue) -> list[bytes]:
    """Return the raw items of a queue's most urgent list, the next one first."""
    return list(reversed(broker.redis.lrange(queue.name, 0, -1)))
