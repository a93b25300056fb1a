"""Thousands of mutated messages meet real workers, on Redis and on RabbitMQ: none of them ends.

WAOOAW_TEST_FUZZ_MESSAGES says how many, WAOOAW_TEST_SEED where to begin.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mutated_messages import bent, cut
from rawqueue import publishable, put, real_messages
from redis import Redis
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.embedded import end, valkey
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.store.connection import store_url

pytestmark = pytest.mark.usefixtures("dead_letters_alone")

COUNT = int(os.environ.get("WAOOAW_TEST_FUZZ_MESSAGES", "1000"))
SEED = int(os.environ.get("WAOOAW_TEST_SEED", "7"))
#: Seconds for all of them: some have a time limit of their own that ends a process of the pool.
PATIENCE = 60 + COUNT / 10


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Broker]:
    """A server of this test's own, since some of its messages go nowhere."""
    with valkey() as url:
        yield Broker(url, url, tmp_path)


def mutants(messages: list[dict[str, Any]]) -> Iterator[bytes]:
    """Give mutated messages, the same ones for the same seed."""
    rng = random.Random(SEED)  # noqa: S311 - nothing here is secret
    for _ in range(COUNT):
        message = rng.choice(messages)
        item = json.dumps(bent(message, rng)).encode()
        yield cut(item, rng) if rng.random() < 0.2 else item


def assert_it_lives(app: AgentApp, name: str, pid: int) -> None:
    """When the queue is empty, the worker is the one that it was, and handles what is in order."""
    with app.connection_for_write() as connection:
        until(lambda: queue_depth(connection, agent_queue(name)).total == 0, "an empty queue", PATIENCE)
    message = Message(from_agent="tests", to_agent=name, ttl_seconds=None)
    MessageBus(app).send(message)
    until(lambda: MessageBus(app).receipt(message.message_id).status.final, "the end of a message", PATIENCE)
    assert MessageBus(app).receipt(message.message_id).status is MessageStatus.HANDLED
    assert RequestResponseHandler(app).request(name, "parent", timeout=30) == pid


def pid_of(app: AgentApp, name: str) -> int:
    pid = RequestResponseHandler(app).request(name, "parent", timeout=20)
    assert isinstance(pid, int)
    return pid


def test_a_worker_on_redis_lives_through_mutated_messages(lone: Broker) -> None:
    """Items of its queue, changed byte by byte and part by part."""
    name = lone.name()
    app = lone.app(waooaw_agents=[name])
    messages = real_messages(app, name, 20)
    process = lone.start(name, app)
    pid = pid_of(app, name)
    try:
        with Redis.from_url(store_url(lone.url)) as server:
            for item in mutants(messages):
                server.lpush(agent_queue(name).name, item)
        assert_it_lives(app, name, pid)
        assert process.poll() is None
        assert app.dead_letters.list(agent=name, limit=COUNT)
    finally:
        end(process)
        app.close()


@pytest.mark.rabbitmq
def test_a_worker_on_rabbitmq_lives_through_mutated_messages(amqp_url: str, lone: Broker) -> None:
    """The same as far as RabbitMQ itself takes them."""
    broker = Broker(amqp_url, lone.url, lone.folder)
    name = broker.name()
    app = broker.app(waooaw_agents=[name])
    messages = real_messages(app, name, 20)
    process = broker.start(name, app)
    pid, published = pid_of(app, name), 0
    try:
        with app.connection_for_write() as connection, connection.channel() as channel:
            for item in mutants(messages):
                told = publishable(item)
                if told is not None:
                    put(channel, agent_queue(name).name, *told)
                    published += 1
        assert published > COUNT / 2
        assert_it_lives(app, name, pid)
        assert process.poll() is None
        assert app.dead_letters.list(agent=name, limit=COUNT)
    finally:
        end(process)
        app.dead_letters.discard(app.dead_letters.list(agent=name, limit=10 * COUNT), reason="a test's")
        broker.clean()
        app.close()
