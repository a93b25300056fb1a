"""A message is handled once and ends once for its id, even if a copy has another retention."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import Broker, note, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    RequestResponseHandler,
    RetentionPolicy,
)
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.testing.embedded import end_all

KINDS = ["valkey-postgresql", "valkey-sqlite", "valkey-redis"] + [
    pytest.param(kind, marks=pytest.mark.rabbitmq) for kind in ("rabbitmq-postgresql", "rabbitmq-redis")
]


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Each broker with each store of receipts: PostgreSQL, SQLite and Redis."""
    kind, _, store = request.param.partition("-")
    redis_url = request.getfixturevalue("redis_url")
    url = redis_url if kind == "valkey" else request.getfixturevalue("amqp_url")
    folder = tmp_path_factory.mktemp("same_id")
    databases = {
        "postgresql": lambda: request.getfixturevalue("ledger_broker").database_url,
        "sqlite": lambda: f"sqlite:///{folder}/ledger.db",
        "redis": lambda: None,
    }
    broker = Broker(url, redis_url, folder, databases[store]())
    if broker.database_url is not None:
        app = broker.app()
        schema.upgrade(app.database)
        app.close()
    yield broker
    broker.clean()


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    """An application that sends as ``tests``."""
    app = broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def name(broker: Broker) -> Iterator[str]:
    """An agent whose worker runs through all tests of one broker."""
    name, app = broker.name(), broker.app()
    process = broker.start(name, app)
    yield name
    end_all([process])
    app.close()


def replay(app: AgentApp, message: Message, **changes: Any) -> None:
    """Publish a copy of a message, as a program does that stores messages and publishes them again."""
    target = HandlerName(message.to_agent, "command")
    app.publisher.publish_recorded([(target, app.message_factory.complete(target, message).evolve(**changes))])


def terminal_events(app: AgentApp, message_id: str) -> list[str]:
    """Return the terminal events of a message in the ledger, under any retention."""
    app.receipts.flush()
    query = text("SELECT event FROM waooaw_message_events WHERE message_id = :id AND terminal")
    with app.database.begin("read the terminal events") as connection:
        return list(connection.scalars(query, {"id": message_id}))


def needs_ledger(broker: Broker) -> None:
    """Skip a test that needs a ledger."""
    if broker.database_url is None:
        pytest.skip("there is no ledger")


def test_a_copy_with_another_retention_is_a_duplicate(broker: Broker, app: AgentApp, name: str) -> None:
    """So is a copy with another time of sending, which also changes the retention. The ledger has one end."""
    bus, message = MessageBus(app), Message(from_agent="tests", to_agent=name, payload={"n": 1})
    bus.send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    replay(app, message, retention=RetentionPolicy.FOREVER)
    replay(app, message, retention=RetentionPolicy.DAYS_30)
    replay(app, message, sent_at=message.sent_at + timedelta(seconds=1))
    after = bus.send(Message(from_agent="tests", to_agent=name, payload={"n": 2}))
    assert settled(app, after.message_id) is MessageStatus.HANDLED
    handled: Any = RequestResponseHandler(app).request(name, "seen", timeout=30)
    assert [each["message_id"] for each in handled].count(message.message_id) == 1
    assert bus.receipt(message.message_id).attempts == 1
    if broker.database_url is not None:
        assert terminal_events(app, message.message_id) == ["handled"]
        events = MessageAuditTrail(app.ledger).receipt(message.message_id).events
        assert [event.event for event in events].count("duplicate") == 3


def test_events_of_a_copy_belong_to_its_message(broker: Broker, app: AgentApp) -> None:
    """Events that a worker notes for a copy get the keys of the message."""
    needs_ledger(broker)
    message = app.message_factory.complete(
        HandlerName("nobody", "command"), Message(from_agent="tests", to_agent="nobody")
    )
    app.receipts.begin_recording([(message, "command")])()
    copy = message.evolve(retention=RetentionPolicy.FOREVER)
    note(app.receipts, copy, MessageEvent.DELIVERED, MessageEvent.RETRIED, MessageEvent.HANDLED)
    note(app.receipts, message, MessageEvent.FAILED)
    record = MessageAuditTrail(app.ledger).receipt(message.message_id)
    assert [event.event for event in record.events] == ["delivered", "retried", "handled"]
    assert terminal_events(app, message.message_id) == ["handled"]


def test_a_message_without_a_row_ends_once_too(broker: Broker, app: AgentApp) -> None:
    """Its sender had no ledger, or its row was lost. The first end counts."""
    needs_ledger(broker)
    message = app.message_factory.complete(
        HandlerName("nobody", "command"), Message(from_agent="tests", to_agent="nobody")
    )
    note(app.receipts, message, MessageEvent.DELIVERED, MessageEvent.HANDLED)
    copy = message.evolve(retention=RetentionPolicy.FOREVER)
    note(app.receipts, copy, MessageEvent.FAILED)
    note(app.receipts, copy, MessageEvent.HANDLED)
    assert terminal_events(app, message.message_id) == ["handled"]


def test_concurrent_ends_of_one_message_are_written_once(broker: Broker, app: AgentApp) -> None:
    """Two applications note the end of copies that have different retentions."""
    needs_ledger(broker)
    other, barrier = broker.app(), Barrier(2)
    target = HandlerName("nobody", "command")
    messages = [
        app.message_factory.complete(target, Message(from_agent="tests", to_agent="nobody")) for _ in range(20)
    ]
    app.receipts.begin_recording([(message, "command") for message in messages])()

    def note_end(which: AgentApp, retention: RetentionPolicy) -> None:
        for message in messages:
            barrier.wait(30)
            note(which.receipts, message.evolve(retention=retention), MessageEvent.HANDLED)

    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(note_end, app, RetentionPolicy.DAYS_365),
            threads.submit(note_end, other, RetentionPolicy.FOREVER),
        ]
        for future in futures:
            future.result()
    other.close()
    assert [terminal_events(app, message.message_id) for message in messages] == [["handled"]] * 20


@pytest.mark.parametrize("change", ["retention", "sent_at"])
def test_a_message_that_has_ended_is_not_sent_again(change: str, broker: Broker, app: AgentApp, name: str) -> None:
    """The sender gets an error, and the ledger has no open message afterwards."""
    bus = MessageBus(app)
    first = Message(from_agent="tests", to_agent=name, message_id=f"order-{uuid4()}")
    bus.send(first)
    assert settled(app, first.message_id) is MessageStatus.HANDLED
    moved = first.sent_at + timedelta(seconds=1)
    again = (
        first.evolve(retention=RetentionPolicy.FOREVER) if change == "retention" else first.evolve(sent_at=moved)
    )
    with pytest.raises(InvalidMessage, match="sent already"):
        bus.send(again)
    assert bus.receipt(first.message_id).status is MessageStatus.HANDLED
    if broker.database_url is not None:
        query = text("SELECT count(*) FROM waooaw_open_messages WHERE message_id = :id")
        with app.database.begin("count the open messages") as connection:
            assert connection.scalar(query, {"id": first.message_id}) == 0
    replay(app, first)
    after = bus.send(Message(from_agent="tests", to_agent=name))
    until(lambda: bus.receipt(after.message_id).status.final, "the end of a later message")
    assert bus.receipt(first.message_id).attempts == 1
