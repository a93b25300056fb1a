"""A worker that loses its connection to the broker while its handlers run."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from process_pool import spawn
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus
from waooaw_celery.testing.embedded import end, valkey

OPTIONS = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}


def waiting_count(client: Any, name: str) -> int:
    """Return how many messages wait for an agent."""
    return sum(client.llen(key) for key in client.keys(f"agent.{name}*") if not key.endswith(b"bell"))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("has_ledger", [True, False])
def test_the_first_send_after_a_restart_of_the_broker_succeeds(
    own_broker: Broker, has_ledger: bool, count: int
) -> None:
    """The connections that the broker closed while nobody used them are opened again: each message waits once."""
    name = own_broker.name()
    settings: dict[str, Any] = {} if has_ledger else {"waooaw_database_url": None}
    with (
        closing(own_broker.app(waooaw_agents=[name], **settings)) as app,
        closing(Redis.from_url(own_broker.url.replace("redis+socket://", "unix://"))) as opened,
    ):
        client: Any = opened
        for sends in (1, 2, 3):
            messages = [Message(from_agent="tests", to_agent=name, payload=None) for _ in range(count)]
            receipts = MessageBus(app).send_many(messages)
            assert [receipt.status for receipt in receipts] == [MessageStatus.SENT] * count
            assert waiting_count(client, name) == sends * count
            client.client_kill_filter(_type="normal", skipme=True)
        client.delete(*client.keys(f"agent.{name}*"))


@pytest.mark.parametrize("pool", [("prefork", "2"), ("threads", "2")])
@pytest.mark.slow
def test_running_handlers_are_not_repeated_after_a_reconnect(own_broker: Broker, pool: tuple[str, str]) -> None:
    """Their leases are renewed until they end. Messages that were not started, and later ones, are handled too."""
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
            until(lambda: all(bus.receipt(id_).attempts for id_ in running), "both handlers to start")
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            later = send(0)
            assert {settled(app, id_) for id_ in (*running, *waiting, later)} == {MessageStatus.HANDLED}
            until(lambda: not client.keys("unacked*") and not waiting_count(client, name), "all acknowledgements")
            assert [bus.receipt(id_).attempts for id_ in (*running, *waiting, later)] == [1] * 5
            assert worker.poll() is None
        finally:
            end(worker)


@pytest.mark.slow
def test_acknowledgement_is_not_delayed_by_a_large_prefetch(
    own_broker: Broker,
) -> None:
    """A worker that holds many messages still acknowledges a handled one soon."""
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
            assert sum(receipt.attempts for receipt in begun) <= 3  # long before a quarter of them is handled
        finally:
            end(worker)


@pytest.mark.slow
def test_a_worker_without_its_broker_says_so_in_a_few_lines(tmp_path: Path) -> None:
    """It tells of the lost connection and of each attempt, without a traceback, and ends in order."""
    with ExitStack() as redis_runs:
        url = redis_runs.enter_context(valkey())
        log = tmp_path / "worker.log"
        env = {"PROBE_NAME": "lonely", "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
        # With gossip, which has a temporary queue.
        command = [sys.executable, "-m", "celery", "-A", "probe", "worker", "-n", "lonely@%h", "-l", "INFO"]
        worker = spawn(command, log=log, env=os.environ | env, cwd=Path(__file__).parent)
        try:
            until(lambda: log.exists() and "ready." in log.read_text(), "the start of the worker")
            before = len(log.read_text().splitlines())
            redis_runs.close()
            until(lambda: "Trying again" in log.read_text(), "the first attempt to connect again")
            worker.terminate()
            assert worker.wait(30) == 0
            added = log.read_text().splitlines()[before:]
            assert not [line for line in added if "Traceback" in line or "Error on" in line]
            assert len(added) < 30
        finally:
            end(worker)


@pytest.mark.slow
def test_a_queue_is_consumed_when_the_broker_accepts_it_again(tmp_path: Path) -> None:
    """A worker that is told to consume during an outage does so afterwards, and not only says that it lives."""
    with valkey() as url:
        own_broker = Broker(url, url, tmp_path)
        consume_again(own_broker)


def consume_again(own_broker: Broker) -> None:
    """Cancel the queue of a worker, have it consumed during an outage, and wait for a message to be handled."""
    with closing(own_broker.app()) as app:
        name = own_broker.name()
        worker = own_broker.start(name, app, broker_transport_options=OPTIONS)
        try:
            client: Any = Redis.from_url(own_broker.url.replace("redis+socket://", "unix://"))
            queue = app.amqp.queues[f"agent.{name}"].name
            log = own_broker.folder / f"{name}.log"
            until(lambda: app.control.cancel_consumer(queue, reply=True), "the reply of the worker")
            client.acl_setuser("default", enabled=True, commands=["-llen"])
            app.control.add_consumer(queue)
            until(lambda: "cannot be consumed yet" in log.read_text(), "the first attempt")
            client.acl_setuser("default", enabled=True, commands=["+llen"])
            message = Message(from_agent="tests", to_agent=name, payload={})
            assert settled(app, MessageBus(app).send(message).message_id) is MessageStatus.HANDLED
            assert worker.poll() is None
        finally:
            end(worker)
