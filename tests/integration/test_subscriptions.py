"""Subscriptions, schemas and capabilities, with each of their keepers; and what a publish costs."""

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
from waooaw_celery.ledger.event_log import EventLog
from waooaw_celery.ledger.retention import Retention
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
from waooaw_celery.store.subscriptions import Subscription


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, valkey_broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with each of the keepers of what is known: one contract, three times."""
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


def test_what_is_declared_is_read_again(kept: AgentApp) -> None:
    """Patterns, filter, where it catches up from, and when it was first declared."""
    name, began = agent(), datetime.now(UTC)
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    where = Filter.of({"order.total": {"gte": 100}, "state": ["a", None, True]})
    patterns = (f"{name}.*", "job.#")
    kept.subscriptions.declare([subscription(name, patterns=patterns, where=where, catch_up_from=since)])
    found = kept.subscriptions.read().get(f"{name}.one")
    assert (found.patterns, found.where, found.catch_up_from, found.removed_at) == (patterns, where, since, None)
    assert found.subscribed_at is not None
    assert began <= found.subscribed_at <= datetime.now(UTC)


def test_a_start_renews_and_a_heartbeat_only_adds(kept: AgentApp) -> None:
    """Workers with older code do not take turns with newer ones; when it was subscribed never changes."""
    name = agent()
    kept.subscriptions.declare([subscription(name)])
    first = kept.subscriptions.read().get(f"{name}.one")
    newer = subscription(name, patterns=("x.#",), catch_up_from=datetime.now(UTC))
    kept.subscriptions.declare([newer, subscription(name, name="two")], renew=False)
    assert kept.subscriptions.read().get(f"{name}.one") == first
    assert kept.subscriptions.read().get(f"{name}.two").patterns == (f"{name}.*",)
    kept.subscriptions.declare([newer])
    renewed = kept.subscriptions.read().get(f"{name}.one")
    assert (renewed.patterns, renewed.subscribed_at) == (("x.#",), first.subscribed_at)
    assert renewed.catch_up_from is None  # it is not new


def test_a_removal_outlives_every_declaration(kept: AgentApp) -> None:
    """It is listed as removed, gets nothing, and stands again only by command."""
    name = agent()
    kept.subscriptions.declare([subscription(name)])
    removed = kept.subscriptions.remove(f"{name}.one")
    assert removed.removed_at is not None
    for renew in (True, False):
        kept.subscriptions.declare([subscription(name)], renew=renew)
    assert kept.subscriptions.known().get(f"{name}.one").removed_at == removed.removed_at
    assert kept.subscriptions.known().subscribers(f"{name}.x", None) == []
    assert kept.subscriptions.restore(f"{name}.one").removed_at is None
    assert [each.agent for each in kept.subscriptions.known().subscribers(f"{name}.x", None)] == [name]
    with pytest.raises(UnknownSubscription, match=f"{name}.one"):
        kept.subscriptions.remove(f"{name}.nothing")


def test_catching_up_is_done_once(kept: AgentApp) -> None:
    """When it is done, a later start does not do it again."""
    name = agent()
    wanted = subscription(name, catch_up_from=datetime.now(UTC) - timedelta(days=1))
    kept.subscriptions.declare([wanted])
    kept.subscriptions.caught_up(wanted)
    kept.subscriptions.declare([wanted])
    assert kept.subscriptions.read().get(f"{name}.one").catch_up_from is None


def test_schemas_keep_their_order_whoever_starts_again(kept: AgentApp) -> None:
    """The newest version stays the newest when a worker that knows only the older one starts again."""
    topic = f"{agent()}.x"
    one = TopicSchema(topic=topic, version="1", schema={"required": ["a"]})
    two = TopicSchema(
        topic=topic, version="2", schema={"required": ["b"], "x": [None, 1.5]}, check=SchemaCheck.RECEIPT
    )
    kept.subscriptions.declare([], [one, two])
    kept.subscriptions.declare([], [one])
    assert [each for each in kept.subscriptions.read().schemas if each.topic == topic] == [one, two]


def test_capabilities_are_declared_with_the_agent(kept: AgentApp) -> None:
    """And change with its code."""
    name = agent()
    kept.registry.declare(name, ["command"], "w@h", 60, ["ocr", "lang:en"])
    assert kept.registry.get(name).capabilities == ("lang:en", "ocr")
    kept.registry.declare(name, ["command"], "w@h", 60)
    assert kept.registry.get(name).capabilities == ()


def test_an_event_reaches_the_queue_of_each_subscriber(kept: AgentApp) -> None:
    """With each keeper the receipts tell that the broker has them."""
    name = agent()
    kept.subscriptions.declare([subscription(name), subscription(name, name="two", where=Filter.of({"n": 2}))])
    kept.subscriptions.read()
    published = EventBus(kept).publish(f"{name}.x", {"n": 2}, from_agent="boss")
    assert set(published.receipts) == {f"{name}.one", f"{name}.two"}
    for receipt in published.receipts.values():
        found = kept.receipts.get(receipt.message_id)
        assert (found.status, found.to_agent, found.message_type) == (MessageStatus.SENT, name, "event")
    assert set(EventBus(kept).publish(f"{name}.x", {"n": 3}, from_agent="boss").receipts) == {f"{name}.one"}


def _counting(way: Callable[..., Any], statements: list[int]) -> Callable[..., Any]:
    """Note how many messages each statement writes."""

    def counted(entries: Any) -> Any:
        statements.append(sum(entry.kind == "message" for entry in entries))
        return way(entries)

    return counted


def test_a_hundred_subscribers_cost_one_trip_to_the_broker_and_one_statement(
    ledger_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All messages go to the broker together, and one statement writes them and their event down."""
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


def test_an_event_counts_once_against_its_publishers_limit(kept: AgentApp) -> None:
    """However many want it, also none; one too many is refused, and reaches and records nothing."""
    word = agent()
    app = create_app("limited", **{**dict(kept.conf.changes), "waooaw_rate_limit": "3/hour"})
    with closing(app):
        assert app.settings.database_url == kept.settings.database_url
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


def test_what_was_said_is_what_is_replayed(ledger_broker: Broker) -> None:
    """Also what JSON lacks; and what was erased is told no more."""
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
        Retention(app.database).erase(agent=name)
        assert replay(dry_run=True).events == 0


def test_a_replay_needs_a_ledger(valkey_broker: Broker) -> None:
    """Without one nothing is kept that could be told again; the sentence says what to set."""
    with closing(valkey_broker.app()) as app:
        name = agent()
        app.subscriptions.declare([subscription(name)])
        with pytest.raises(ConfigurationError, match="WAOOAW_DATABASE_URL"):
            EventBus(app).replay(f"{name}.one", since=datetime.now(UTC))


def test_servers_that_are_away_are_an_error_and_nothing_is_published(valkey_broker: Broker) -> None:
    """Without its store a publisher cannot know who subscribed; without its broker the receipts stay PENDING."""
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
