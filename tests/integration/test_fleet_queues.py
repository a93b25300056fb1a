"""What waits in queues, and the dead letters, in the metrics of the fleet: on real brokers."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from fleet_metrics import of, send
from support import Broker, lone_database, until
from test_message_groups import KEYED, Probe

from waooaw_celery import Priority
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.dead_letters import MAX_READ, NOT_READ, DeadLetterReader
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.messages import MessageReader
from waooaw_celery.maintenance.fleet.queues import UNKNOWN, QueueReader
from waooaw_celery.maintenance.fleet.samples import INVALID, OTHER
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.testing.embedded import end_all


def test_waiting_messages_by_agent_and_priority(ledgered: Broker) -> None:
    """With the age of the oldest of each priority, and who sent them."""
    with closing(ledgered.app(waooaw_agents=["writer", "idle"])) as app:
        send(app, "writer", 3, priority=Priority.HIGH)
        send(app, "writer", 2, priority=Priority.LOW, from_agent="planner")
        queues = QueueReader(app, KnownAgents(["writer", "idle"])).read()
        app.ledger.flush()
        messages = MessageReader(app).read()
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "high") == 3
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "low") == 2
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "urgent") == 0
    assert of(queues, metrics.QUEUE_MESSAGES, "idle", "normal") == 0
    assert of(queues, metrics.QUEUE_MESSAGES, "(system)", "normal") == 0
    ages = queues.values[metrics.QUEUE_OLDEST]
    assert set(ages) == {("writer", "high"), ("writer", "low")}
    assert all(0 < age < 30 for age in ages.values())
    assert metrics.QUEUE_SENDERS not in queues.values, "the ledger tells it"
    assert messages.values[metrics.QUEUE_SENDERS] == {("writer", "tests"): 3, ("writer", "planner"): 2}


def test_the_age_is_that_of_the_oldest_message(plain: Broker) -> None:
    """Newer ones of the same list do not make it younger."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        now = app.reference_clock.now()
        send(app, "writer", sent_at=now - timedelta(minutes=3))
        send(app, "writer", 2)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    age = of(samples, metrics.QUEUE_OLDEST, "writer", "normal")
    assert age is not None
    assert 180 <= age < 210


def test_without_a_ledger_the_queue_tells_the_senders(plain: Broker) -> None:
    """Anything may stand there: what is no name of an agent is no label, and what cannot be read is not dated."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        send(app, "writer", 150)
        send(app, "writer", 2, from_agent="planner", priority=Priority.URGENT)
        with app.connection_for_write() as connection, connection.channel() as channel:
            for item in (
                b"{",
                b"[]",
                json.dumps({"headers": {ENVELOPE_HEADER: {"from": "Ada Lovelace"}}}).encode(),
            ):
                channel.client.rpush("agent.writer", item)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    senders = samples.values[metrics.QUEUE_SENDERS]
    assert senders["writer", "planner"] == 2
    assert senders["writer", INVALID] == 3
    assert of(samples, metrics.QUEUE_MESSAGES, "writer", "normal") == 150
    assert senders["writer", "tests"] == 100, "about the next hundred of a list are read"


def test_large_messages_are_not_read_for_their_senders(plain: Broker) -> None:
    """The exporter must not move megabytes in each interval."""
    with closing(plain.app(waooaw_agents=["writer"], task_compression="none")) as app:
        send(app, "writer", payload="x" * 100_000)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    assert of(samples, metrics.QUEUE_OLDEST, "writer", "normal") is not None
    assert not samples.values.get(metrics.QUEUE_SENDERS)


@pytest.mark.slow
def test_messages_that_wait_for_their_key_are_counted(plain: Broker, tmp_path: Path) -> None:
    """With their priority and age, although they wait in a list of their key."""
    probe = Probe(plain, tmp_path)
    try:
        probe.start(options=KEYED)
        probe.send([probe.message(key="k", n=0, seconds=60)])
        until(lambda: probe.calls("begin"), "the first message")
        probe.send([probe.message(key="k", n=n) for n in range(1, 4)])
        reader = QueueReader(probe.app, KnownAgents([probe.name]))
        until(lambda: of(reader.read(), metrics.QUEUE_BUSY_KEYS, probe.name) == 1, "the key")
        samples = reader.read()
        assert of(samples, metrics.QUEUE_MESSAGES, probe.name, "normal") == 3
        assert of(samples, metrics.QUEUE_OLDEST, probe.name, "normal") is not None
        assert of(samples, metrics.QUEUE_SENDERS, probe.name, "tests") == 3
    finally:
        end_all(probe.processes)
        probe.app.close()


@pytest.mark.rabbitmq
def test_on_rabbitmq_the_priority_is_unknown(rabbitmq_broker: Broker, postgres_url: str) -> None:
    """The ledger tells the age of the oldest message by priority; nothing is taken out of a queue."""
    with lone_database(postgres_url) as database:
        broker = Broker(rabbitmq_broker.url, rabbitmq_broker.redis_url, rabbitmq_broker.folder, database)
        name = rabbitmq_broker.name()
        with closing(broker.app(waooaw_agents=[name])) as app:
            schema.upgrade(app.database)
            send(app, name, 3, priority=Priority.HIGH)
            until(
                lambda: (
                    of(QueueReader(app, KnownAgents([name])).read(), metrics.QUEUE_MESSAGES, name, UNKNOWN) == 3
                )
            )
            queues = QueueReader(app, KnownAgents([name])).read()
            app.ledger.flush()
            messages = MessageReader(app).read()
            dead = DeadLetterReader(app).read()
    assert metrics.QUEUE_OLDEST not in queues.values
    assert metrics.QUEUE_BUSY_KEYS not in queues.values
    age = of(messages, metrics.QUEUE_OLDEST, name, "high")
    assert age is not None
    assert 0 < age < 30
    total = of(dead, metrics.DEAD_LETTERS_STORED)
    assert total == sum(dead.values.get(metrics.DEAD_LETTERS, {(OTHER, NOT_READ): 0}).values())


def test_dead_letters_by_agent_and_reason(plain: Broker) -> None:
    """A retry, a discard and a new one are seen; of too many, the rest is not read."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        reader = DeadLetterReader(app)
        assert of(reader.read(), metrics.DEAD_LETTERS_STORED) == 0
        app.dead_letters.add("agent.writer", "ValueError: for Ada", b"{}", b"{}")
        app.dead_letters.add("agent.reader", "its header 'id' is not text", b"\xff")
        app.dead_letters.add("agent.Ada Lovelace", "it is not a task", b"x" * 1000)
        app.dead_letters.add("elsewhere", "", b"")
        samples = reader.read()
        assert samples.values[metrics.DEAD_LETTERS] == {
            ("writer", "handler_error"): 2,
            ("reader", "unreadable"): 1,
            (INVALID, "unreadable"): 1,
            (OTHER, "other"): 1,
        }
        [one, _] = app.dead_letters.list(agent="writer")
        app.dead_letters.discard([one], reason="test")
        samples = reader.read()
        assert of(samples, metrics.DEAD_LETTERS, "writer", "handler_error") == 1
        assert of(samples, metrics.DEAD_LETTERS_STORED) == 4
        app.dead_letters.add("agent.writer", "ValueError: x", *[b"{}"] * (MAX_READ + 20))
        samples = reader.read()
        assert of(samples, metrics.DEAD_LETTERS_STORED) == MAX_READ + 24
        read = sum(number for (_, why), number in samples.values[metrics.DEAD_LETTERS].items() if why != NOT_READ)
        assert read == MAX_READ
        assert of(samples, metrics.DEAD_LETTERS, OTHER, NOT_READ) == 24
