"""On one Redis for broker and receipts, an event travels once: a script makes its subscribers' messages of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import signals
from proxy import proxied
from redis import Redis

from waooaw_celery import AgentApp, EventBus, MessageStatus, Priority, create_app
from waooaw_celery.app.events.delivery import delivery_id, subscriber_messages
from waooaw_celery.messages.message import Message
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.testing.embedded import free_port, valkey

#: Its text has what a template, JSON or a format string could take for its own.
PAYLOAD = {"text": '100 %s "quoted" \\ {0} é \u2028', "n": [1, None, True]}
SUBSCRIPTIONS = [Subscription(agent=f"fan-{number}", name="seen", patterns=("fan.*",)) for number in range(5)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey(port=free_port()) as url:
        yield url


@pytest.fixture
def server(url: str) -> Iterator[Any]:
    """A client of it, whose databases are empty."""
    with closing(Redis.from_url(url, decode_responses=True)) as client:
        client.flushall()
        yield client


@pytest.fixture
def make_app(server: Any, url: str) -> Iterator[Callable[..., AgentApp]]:
    """Return a function that makes an application, after the subscriptions were declared."""
    made: list[AgentApp] = []

    def make(broker_url: str = url, **settings: Any) -> AgentApp:
        app = create_app(broker_url=broker_url, result_backend=broker_url, waooaw_sender="tests", **settings)
        made.append(app)
        app.subscriptions.declare(SUBSCRIPTIONS)
        return app

    yield make
    for app in made:
        app.close()


def queued(server: Any) -> dict[str, dict[str, Any]]:
    """Return the only message of each queue, by its task."""
    texts = [server.lrange(key, 0, -1) for key in server.keys("agent.fan-*") if not key.endswith("bell")]
    assert all(len(each) == 1 for each in texts)
    messages = [json.loads(text) for (text,) in texts]
    return {message["headers"]["task"]: message for message in messages}


@pytest.mark.parametrize("limit", [None, "1000/hour"])
def test_a_publish_is_one_round_trip(make_app: Callable[..., AgentApp], server: Any, limit: str | None) -> None:
    """The rate limit, the receipts and the queues are served by one script, which gets the payload once."""
    bus = EventBus(make_app(**({} if limit is None else {"waooaw_rate_limit": limit})))
    bus.publish("fan.out", PAYLOAD)
    server.config_resetstat()
    bus.publish("fan.out", {"text": os.urandom(50_000).hex()})
    stats = server.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_eval" not in stats
    assert 50_000 < server.info("stats")["total_net_input_bytes"] < 150_000


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_the_messages_are_those_that_celery_would_write(
    make_app: Callable[..., AgentApp], server: Any, serializer: str
) -> None:
    """They are equal to those of a publish with a receiver of Celery's signals, but for their delivery tags."""

    def publish() -> dict[str, dict[str, Any]]:
        server.flushall()
        app = make_app(task_serializer=serializer)
        EventBus(app).publish(
            "fan.out", PAYLOAD, event_id="event-1", subject="100 % é", priority=Priority.HIGH, ttl_seconds=60
        )
        return queued(server)

    def listen(**_: object) -> None:
        """Make the publisher take Celery's way."""

    at_once = publish()
    signals.before_task_publish.connect(listen)
    try:
        one_by_one = publish()
    finally:
        signals.before_task_publish.disconnect(listen)
    assert len(at_once) == len(one_by_one) == len(SUBSCRIPTIONS)
    tags = [each["properties"].pop("delivery_tag") for each in at_once.values()]
    assert len(set(tags)) == len(SUBSCRIPTIONS)
    for task, message in one_by_one.items():
        del message["properties"]["delivery_tag"]
        for each in (message, at_once[task]):
            each["headers"].pop("expires")
            each["headers"]["waooaw"].pop("sent_at")
            each["headers"]["waooaw"]["event"].pop("time")
        assert at_once[task] == message


def test_each_subscriber_has_a_receipt(make_app: Callable[..., AgentApp]) -> None:
    """It is SENT, names the subscriber's handler, and has the id that depends on event and subscriber."""
    app = make_app()
    published = EventBus(app).publish("fan.out", PAYLOAD)
    assert set(published.receipts) == {each.subscriber for each in SUBSCRIPTIONS}
    for each in SUBSCRIPTIONS:
        receipt = published.receipts[each.subscriber]
        assert receipt.message_id == delivery_id(published.event_id, each)
        stored = app.receipts.get(receipt.message_id)
        assert (stored.to_agent, stored.handler) == (each.agent, each.target.handler)
        assert stored.status is MessageStatus.SENT


def test_an_event_that_is_published_again_reaches_only_new_subscribers(
    make_app: Callable[..., AgentApp], server: Any
) -> None:
    """The others keep their first message."""
    app = make_app()
    bus = EventBus(app)
    first = bus.publish("fan.out", PAYLOAD, event_id="event-2")
    late = Subscription(agent="fan-late", name="seen", patterns=("fan.*",))
    app.subscriptions.declare([late])
    again = EventBus(make_app()).publish("fan.out", PAYLOAD, event_id="event-2")
    assert set(again.receipts) - set(first.receipts) == {late.subscriber}
    assert len(queued(server)) == len(SUBSCRIPTIONS) + 1


def test_a_lost_reply_delivers_nothing_twice(make_app: Callable[..., AgentApp], server: Any, url: str) -> None:
    """The server has run the script; the script runs again, and finds the messages."""
    with proxied(url) as proxy:
        bus = EventBus(make_app(proxy.url))
        bus.publish("other.topic")
        proxy.lose_answer(b"EVALSHA")
        published = bus.publish("fan.out", PAYLOAD)
        assert proxy.lost.is_set()
    assert len(published.receipts) == len(queued(server)) == len(SUBSCRIPTIONS)


def test_the_ids_of_messages_depend_on_event_and_subscriber_only() -> None:
    """Both ways to compute them give the same."""
    record = Message(from_agent="tests", to_agent="tests", message_id="event-3")
    found = [message.message_id for _, message in subscriber_messages(record, SUBSCRIPTIONS)]
    assert found == [delivery_id(record.message_id, each) for each in SUBSCRIPTIONS]
