"""What the tests of the transport need: connections of Kombu's own kind and of ours, on keys of a test's own."""

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

#: What separates a queue's name from a priority, or from the name of its doorbell.
SEPARATOR = "\x06\x16"


class Broker:
    """A server, with keys for what is unacknowledged that no other test looks at.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = Redis.from_url(store_url(url))
        self.unacked = f"unacked-{uuid4().hex}"
        self._open: list[Connection] = []

    def connect(self, kind: str = "ours", url: str | None = None, tls: Any = None, **options: Any) -> Connection:
        """Return a connection of Kombu's own kind or of ours."""
        keys = {"unacked_key": self.unacked, "unacked_index_key": f"{self.unacked}-index"}
        connection = KINDS[kind](url or self.url, ssl=tls, transport_options=keys | options)
        self._open.append(connection)
        return connection

    def held(self) -> int:
        """Return how many messages are unacknowledged."""
        return int(self.redis.hlen(self.unacked))

    def close(self) -> None:
        """Close what is still open."""
        for connection in self._open:
            connection.close()
        self.redis.close()


class Reader:
    """A consumer without an event loop that keeps what it is given.

    Args:
        connection: over which.
        queues: what it consumes.
        prefetch: how many messages it may hold; None: as many as there are.
        options: of Kombu's consumer.
    """

    def __init__(
        self, connection: Connection, *queues: Queue, prefetch: int | None = None, **options: Any
    ) -> None:
        self.connection = connection
        self.channel: Any = connection.channel()
        self.got: list[Any] = []
        self.times: list[float] = []
        self.redelivered: list[bool] = []
        self.consumer = connection.Consumer(
            list(queues), channel=self.channel, callbacks=[self._take], prefetch_count=prefetch, **options
        )
        self.consumer.consume()

    def _take(self, _: Any, message: Any) -> None:
        self.times.append(time.monotonic())
        self.redelivered.append(bool(message.delivery_info.get("redelivered")))
        self.got.append(message)

    def drain(self, seconds: float) -> list[Any]:
        """Take whatever comes within so many seconds, and return the bodies of all messages so far."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            with suppress(TimeoutError, Empty):
                self.connection.drain_events(timeout=min(left, 0.2))
        return self.bodies

    def take(self, count: int, seconds: float = 15.0) -> list[Any]:
        """Wait for so many messages in all, and return their bodies."""

        deadline = time.monotonic() + seconds
        while len(self.got) < count:
            if time.monotonic() > deadline:
                pytest.fail(f"there are only {self.bodies}, not {count} messages, after {seconds:g} s")
            with suppress(TimeoutError, Empty):
                self.connection.drain_events(timeout=0.2)
        return self.bodies

    @property
    def bodies(self) -> list[Any]:
        """The bodies of all messages so far."""
        return [message.payload for message in self.got]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Consume in a thread, acknowledging all, while the block runs."""
        ended = threading.Event()

        def run() -> None:
            acknowledged = 0
            while not ended.is_set():
                with suppress(TimeoutError, Empty):
                    self.connection.drain_events(timeout=0.2)
                for message in self.got[acknowledged:]:
                    message.ack()
                    acknowledged += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(10)


def a_queue(**options: Any) -> Queue:
    """Return a queue that nobody else uses."""
    return Queue(f"t-{uuid4().hex[:10]}", routing_key=f"t-{uuid4().hex[:10]}", **options)


def send(connection: Connection, queue: Queue, *bodies: Any, **options: Any) -> None:
    """Publish bodies to a queue, directly."""
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        for body in bodies:
            producer.publish(body, routing_key=queue.name, exchange="", **options)


def listed(broker: Broker, queue: Queue) -> list[bytes]:
    """Return the raw items of a queue's most urgent list, the next one first."""
    return list(reversed(broker.redis.lrange(queue.name, 0, -1)))
