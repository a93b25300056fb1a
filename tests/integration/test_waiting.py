"""``MessageBus.waiting``: what waits for an agent, by priority and sender, on every broker and kind of store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, Priority, aio, create_app
from waooaw_celery.app import waiting as waiting_module
from waooaw_celery.cli import waooaw
from waooaw_celery.errors import BrokerUnavailable, ConfigurationError, InvalidMessage, UnknownAgent
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import QueueDepth
from waooaw_celery.testing.embedded import free_port

SENT = ("boss", Priority.URGENT, 1), ("boss", Priority.LOW, 2), ("planner", Priority.NORMAL, 1)
BY_PRIORITY = {Priority.URGENT: 1, Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
BY_SENDER = {"boss": 3, "planner": 1}


@pytest.fixture(params=["valkey", "ledger", "sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Broker:
    """Redis without a ledger, with one in PostgreSQL and in SQLite, and RabbitMQ."""
    if request.param != "sqlite":
        broker: Broker = request.getfixturevalue(f"{request.param}_broker")
        return broker
    url = request.getfixturevalue("redis_url")
    broker = Broker(url, url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    app = broker.app()
    schema.upgrade(app.database)
    app.close()
    return broker


@pytest.fixture
def absent(any_broker: Broker) -> str:
    """An agent without a worker."""
    return any_broker.name()


@pytest.fixture
def waiting_app(any_broker: Broker, absent: str) -> Iterator[AgentApp]:
    """An application that knows the agent, to which four messages were sent."""
    app = any_broker.app(waooaw_agents=[absent])
    for sender, priority, count in SENT:
        messages = [Message(from_agent=sender, to_agent=absent, priority=priority) for _ in range(count)]
        MessageBus(app).send_many(messages)
    yield app
    app.close()


def test_what_waits_is_counted_by_priority_and_sender(waiting_app: AgentApp, absent: str) -> None:
    """On RabbitMQ, only reading the messages shows both. They all stay in their queue."""
    bus, queue = MessageBus(waiting_app), f"agent.{absent}"
    counted = QueueDepth(queue=queue, total=4, by_priority=BY_PRIORITY)
    full = QueueDepth(queue=queue, total=4, by_priority=BY_PRIORITY, by_sender=BY_SENDER)
    is_redis = waiting_app.driver == "redis"
    unread = QueueDepth(queue=queue, total=4, by_priority=None)
    until(lambda: bus.waiting(absent, read=False).total == 4, "all messages")
    assert bus.waiting(absent) == (full if is_redis else unread)
    assert bus.waiting(absent, read=False) == (counted if is_redis else unread)
    assert bus.waiting(absent, read=True) == full
    until(lambda: bus.waiting(absent, read=False).total == 4, "the return of what was read")
    assert asyncio.run(aio.MessageBus(waiting_app).waiting(absent, read=True)) == full


def test_the_command_and_the_bus_agree(waiting_app: AgentApp, absent: str, any_broker: Broker) -> None:
    """``waooaw queues`` prints what ``waiting`` returns, with --read and without it."""
    environment: dict[str, Any] = {
        "CELERY_BROKER_URL": any_broker.url,
        "CELERY_RESULT_BACKEND": any_broker.redis_url,
        "WAOOAW_DATABASE_URL": any_broker.database_url,
        "WAOOAW_SPOOL_FOLDER": str(any_broker.spool_folder),
        "WAOOAW_AGENTS": absent,
    }
    bus = MessageBus(waiting_app)
    for options, read in ((["--read"], True), ([], None)):
        until(lambda: bus.waiting(absent, read=False).total == 4, "all messages")
        result = CliRunner().invoke(waooaw, ["queues", "--json", *options], env=environment)
        assert result.exit_code == 0, result.output
        [printed] = [one for one in json.loads(result.output) if one["queue"] == f"agent.{absent}"]
        until(lambda: bus.waiting(absent, read=False).total == 4, "the return of what was read")
        depth = bus.waiting(absent, read=read)
        assert printed == {
            "queue": depth.queue,
            "total": depth.total,
            "by_priority": depth.by_priority,
            "by_sender": depth.by_sender,
            "busy_keys": 0,
            "blocked": 0,
        }


def test_no_more_than_a_bounded_number_is_read(
    waiting_app: AgentApp, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On RabbitMQ, the priorities are unknown then; on Redis, no message needs to be read for them."""
    monkeypatch.setattr(waiting_module, "MAX_READ", 3)
    depth = MessageBus(waiting_app).waiting(absent, read=True)
    assert depth.total == 4
    assert sum((depth.by_sender or {}).values()) == 3
    assert depth.by_priority == (BY_PRIORITY if waiting_app.driver == "redis" else None)


def test_nothing_waits_for_an_agent_that_was_sent_nothing(any_broker: Broker, absent: str) -> None:
    """Its queue need not exist. An agent that is not known is refused."""
    app = any_broker.app(waooaw_agents=[absent])
    bus = MessageBus(app)
    empty = QueueDepth(queue=f"agent.{absent}", total=0, by_priority=dict.fromkeys(Priority, 0), by_sender={})
    assert bus.waiting(absent, read=True) == empty
    with pytest.raises(UnknownAgent):
        bus.waiting("nobody-at-all")
    with pytest.raises(InvalidMessage, match="agent must be"):
        bus.waiting("Not A Name")
    app.close()


def test_a_broker_that_does_not_answer_is_named(redis_url: str) -> None:
    """The call ends with an error, in a few seconds."""
    for url in (f"redis://127.0.0.1:{free_port()}/0", f"amqp://127.0.0.1:{free_port()}//"):
        app = create_app(broker_url=url, result_backend=redis_url, waooaw_redis_url=redis_url, waooaw_agents=["a"])
        with pytest.raises(BrokerUnavailable, match="the broker does not answer"):
            MessageBus(app).waiting("a")
        app.close()


def test_another_kind_of_broker_is_only_counted(redis_url: str) -> None:
    """Its messages cannot be read."""
    app = create_app(
        broker_url="memory://", waooaw_allow_unordered=True, waooaw_redis_url=redis_url, waooaw_agents=["a"]
    )
    assert MessageBus(app).waiting("a") == QueueDepth(queue="agent.a", total=0, by_priority=None)
    with pytest.raises(ConfigurationError, match="the queues of the broker 'memory' cannot be read"):
        MessageBus(app).waiting("a", read=True)
    app.close()
