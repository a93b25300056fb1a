"""A worker that loses its connection to the broker while its handlers run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus
from waooaw_celery.embedded import end, valkey

OPTIONS = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}


@pytest.fixture
def own_broker(ledger_broker: Broker) -> Iterator[Broker]:
    """A server of the test's own: it cuts everybody off."""
    with valkey() as url:
        yield Broker(url, ledger_broker.redis_url, ledger_broker.folder, ledger_broker.database_url)


def listed(client: Any, name: str) -> int:
    """Return how many messages wait for an agent."""
    return sum(client.llen(key) for key in client.keys(f"agent.{name}*") if not key.endswith(b"bell"))


@pytest.mark.parametrize("pool", [("prefork", "2"), ("threads", "2")])
def test_what_runs_when_the_connection_is_lost_is_not_handled_twice(
    own_broker: Broker, pool: tuple[str, str]
) -> None:
    """Its lease is renewed until it ends; what had not begun, and what comes later, is handled too."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        worker = own_broker.start(name, app, "-P", pool[0], "-c", pool[1], broker_transport_options=OPTIONS)
        try:
            client: Any = Redis.from_url(own_broker.url.replace("redis+socket://", "unix://"))
            bus = MessageBus(app)

            def send(seconds: float) -> str:
                message = Message(from_agent="tests", to_agent=name, payload={"sleep": seconds})
                return bus.send(message).message_id

            running, waiting = [send(6), send(6)], [send(0), send(0)]
            until(lambda: all(bus.receipt(id_).attempts for id_ in running), "both handlers at work")
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            later = send(0)
            assert {settled(app, id_) for id_ in (*running, *waiting, later)} == {MessageStatus.HANDLED}
            until(lambda: not client.keys("unacked*") and not listed(client, name), "the end of them all")
            assert [bus.receipt(id_).attempts for id_ in (*running, *waiting, later)] == [1] * 5
            assert worker.poll() is None
        finally:
            end(worker)


def test_what_is_handled_is_acknowledged_soon_though_much_else_is_held(
    own_broker: Broker,
) -> None:
    """A worker that holds many messages and lets acknowledgements come together does not keep them for long."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        worker = own_broker.start(name, app, "-c", "2", worker_prefetch_multiplier=16)
        try:
            bus = MessageBus(app)
            seconds = [0.0] + [2.0] * 31
            sent = bus.send_many(
                Message(from_agent="tests", to_agent=name, payload={"sleep": number}) for number in seconds
            )
            client: Any = Redis.from_url(own_broker.url.replace("redis+socket://", "unix://"))
            until(lambda: client.hlen("unacked") == 32 - 1, "the first acknowledgement")
            begun = [bus.receipt(receipt.message_id) for receipt in sent]
            assert sum(receipt.attempts for receipt in begun) <= 3  # long before a quarter of them was handled
        finally:
            end(worker)
