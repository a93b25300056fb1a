"""Events reach their subscribers in real workers, on Redis or Valkey and on RabbitMQ."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, settled, until

from waooaw_celery import (
    AgentApp,
    EventBus,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    MessageType,
    Priority,
    RequestResponseHandler,
    RetentionPolicy,
    aio,
)
from waooaw_celery.agents.bus import Everyone
from waooaw_celery.errors import InvalidMessage, SchemaViolation, UnknownAgent, UnknownSubscription
from waooaw_celery.ledger.events.event_log import EventLog
from waooaw_celery.store.subscriptions import CACHE_SECONDS
from waooaw_celery.testing.embedded import end_all


class Probes:
    """Agents of ``event_probe``, whose topics begin with a unique word."""

    def __init__(self, broker: Broker, app: AgentApp) -> None:
        self.broker, self.app = broker, app
        self.topics = f"t{uuid4().hex[:8]}"
        self.bus = EventBus(app)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str | None = None, **env: str) -> str:
        """Start one, and wait until this process must know of its subscriptions."""
        name = name or self.broker.name()
        env = {"PROBE_TOPICS": self.topics, **env}
        self.processes[name] = self.broker.start(name, self.app, module="event_probe", env=env)
        self.app.subscriptions.read()
        return name

    def stop(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGTERM)
        assert self.processes.pop(name).wait(30) == 0

    def publish(self, topic: str, event: Any = None, **fields: Any) -> Any:
        return self.bus.publish(f"{self.topics}.{topic}", event, **fields)

    def seen(self, name: str, *handlers: str) -> list[dict[str, Any]]:
        found = RequestResponseHandler(self.app).request(name, "seen", timeout=20)
        return [each for each in found if not handlers or each["handler"] in handlers]

    def payloads(self, name: str, *handlers: str) -> list[Any]:
        return [each["payload"] for each in self.seen(name, *handlers)]


@pytest.fixture
def probes(broker: Broker, app: AgentApp) -> Iterator[Probes]:
    probes = Probes(broker, app)
    yield probes
    end_all(probes.processes.values())


@pytest.fixture
def with_ledger(ledger_broker: Broker) -> Iterator[Probes]:
    """Probes on the broker with a ledger."""
    with closing(ledger_broker.app()) as app:
        probes = Probes(ledger_broker, app)
        yield probes
        end_all(probes.processes.values())


def test_a_stopped_subscriber_gets_every_event_once_and_in_order(probes: Probes) -> None:
    """The events are published while its worker is stopped, and handled after it starts."""
    name = probes.start()
    probes.stop(name)
    published = [probes.publish("happened", {"n": number}) for number in range(60)]
    assert {tuple(each.receipts) for each in published} == {(f"{name}.one",)}
    probes.start(name)
    until(lambda: len(probes.seen(name, "one")) >= 60, "the events")
    assert [each["n"] for each in probes.payloads(name, "one")] == list(range(60))
    receipts = [MessageBus(probes.app).receipt(each.receipts[f"{name}.one"].message_id) for each in published]
    until(lambda: settled(probes.app, receipts[-1].message_id), "the last receipt")
    assert {settled(probes.app, each.message_id) for each in receipts} == {MessageStatus.HANDLED}


def test_subscribers_are_independent(probes: Probes) -> None:
    """Each has its own message, filter, retries and final status."""
    name = probes.start()
    other = probes.start(PROBE_TAG="second")
    large = probes.publish("large", {"size": 250})
    probes.publish("large", {"size": 5})
    assert set(large.receipts) == {
        f"{agent}.{own}" for agent in (name, other) for own in ("one", "large", "small")
    }
    retry = probes.publish("retry.this.one", {"x": 1}, priority=Priority.HIGH)
    assert set(retry.receipts) == {f"{agent}.{own}" for agent in (name, other) for own in ("retried", "failing")}
    ends = {subscriber: settled(probes.app, r.message_id) for subscriber, r in retry.receipts.items()}
    assert ends == {
        f"{agent}.{own}": end
        for agent in (name, other)
        for own, end in (("retried", MessageStatus.HANDLED), ("failing", MessageStatus.FAILED))
    }
    for agent in (name, other):
        until(lambda agent=agent: probes.payloads(agent, "small"), "the small one")
        assert probes.payloads(agent, "large") == [{"size": 250}]
        assert probes.payloads(agent, "small") == [{"size": 5}]
        assert len(probes.seen(agent, "retried")) == 2
        assert {each["priority"] for each in probes.seen(agent, "retried")} == {"HIGH"}


def test_a_new_subscriber_is_known_to_a_publisher_within_a_second(probes: Probes) -> None:
    """A publisher that has just read the subscriptions knows a new one when its cache expires."""
    assert probes.publish("happened").receipts == {}
    name = probes.broker.name()
    env = {"PROBE_TOPICS": probes.topics}
    probes.processes[name] = probes.broker.start(name, probes.app, module="event_probe", env=env)
    declared = time.monotonic()
    began = time.monotonic()
    while not probes.publish("happened").receipts:
        # Measured when the publish begins, because a slow computer may take longer for the publish itself.
        assert began - declared <= CACHE_SECONDS
        time.sleep(0.05)
        began = time.monotonic()


@pytest.mark.slow
def test_an_event_published_by_a_handler_is_linked_to_its_cause(probes: Probes) -> None:
    """It has the agent as source, and belongs to the same conversation."""
    name = probes.start()
    listener = probes.start(PROBE_TAG="listener")
    first = probes.publish("chain", "begin")
    assert f"{listener}.one" in first.receipts
    until(lambda: probes.seen(listener, "one"), "the first event")
    [received] = probes.seen(listener, "one")
    assert (received["conversation_id"], received["causation_id"]) == (first.event_id, first.event_id)
    assert (received["event_id"], received["source"], received["from"]) == (first.event_id, "tests", "tests")
    assert settled(probes.app, first.receipts[f"{name}.chained"].message_id) is MessageStatus.HANDLED


@pytest.mark.slow
def test_a_removed_subscription_gets_no_further_events(probes: Probes) -> None:
    """Messages in its queue are still handled. A restart of its agent does not restore it; resubscribe() does."""
    name = probes.start()
    probes.stop(name)
    before = probes.publish("happened", "before")
    probes.bus.unsubscribe(f"{name}.one")
    assert probes.publish("happened", "between").receipts == {}
    probes.start(name)
    assert settled(probes.app, before.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert probes.publish("happened", "still removed").receipts == {}
    assert "was removed by command" in (probes.broker.folder / f"{name}.log").read_text()
    probes.bus.resubscribe(f"{name}.one")
    after = probes.publish("happened", "after")
    assert settled(probes.app, after.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert probes.payloads(name, "one") == ["before", "after"]
    with pytest.raises(UnknownSubscription, match=f"{name}.one"):
        probes.bus.unsubscribe("nobody.there")


@pytest.mark.slow
def test_a_subscription_without_code_dead_letters_its_events(probes: Probes) -> None:
    """The log says how to remove it."""
    name = probes.start()
    probes.stop(name)
    published = probes.publish("large", {"size": 100})
    probes.start(name, PROBE_LEAVE_OUT="one")
    assert settled(probes.app, published.receipts[f"{name}.one"].message_id) is MessageStatus.DEAD
    assert settled(probes.app, published.receipts[f"{name}.large"].message_id) is MessageStatus.HANDLED
    assert f"waooaw events unsubscribe {name}.one" in (probes.broker.folder / f"{name}.log").read_text()


@pytest.mark.slow
def test_an_event_may_have_a_time_to_live_and_a_retention(with_ledger: Probes) -> None:
    """A message that its subscriber did not begin in time is EXPIRED, and has the retention of the event."""
    name = with_ledger.start()
    with_ledger.stop(name)
    short = with_ledger.publish("happened", "short", ttl_seconds=0.1, retention=RetentionPolicy.DAYS_365)
    long = with_ledger.publish("happened", "long", ttl_seconds=3600)
    until(
        lambda: (
            MessageBus(with_ledger.app).receipt(short.event_id).sent_at
            < datetime.now(UTC) - timedelta(seconds=0.2)
        )
    )
    with_ledger.start(name)
    assert settled(with_ledger.app, long.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert settled(with_ledger.app, short.receipts[f"{name}.one"].message_id) is MessageStatus.EXPIRED
    assert with_ledger.payloads(name, "one") == ["long"]
    trail = MessageAuditTrail(with_ledger.app.ledger)
    for id_ in (short.event_id, short.receipts[f"{name}.one"].message_id):
        record = trail.receipt(id_)
        assert record.retain_until - record.receipt.sent_at == timedelta(days=365)


def test_a_schema_is_checked_by_every_publisher_or_at_receipt(probes: Probes) -> None:
    """A schema that an agent registers binds other programs, by default in its newest version."""
    name = probes.start()
    with pytest.raises(SchemaViolation, match=r"version 2 at \$\.n: 'x' is not of type 'integer'") as broken:
        probes.publish("checked", {"n": "x"})
    assert (broken.value.path, broken.value.version) == ("$.n", "2")
    with pytest.raises(InvalidMessage, match=r"no schema in version '7' \(known: 1, 2\)"):
        probes.publish("checked", {"n": 1}, schema_version="7")
    old = probes.publish("checked", {"n": "x"}, schema_version="1")
    new = probes.publish("checked", {"n": 1})
    for published in (old, new):
        assert settled(probes.app, published.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert [each["schema_version"] for each in probes.seen(name, "one")] == ["1", "2"]
    wrong = probes.publish("late_checked", {"m": 1})
    assert settled(probes.app, wrong.receipts[f"{name}.one"].message_id) is MessageStatus.FAILED
    receipt = MessageBus(probes.app).receipt(wrong.receipts[f"{name}.one"].message_id)
    assert "SchemaViolation" in str(receipt.error)
    assert "'n' is a required property" in str(receipt.error)


def test_an_event_published_twice_with_one_id_is_delivered_once(probes: Probes) -> None:
    """After a failure, only the subscribers that did not get the event get it."""
    name = probes.start()
    event_id = str(uuid4())
    first = probes.publish("happened", 1, event_id=event_id)
    settled(probes.app, first.receipts[f"{name}.one"].message_id)
    again = probes.publish("happened", 1, event_id=event_id)
    assert again.receipts[f"{name}.one"].status is MessageStatus.HANDLED
    second = probes.start(PROBE_TAG="second")
    third = probes.publish("happened", 1, event_id=event_id)
    assert third.receipts[f"{second}.one"].status is MessageStatus.SENT
    settled(probes.app, third.receipts[f"{second}.one"].message_id)
    assert len(probes.seen(name, "one")) == len(probes.seen(second, "one")) == 1


def test_coroutines_publish(probes: Probes) -> None:
    """Several events can be published at once, with await."""
    name = probes.start()

    async def publish() -> list[Any]:
        bus = aio.EventBus(probes.app)
        return await asyncio.gather(*(bus.publish(topic=f"{probes.topics}.x", event=n) for n in range(20)))

    published = asyncio.run(publish())
    for each in published:
        assert settled(probes.app, each.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert sorted(probes.payloads(name, "one")) == list(range(20))


@pytest.mark.slow
def test_a_broadcast_reaches_all_matching_agents(probes: Probes) -> None:
    """They have the tag, or handle such messages, whether they run or not; the sender is not included."""
    tag = f"tag-{uuid4().hex[:8]}"
    first, second = probes.start(PROBE_TAG=tag), probes.start(PROBE_TAG=tag)
    probes.start(PROBE_TAG="other")
    probes.stop(second)
    bus = MessageBus(probes.app)
    receipts = bus.broadcast("tests", Everyone(capability=tag), {"hear": 1})
    assert set(receipts) == {first, second}
    assert set(bus.broadcast(first, Everyone(capability=tag), {"hear": 2})) == {second}
    everyone = bus.broadcast("tests", Everyone(), {"hear": 3}, ttl_seconds=60)
    assert {first, second} <= set(everyone)
    probes.start(second, PROBE_TAG=tag)
    until(lambda: len(probes.payloads(second, "command")) == 3, "the broadcasts")
    assert [each["hear"] for each in probes.payloads(second, "command")] == [1, 2, 3]
    with pytest.raises(UnknownAgent, match="has the capability 'nobody-has-it'"):
        bus.broadcast("tests", Everyone(capability="nobody-has-it"), {})
    with pytest.raises(InvalidMessage, match="publish an EVENT with"):
        bus.broadcast("tests", Everyone(), {}, message_type=MessageType.EVENT)


def test_a_time_range_is_replayed_to_one_subscriber_at_a_pace(with_ledger: Probes) -> None:
    """The replay is filtered, in order, marked, and has the same event ids; other subscribers get nothing."""
    name, other = with_ledger.start(), with_ledger.start(PROBE_TAG="second")
    began = datetime.now(UTC)
    published = [with_ledger.publish("happened" if n % 2 else "large", {"n": n, "size": n}) for n in range(10)]
    end = datetime.now(UTC)
    with_ledger.publish("happened", {"n": 99})
    last = with_ledger.publish("happened", {"n": 100})
    for receipt in last.receipts.values():
        settled(with_ledger.app, receipt.message_id)
    before = len(with_ledger.seen(other))
    wanted: dict[str, Any] = {"since": began, "until": end, "topic": "*.happened", "where": {"n": {"gt": 2}}}
    plan = with_ledger.bus.replay(f"{name}.one", dry_run=True, **wanted)
    assert (plan.events, plan.message_ids) == (4, ())
    started = time.monotonic()
    done = with_ledger.bus.replay(f"{name}.one", per_second=20, **wanted)
    assert time.monotonic() - started >= 3 / 20
    assert done.events == len(done.message_ids) == 4
    for message_id in done.message_ids:
        assert settled(with_ledger.app, message_id) is MessageStatus.HANDLED
    replayed = [each for each in with_ledger.seen(name, "one") if each["replay"]]
    assert [each["payload"]["n"] for each in replayed] == [3, 5, 7, 9]
    assert [each["event_id"] for each in replayed] == [published[n].event_id for n in (3, 5, 7, 9)]
    assert {each["priority"] for each in replayed} == {"LOW"}
    assert len(with_ledger.seen(other)) == before
    with pytest.raises(InvalidMessage, match="neither since nor conversation"):
        with_ledger.bus.replay(f"{name}.one")


def test_a_conversation_is_replayed(with_ledger: Probes) -> None:
    """The conversation is found by any of its ids, and only its events are replayed."""
    name = with_ledger.start()
    first = with_ledger.publish("chain", {"n": 1}, correlation_id=f"thread-{uuid4().hex}")
    with_ledger.publish("happened", {"n": 2})
    chained = first.receipts[f"{name}.chained"].message_id
    settled(with_ledger.app, chained)
    for id_ in (first.event_id, chained, first.receipts[f"{name}.one"].correlation_id):
        done = with_ledger.bus.replay(f"{name}.one", conversation=id_)
        assert done.events == 1  # what chained published has three words
        assert settled(with_ledger.app, done.message_ids[0]) is MessageStatus.HANDLED


def test_a_new_subscriber_gets_earlier_events_once(with_ledger: Probes) -> None:
    """Events from before, during and after its start arrive once each; the earlier ones are marked as replay."""
    beginning = datetime.now(UTC) - timedelta(seconds=1)
    for number in range(150):
        with_ledger.publish("old.news", number)
    name = with_ledger.broker.name()
    env = {"PROBE_TOPICS": with_ledger.topics, "PROBE_SINCE": "3600"}
    with_ledger.processes[name] = with_ledger.broker.start(name, with_ledger.app, module="event_probe", env=env)
    total = 150
    deadline = time.monotonic() + CACHE_SECONDS + 1.5
    while time.monotonic() < deadline:  # some of these by a publisher that does not know of it yet
        with_ledger.publish("old.news", total)
        total += 1
        time.sleep(0.02)
    until(lambda: len(with_ledger.seen(name, "late")) >= total, "all of them")
    record = with_ledger.app.subscriptions
    until(lambda: record.read().get(f"{name}.late").catch_up_from is None, "the end of catching up")
    found = with_ledger.seen(name, "late")
    assert sorted(each["payload"] for each in found) == list(range(total))
    old = [each["payload"] for each in found if each["replay"]]
    assert old[:150] == list(range(150))
    with_ledger.stop(name)
    with_ledger.start(name, PROBE_SINCE="3600")
    assert with_ledger.seen(name, "late") == []
    assert beginning < next(iter(EventLog(with_ledger.app.ledger).events(beginning))).receipt.sent_at


def test_the_ledger_counts_by_topic_and_subscriber(with_ledger: Probes) -> None:
    """It counts published, delivered, handled, failed and waiting messages, and the lag."""
    name = with_ledger.start()
    for _ in range(3):
        for receipt in with_ledger.publish("retry.x").receipts.values():
            settled(with_ledger.app, receipt.message_id)
    last = with_ledger.publish("happened", 1)
    settled(with_ledger.app, last.receipts[f"{name}.one"].message_id)
    with_ledger.stop(name)
    with_ledger.publish("happened", 2)
    topics = {each.topic: each for each in EventLog(with_ledger.app.ledger).statistics()}
    happened = topics[f"{with_ledger.topics}.happened"]
    [one] = happened.subscribers
    assert (happened.published, one.subscriber) == (2, f"{name}.one")
    assert (one.messages, one.delivered, one.handled, one.failed, one.waiting) == (2, 1, 1, 0, 1)
    assert one.lag_seconds is not None
    assert 0 <= one.lag_seconds < 60
    failing, retried = topics[f"{with_ledger.topics}.retry.x"].subscribers
    assert [failing.subscriber, retried.subscriber] == [f"{name}.failing", f"{name}.retried"]
    assert (failing.messages, failing.delivered, failing.handled, failing.failed) == (3, 3, 0, 3)
    assert (retried.messages, retried.delivered, retried.handled, retried.failed) == (3, 3, 3, 0)
    assert (failing.waiting, retried.waiting, retried.lag_seconds) == (0, 0, None)


def test_an_event_without_subscribers_is_recorded(with_ledger: Probes) -> None:
    """The ledger has it once, as PUBLISHED; it counts for its sender and for no recipient."""
    published = with_ledger.publish("unheard", {"n": 1}, subject="it", source="https://elsewhere.example/1")
    trail = MessageAuditTrail(with_ledger.app.ledger)
    [record] = trail.query(topic=f"{with_ledger.topics}.unheard").records
    assert record.receipt.message_id == published.event_id
    assert (record.receipt.status, record.receipt.to_agent) == (MessageStatus.PUBLISHED, "")
    assert record.event is not None
    assert (record.event.subject, record.event.source) == ("it", "https://elsewhere.example/1")
    assert record.payload == {"n": 1}
    assert [each.receipt.message_id for each in trail.conversation(published.event_id)] == [published.event_id]
    sent_at = record.receipt.sent_at
    figures = trail.statistics(since=sent_at, until=sent_at + timedelta(microseconds=1))
    assert (figures.total, figures.by_status, figures.top_receivers) == (1, {"published": 1}, [])
