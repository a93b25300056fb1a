"""Events reach whoever subscribed, in real workers, on Redis or Valkey and on RabbitMQ."""

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
)
from waooaw_celery.agents import aio
from waooaw_celery.agents.bus import Everyone
from waooaw_celery.embedded import end_all
from waooaw_celery.errors import InvalidMessage, SchemaViolation, UnknownAgent, UnknownSubscription
from waooaw_celery.ledger.event_log import EventLog
from waooaw_celery.store.subscriptions import CACHE_SECONDS


class Probes:
    """Agents of ``event_probe``, whose topics begin with a word that no other test uses."""

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
def kept(ledger_broker: Broker) -> Iterator[Probes]:
    """Probes on the broker with a ledger."""
    with closing(ledger_broker.app()) as app:
        probes = Probes(ledger_broker, app)
        yield probes
        end_all(probes.processes.values())


def test_a_subscriber_that_was_down_gets_every_event_once_in_order(probes: Probes) -> None:
    """Subscribed, stopped, away for the whole publishing, started: it handles each event once, as published."""
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


def test_each_subscriber_has_its_own_message_filter_retry_and_end(probes: Probes) -> None:
    """One that always fails and one that tries again do not touch each other; filters choose beforehand."""
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
    """A publisher that has just looked finds a new subscription as soon as its bound is over."""
    assert probes.publish("happened").receipts == {}
    name = probes.broker.name()
    env = {"PROBE_TOPICS": probes.topics}
    probes.processes[name] = probes.broker.start(name, probes.app, module="event_probe", env=env)
    declared = time.monotonic()
    began = time.monotonic()
    while not probes.publish("happened").receipts:
        # By the moment at which a publish begins: how long it takes is the computer's business.
        assert began - declared <= CACHE_SECONDS
        time.sleep(0.05)
        began = time.monotonic()


def test_what_a_handler_publishes_is_threaded_to_its_event(probes: Probes) -> None:
    """An event that a handler publishes has the agent as its source and belongs to the same conversation."""
    name = probes.start()
    listener = probes.start(PROBE_TAG="listener")
    first = probes.publish("chain", "begin")
    assert f"{listener}.one" in first.receipts
    until(lambda: probes.seen(listener, "one"), "the first event")
    [told] = probes.seen(listener, "one")
    assert (told["conversation_id"], told["causation_id"]) == (first.event_id, first.event_id)
    assert (told["event_id"], told["source"], told["from"]) == (first.event_id, "tests", "tests")
    assert settled(probes.app, first.receipts[f"{name}.chained"].message_id) is MessageStatus.HANDLED


def test_a_removed_subscription_handles_what_was_sent_and_gets_no_more(probes: Probes) -> None:
    """What is in its queue is still handled; a restart of its agent does not bring it back, a command does."""
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


def test_a_subscription_whose_code_is_gone_fails_its_events_and_is_told_of(probes: Probes) -> None:
    """Messages for a handler that the new code has not are dead letters; the log says what to do."""
    name = probes.start()
    probes.stop(name)
    published = probes.publish("large", {"size": 100})
    probes.start(name, PROBE_LEAVE_OUT="one")
    assert settled(probes.app, published.receipts[f"{name}.one"].message_id) is MessageStatus.DEAD
    assert settled(probes.app, published.receipts[f"{name}.large"].message_id) is MessageStatus.HANDLED
    assert f"waooaw events unsubscribe {name}.one" in (probes.broker.folder / f"{name}.log").read_text()


def test_an_event_may_have_a_time_to_live_and_a_retention(kept: Probes) -> None:
    """What its subscriber could not begin in time is EXPIRED; the ledger keeps it as long as it says."""
    name = kept.start()
    kept.stop(name)
    short = kept.publish("happened", "short", ttl_seconds=0.1, retention=RetentionPolicy.DAYS_365)
    long = kept.publish("happened", "long", ttl_seconds=3600)
    until(
        lambda: MessageBus(kept.app).receipt(short.event_id).sent_at < datetime.now(UTC) - timedelta(seconds=0.2)
    )
    kept.start(name)
    assert settled(kept.app, long.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert settled(kept.app, short.receipts[f"{name}.one"].message_id) is MessageStatus.EXPIRED
    assert kept.payloads(name, "one") == ["long"]
    trail = MessageAuditTrail(kept.app.ledger)
    for id_ in (short.event_id, short.receipts[f"{name}.one"].message_id):
        record = trail.receipt(id_)
        assert record.retain_until - record.receipt.sent_at == timedelta(days=365)


def test_a_schema_is_checked_by_every_publisher_or_at_receipt(probes: Probes) -> None:
    """A schema that an agent's code registers binds other programs; the newest version unless one is named."""
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


def test_an_event_published_twice_under_one_id_is_told_once(probes: Probes) -> None:
    """After a failure the same event can be published again: only who was not told is told."""
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
    """The bus's verbs can be awaited, and several events be published at once."""
    name = probes.start()

    async def publish() -> list[Any]:
        bus = aio.EventBus(probes.app)
        return await asyncio.gather(*(bus.publish(topic=f"{probes.topics}.x", event=n) for n in range(20)))

    published = asyncio.run(publish())
    for each in published:
        assert settled(probes.app, each.receipts[f"{name}.one"].message_id) is MessageStatus.HANDLED
    assert sorted(probes.payloads(name, "one")) == list(range(20))


def test_a_broadcast_reaches_all_who_fit_also_the_absent(probes: Probes) -> None:
    """Everyone with a tag, or everyone who handles such messages, living or away; never the sender."""
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


def test_a_time_range_is_replayed_to_one_subscriber_at_a_pace(kept: Probes) -> None:
    """Filtered, in order, marked, with the same event ids; nobody else is told."""
    name, other = kept.start(), kept.start(PROBE_TAG="second")
    began = datetime.now(UTC)
    published = [kept.publish("happened" if n % 2 else "large", {"n": n, "size": n}) for n in range(10)]
    end = datetime.now(UTC)
    kept.publish("happened", {"n": 99})
    last = kept.publish("happened", {"n": 100})
    for receipt in last.receipts.values():
        settled(kept.app, receipt.message_id)
    before = len(kept.seen(other))
    wanted: dict[str, Any] = {"since": began, "until": end, "topic": "*.happened", "where": {"n": {"gt": 2}}}
    plan = kept.bus.replay(f"{name}.one", dry_run=True, **wanted)
    assert (plan.events, plan.message_ids) == (4, ())
    started = time.monotonic()
    done = kept.bus.replay(f"{name}.one", per_second=20, **wanted)
    assert time.monotonic() - started >= 3 / 20
    assert done.events == len(done.message_ids) == 4
    for message_id in done.message_ids:
        assert settled(kept.app, message_id) is MessageStatus.HANDLED
    replayed = [each for each in kept.seen(name, "one") if each["replay"]]
    assert [each["payload"]["n"] for each in replayed] == [3, 5, 7, 9]
    assert [each["event_id"] for each in replayed] == [published[n].event_id for n in (3, 5, 7, 9)]
    assert {each["priority"] for each in replayed} == {"LOW"}
    assert len(kept.seen(other)) == before
    with pytest.raises(InvalidMessage, match="needs since or conversation"):
        kept.bus.replay(f"{name}.one")


def test_a_conversation_is_replayed(kept: Probes) -> None:
    """All events of the conversation that any of its ids belongs to, and no other."""
    name = kept.start()
    first = kept.publish("chain", {"n": 1}, correlation_id=f"thread-{uuid4().hex}")
    kept.publish("happened", {"n": 2})
    chained = first.receipts[f"{name}.chained"].message_id
    settled(kept.app, chained)
    for id_ in (first.event_id, chained, first.receipts[f"{name}.one"].correlation_id):
        done = kept.bus.replay(f"{name}.one", conversation=id_)
        assert done.events == 1  # what chained published has three words
        assert settled(kept.app, done.message_ids[0]) is MessageStatus.HANDLED


def test_a_new_subscriber_catches_up_and_misses_and_doubles_nothing(kept: Probes) -> None:
    """What was published before it, while it starts and afterwards: each once, the older ones marked as replay."""
    beginning = datetime.now(UTC) - timedelta(seconds=1)
    for number in range(150):
        kept.publish("old.news", number)
    name = kept.broker.name()
    env = {"PROBE_TOPICS": kept.topics, "PROBE_SINCE": "3600"}
    kept.processes[name] = kept.broker.start(name, kept.app, module="event_probe", env=env)
    total = 150
    deadline = time.monotonic() + CACHE_SECONDS + 1.5
    while time.monotonic() < deadline:  # some of these by a publisher that does not know of it yet
        kept.publish("old.news", total)
        total += 1
        time.sleep(0.02)
    until(lambda: len(kept.seen(name, "late")) >= total, "all of them")
    record = kept.app.subscriptions
    until(lambda: record.read().get(f"{name}.late").catch_up_from is None, "the end of catching up")
    found = kept.seen(name, "late")
    assert sorted(each["payload"] for each in found) == list(range(total))
    old = [each["payload"] for each in found if each["replay"]]
    assert old[:150] == list(range(150))
    kept.stop(name)
    kept.start(name, PROBE_SINCE="3600")
    assert kept.seen(name, "late") == []
    assert beginning < next(iter(EventLog(kept.app.ledger).events(beginning))).receipt.sent_at


def test_the_ledger_counts_by_topic_and_subscriber(kept: Probes) -> None:
    """Published, delivered, handled, failed, waiting and how long, for each subscriber of each topic."""
    name = kept.start()
    for _ in range(3):
        for receipt in kept.publish("retry.x").receipts.values():
            settled(kept.app, receipt.message_id)
    last = kept.publish("happened", 1)
    settled(kept.app, last.receipts[f"{name}.one"].message_id)
    kept.stop(name)
    kept.publish("happened", 2)
    topics = {each.topic: each for each in EventLog(kept.app.ledger).statistics()}
    happened = topics[f"{kept.topics}.happened"]
    [one] = happened.subscribers
    assert (happened.published, one.subscriber) == (2, f"{name}.one")
    assert (one.messages, one.delivered, one.handled, one.failed, one.waiting) == (2, 1, 1, 0, 1)
    assert one.lag_seconds is not None
    assert 0 <= one.lag_seconds < 60
    failing, retried = topics[f"{kept.topics}.retry.x"].subscribers
    assert [failing.subscriber, retried.subscriber] == [f"{name}.failing", f"{name}.retried"]
    assert (failing.messages, failing.delivered, failing.handled, failing.failed) == (3, 3, 0, 3)
    assert (retried.messages, retried.delivered, retried.handled, retried.failed) == (3, 3, 3, 0)
    assert (failing.waiting, retried.waiting, retried.lag_seconds) == (0, 0, None)


def test_an_event_is_on_record_also_when_nobody_wants_it(kept: Probes) -> None:
    """The ledger has it once, by its topic, as PUBLISHED; it counts for its sender and for no receiver."""
    published = kept.publish("unheard", {"n": 1}, subject="it", source="https://elsewhere.example/1")
    trail = MessageAuditTrail(kept.app.ledger)
    [record] = trail.query(topic=f"{kept.topics}.unheard").records
    assert record.receipt.message_id == published.event_id
    assert (record.receipt.status, record.receipt.to_agent) == (MessageStatus.PUBLISHED, "")
    assert record.event is not None
    assert (record.event.subject, record.event.source) == ("it", "https://elsewhere.example/1")
    assert record.payload == {"n": 1}
    assert [each.receipt.message_id for each in trail.conversation(published.event_id)] == [published.event_id]
    figures = trail.statistics()
    assert "" not in dict(figures.top_receivers)
    assert figures.by_status["published"] >= 1
    assert figures.total == sum(figures.by_status.values())
