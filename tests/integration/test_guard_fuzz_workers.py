"""Thousands of mutated messages for real workers, on Redis and on RabbitMQ: no worker ends.

WAOOAW_TEST_FUZZ_MESSAGES is the number of messages, WAOOAW_TEST_SEED the seed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mutated_messages import mutate_bytes, mutate_fields
from rawqueue import publishable, put, real_messages
from redis import Redis
from support import Broker, pid_of, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end, valkey

pytestmark = pytest.mark.usefixtures("dead_letters_alone")

COUNT = int(os.environ.get("WAOOAW_TEST_FUZZ_MESSAGES", "1000"))
SEED = int(os.environ.get("WAOOAW_TEST_SEED", "7"))
#: Seconds for all messages: some have a time limit that ends a process of the pool.
DEADLINE_SECONDS = 60 + COUNT / 10


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A server that only this test uses: some of its messages are never handled."""
    with valkey() as url:
        yield Broker(url, url, tmp_path)


def mutated_items(messages: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yield mutated messages, the same ones for the same seed."""
    rng = random.Random(SEED)  # noqa: S311 - test data, not a secret
    for _ in range(COUNT):
        message = rng.choice(messages)
        item = json.dumps(mutate_fields(message, rng)).encode()
        yield mutate_bytes(item, rng) if rng.random() < 0.2 else item


def assert_worker_survived(app: AgentApp, name: str, pid: int) -> None:
    """Once the queue is empty, the same worker process handles a valid message."""
    with app.connection_for_write() as connection:
        until(lambda: queue_depth(connection, agent_queue(name)).total == 0, "an empty queue", DEADLINE_SECONDS)
    message = Message(from_agent="tests", to_agent=name, ttl_seconds=None)
    MessageBus(app).send(message)
    until(
        lambda: MessageBus(app).receipt(message.message_id).status.final, "the end of a message", DEADLINE_SECONDS
    )
    assert MessageBus(app).receipt(message.message_id).status is MessageStatus.HANDLED
    assert RequestResponseHandler(app).request(name, "parent", timeout=30) == pid


@pytest.mark.slow
def test_worker_on_redis_survives_mutated_messages(own_broker: Broker) -> None:
    """Items of its queue, with mutated fields and bytes."""
    name = own_broker.name()
    app = own_broker.app(waooaw_agents=[name])
    messages = real_messages(app, name, 20)
    process = own_broker.start(name, app)
    pid = pid_of(app, name)
    try:
        with Redis.from_url(store_url(own_broker.url)) as server:
            for item in mutated_items(messages):
                server.lpush(agent_queue(name).name, item)
        assert_worker_survived(app, name, pid)
        assert process.poll() is None
        assert app.dead_letters.list(agent=name, limit=COUNT)
    finally:
        end(process)
        app.close()


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_worker_on_rabbitmq_survives_mutated_messages(amqp_url: str, own_broker: Broker) -> None:
    """The same, as far as RabbitMQ accepts them."""
    broker = Broker(amqp_url, own_broker.url, own_broker.folder)
    name = broker.name()
    app = broker.app(waooaw_agents=[name])
    messages = real_messages(app, name, 20)
    process = broker.start(name, app)
    pid, published = pid_of(app, name), 0
    try:
        with app.connection_for_write() as connection, connection.channel() as channel:
            for item in mutated_items(messages):
                message = publishable(item)
                if message is not None:
                    put(channel, agent_queue(name).name, *message)
                    published += 1
        assert published > COUNT / 2
        assert_worker_survived(app, name, pid)
        assert process.poll() is None
        assert app.dead_letters.list(agent=name, limit=COUNT)
    finally:
        end(process)
        app.dead_letters.discard(app.dead_letters.list(agent=name, limit=10 * COUNT), reason="end of the test")
        broker.clean()
        app.close()
