"""Subscriptions, schemas and capabilities in each kind of store, and the cost of a publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.connection import AbstractConnection
from support import Broker

from waooaw_celery import AgentApp, EventBus, MessageStatus, RateLimitExceeded, create_app
from waooaw_celery.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable, UnknownSubscription
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.events.event_log import EventLog
from waooaw_celery.maintenance.erasure import erase
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
from waooaw_celery.store.subscriptions import Subscription


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def store_app(request: pytest.FixtureRequest, valkey_broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with each kind of store, so that each test runs three times."""
    url = None
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    elif request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with closing(valkey_broker.app(waooaw_database_url=url)) as app:
        if url is not None:
            schema.upgrade(app.database)
        yield app


def agent() -> str:
    return f"a{uuid4().hex[:10]}"


def subscription(agent_: str, **fields: Any) -> Subscription:
    return Subscription(**({"agent": agent_, "name": "one", "patterns": (f"{agent_}.*",)} | fields))


def test_a_subscription_is_stored(store_app: AgentApp) -> None:
    """The store has its patterns, filter and start of catch-up, and when it was first declared."""
    name, began = agent(), datetime.now(UTC)
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    where = Filter.of({"order.total": {"gte": 100}, "state": ["a", None, True]})
    patterns = (f"{name}.*", "job.#")
    store_app.subscriptions.declare([subscription(name, patterns=patterns, where=where, catch_up_from=since)])
    found = store_app.subscriptions.read().get(f"{name}.one")
    assert (found.patterns, found.where, found.catch_up_from, found.removed_at) == (patterns, where, since, None)
    assert found.subscribed_at is not None
    assert began <= found.subscribed_at <= datetime.now(UTC)


def test_a_start_renews_and_a_heartbeat_only_adds(store_app: AgentApp) -> None:
    """Workers with older and newer code do not overwrite each other in turn; subscribed_at does not change."""
    name = agent()
    store_app.subscriptions.declare([subscription(name)])
    first = store_app.subscriptions.read().get(f"{name}.one")
    newer = subscription(name, patterns=("x.#",), catch_up_from=datetime.now(UTC))
    store_app.subscriptions.declare([newer, subscription(name, name="two")], renew=False)
    assert store_app.subscriptions.read().get(f"{name}.one") == first
    assert store_app.subscriptions.read().get(f"{name}.two").patterns == (f"{name}.*",)
    store_app.subscriptions.declare([newer])
    renewed = store_app.subscriptions.read().get(f"{name}.one")
    assert (renewed.patterns, renewed.subscribed_at) == (("x.#",), first.subscribed_at)
    assert renewed.catch_up_from is None  # it is not new


def test_a_removed_subscription_stays_removed(store_app: AgentApp) -> None:
    """It is listed as removed and gets nothing until it is restored."""
    name = agent()
    store_app.subscriptions.declare([subscription(name)])
    removed = store_app.subscriptions.remove(f"{name}.one")
    assert removed.removed_at is not None
    for renew in (True, False):
        store_app.subscriptions.declare([subscription(name)], renew=renew)
    assert store_app.subscriptions.known().get(f"{name}.one").removed_at == removed.removed_at
    assert store_app.subscriptions.known().subscribers(f"{name}.x", None) == []
    assert store_app.subscriptions.restore(f"{name}.one").removed_at is None
    assert [each.agent for each in store_app.subscriptions.known().subscribers(f"{name}.x", None)] == [name]
    with pytest.raises(UnknownSubscription, match=f"{name}.one"):
        store_app.subscriptions.remove(f"{name}.nothing")


def test_a_catch_up_is_done_once(store_app: AgentApp) -> None:
    """A later start of the worker does not repeat it."""
    name = agent()
    wanted = subscription(name, catch_up_from=datetime.now(UTC) - timedelta(days=1))
    store_app.subscriptions.declare([wanted])
    store_app.subscriptions.caught_up(wanted)
    store_app.subscriptions.declare([wanted])
    assert store_app.subscriptions.read().get(f"{name}.one").catch_up_from is None


def test_schemas_keep_their_order_when_a_worker_restarts(store_app: AgentApp) -> None:
    """A worker that knows the older version only does not make it the newest."""
    topic = f"{agent()}.x"
    one = TopicSchema(topic=topic, version="1", schema={"required": ["a"]})
    two = TopicSchema(
        topic=topic, version="2", schema={"required": ["b"], "x": [None, 1.5]}, check=SchemaCheck.RECEIPT
    )
    store_app.subscriptions.declare([], [one, two])
    store_app.subscriptions.declare([], [one])
    assert [each for each in store_app.subscriptions.read().schemas if each.topic == topic] == [one, two]


def test_capabilities_are_declared_with_the_agent(store_app: AgentApp) -> None:
    """They change with its code."""
    name = agent()
    store_app.registry.declare(name, ["command"], "w@h", 60, ["ocr", "lang:en"])
    assert store_app.registry.get(name).capabilities == ("lang:en", "ocr")
    store_app.registry.declare(name, ["command"], "w@h", 60)
    assert store_app.registry.get(name).capabilities == ()


def test_an_event_reaches_the_queue_of_each_subscriber(store_app: AgentApp) -> None:
    """With each store, the receipts are SENT."""
    name = agent()
    store_app.subscriptions.declare(
        [subscription(name), subscription(name, name="two", where=Filter.of({"n": 2}))]
    )
    store_app.subscriptions.read()
    published = EventBus(store_app).publish(f"{name}.x", {"n": 2}, from_agent="boss")
    assert set(published.receipts) == {f"{name}.one", f"{name}.two"}
    for receipt in published.receipts.values():
        found = store_app.receipts.get(receipt.message_id)
        assert (found.status, found.to_agent, found.message_type) == (MessageStatus.SENT, name, "event")
    assert set(EventBus(store_app).publish(f"{name}.x", {"n": 3}, from_agent="boss").receipts) == {f"{name}.one"}


def _counting(way: Callable[..., Any], statements: list[int]) -> Callable[..., Any]:
    """Return a function that also notes how many messages each statement writes."""

    def counted(entries: Any, *, late: bool = False) -> Any:
        if not late:  # another test's rows, from the spool
            statements.append(sum(entry.kind == "message" for entry in entries))
        return way(entries, late=late)

    return counted


def test_a_hundred_subscribers_cost_one_round_trip_and_one_statement(
    ledger_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All messages go to the broker together, and one statement records them and their event."""
    trips: list[object] = []
    send = AbstractConnection.send_packed_command

    def sent(connection: Any, *args: Any, **kwargs: Any) -> None:
        trips.append(connection)
        send(connection, *args, **kwargs)

    with closing(ledger_broker.app()) as app:
        word = agent()
        names = [f"{word}-{number}" for number in range(100)]
        app.subscriptions.declare([subscription(name, patterns=(f"{word}.*",)) for name in names])
        bus = EventBus(app)
        bus.publish(f"{word}.x", 0, from_agent="boss")  # queues are declared, connections open
        app.ledger.flush()
        statements = list[int]()  # how many messages each of them writes
        pen: Any = app.ledger._writer._inserter  # type: ignore[union-attr]
        for way in (pen.send, pen.write):
            setattr(pen, way.__name__, _counting(way, statements))
        monkeypatch.setattr(AbstractConnection, "send_packed_command", sent)
        published = bus.publish(f"{word}.x", {"n": 1}, from_agent="boss")
        assert len(trips) == 1
        assert [messages for messages in statements if messages] == [101]
        assert len(published.receipts) == 100
        [found] = [each for each in EventLog(app.ledger).statistics() if each.topic == f"{word}.x"]
        assert (found.published, len(found.subscribers)) == (2, 100)
        assert {each.messages for each in found.subscribers} == {2}


def test_an_event_counts_once_against_its_publishers_limit(store_app: AgentApp) -> None:
    """The number of subscribers does not matter. An event above the limit is neither delivered nor recorded."""
    word = agent()
    app = create_app("limited", **{**dict(store_app.conf.changes), "waooaw_rate_limit": "3/hour"})
    with closing(app):
        assert app.settings.database_url == store_app.settings.database_url
        for number in range(5):
            app.subscriptions.declare([subscription(f"{word}-{number}", patterns=(f"{word}.*",))])
        app.subscriptions.read()
        bus = EventBus(app)
        assert len(bus.publish(f"{word}.x", from_agent=word).receipts) == 5
        assert len(bus.publish(f"{word}.x", from_agent=word).receipts) == 5
        assert bus.publish(f"unheard.{word}", from_agent=word).receipts == {}
        with pytest.raises(RateLimitExceeded, match=word):
            bus.publish(f"{word}.x", from_agent=word)
        with pytest.raises(RateLimitExceeded):
            bus.publish(f"unheard.{word}", from_agent=word)
        if app.settings.database_url is not None:
            counts = {each.topic: each.published for each in EventLog(app.ledger).statistics()}
            assert (counts[f"{word}.x"], counts[f"unheard.{word}"]) == (2, 1)
            done = bus.replay(f"{word}-0.one", since=datetime(2026, 1, 1, tzinfo=UTC), from_agent=word)
            assert done.events == 2


def test_a_replay_restores_the_payload(ledger_broker: Broker) -> None:
    """This includes types that JSON does not have. An erased payload is not replayed."""
    with closing(ledger_broker.app()) as app:
        name = agent()
        app.subscriptions.declare([subscription(name)])
        payload = {"at": datetime(2026, 1, 2, tzinfo=UTC), "total": Decimal("0.10")}
        EventBus(app).publish(f"{name}.x", payload, from_agent=name)
        [record] = [each for each in EventLog(app.ledger).events() if each.receipt.from_agent == name]
        assert record.payload == payload
        replay = partial(
            EventBus(app).replay, f"{name}.one", since=datetime(2026, 1, 1, tzinfo=UTC), from_agent="x"
        )
        assert replay(dry_run=True, where={"total": {"lt": 0.2}}).events == 1
        erase(app, agent=name)
        assert replay(dry_run=True).events == 0


def test_a_replay_needs_a_ledger(valkey_broker: Broker) -> None:
    """Without a ledger no events are recorded; the error names the setting."""
    with closing(valkey_broker.app()) as app:
        name = agent()
        app.subscriptions.declare([subscription(name)])
        with pytest.raises(ConfigurationError, match="WAOOAW_DATABASE_URL"):
            EventBus(app).replay(f"{name}.one", since=datetime.now(UTC))


def test_a_publish_fails_without_its_servers(valkey_broker: Broker) -> None:
    """Without the store the subscriptions are not known; without the broker the receipts stay PENDING."""
    with (
        closing(valkey_broker.app(waooaw_redis_url="redis://127.0.0.1:1/0")) as app,
        pytest.raises(StoreUnavailable),
    ):
        EventBus(app).publish("a.b", {}, from_agent="boss")
    settings = {"broker_url": "redis://127.0.0.1:1/0", "waooaw_redis_url": valkey_broker.url}
    with closing(valkey_broker.app(**settings)) as app:
        name = agent()
        app.subscriptions.declare([subscription(name)])
        with pytest.raises(BrokerUnavailable, match="not confirmed by the broker") as failed:
            EventBus(app).publish(f"{name}.x", {}, from_agent="boss")
        assert failed.value.message_ids == ()
