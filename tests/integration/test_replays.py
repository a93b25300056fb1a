"""Replays that nobody waits for: a worker carries them out, and they are listed, followed and cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update
from support import Broker, lone_database, until

from waooaw_celery import AgentApp, EventBus, MessageAuditTrail
from waooaw_celery.agents import ReplayState, UnknownReplay
from waooaw_celery.app.events import replay_runner
from waooaw_celery.app.events.replay_runner import run_replays
from waooaw_celery.errors import BrokerUnavailable, ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade
from waooaw_celery.ledger.database.models import ReplayRow
from waooaw_celery.ledger.events.replays import LedgerReplays
from waooaw_celery.store.subscriptions import Subscription


class Log:
    """Events in a ledger, and a subscription that nobody handles: its messages stay in the queue."""

    def __init__(self, app: AgentApp) -> None:
        self.app, self.bus = app, EventBus(app)
        self.name = f"a{uuid4().hex[:10]}"
        self.began = datetime.now(UTC) - timedelta(seconds=5)
        self.subscriber = f"{self.name}.one"
        self.events = [self.bus.publish(f"{self.name}.happened", {"n": n}).event_id for n in range(30)]
        app.subscriptions.declare([Subscription(agent=self.name, name="one", patterns=(f"{self.name}.*",))])
        app.subscriptions.read()

    def start(self, **fields: Any) -> Any:
        return self.bus.replay(self.subscriber, **({"since": self.began} | fields), wait=False)

    def sent(self) -> list[Any]:
        """Return the payloads of the messages, the oldest first."""
        records = MessageAuditTrail(self.app.ledger).query(to_agent=self.name, limit=1000).records
        return [record.payload["n"] for record in sorted(records, key=lambda each: each.receipt.sent_at)]

    def run_to_end(self, replay_id: str, seconds: float = 2.0) -> Any:
        until(lambda: self.run(seconds) is None, "the end of the replays")
        return self.bus.replay_progress(replay_id)

    def run(self, seconds: float = 2.0) -> float | None:
        return run_replays(self.app, seconds)


@pytest.fixture(params=["sqlite", "postgresql", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """Each kind of ledger on Redis, and RabbitMQ. The ledger is the test's own: a runner takes all its replays."""
    kind = request.param
    broker: Broker = request.getfixturevalue("rabbitmq_broker" if kind == "rabbitmq" else "valkey_broker")
    if kind == "postgresql":
        with lone_database(request.getfixturevalue("postgres_url")) as url, logged(broker, url) as log:
            yield log
    else:
        with logged(broker, f"sqlite:///{tmp_path / 'ledger.sqlite'}") as log:
            yield log


@contextmanager
def logged(broker: Broker, url: str) -> Iterator[Log]:
    with closing(broker.app(waooaw_database_url=url)) as app:
        upgrade.upgrade(app.database)
        log = Log(app)
        broker.names.add(log.name)
        yield log


def test_a_replay_is_carried_out_and_followed(log: Log) -> None:
    """It is recorded and waits; then it is running, with its progress; then it has finished."""
    replay = log.start()
    assert (replay.state, replay.events, replay.started_at, replay.ended) == (ReplayState.WAITING, 0, None, False)
    assert log.sent() == []
    done = log.run_to_end(replay.replay_id)
    assert (done.state, done.events, done.ended, done.error) == (ReplayState.FINISHED, 30, True, None)
    assert done.started_at <= done.ended_at
    assert done.last_at is not None
    assert log.sent() == list(range(30))
    assert [each.replay_id for each in log.bus.replays()] == [replay.replay_id]
    assert log.run() is None
    assert len(log.sent()) == 30


def test_ids_and_a_limit_select_events(log: Log) -> None:
    """Ids of events and of messages to subscribers, in any order; the oldest ones, up to the limit."""
    delivered = log.bus.publish(f"{log.name}.happened", {"n": 99}).receipts[log.subscriber].message_id
    ids = [delivered, log.events[7], log.events[3], log.events[5]]
    for wait in (True, False):
        before = len(log.sent())
        done = log.bus.replay(log.subscriber, message_ids=ids, limit=3, wait=wait)  # type: ignore[call-overload]
        if not wait:
            log.run_to_end(done.replay_id)
        assert log.sent()[before:] == [3, 5, 7]
    assert log.bus.replay(log.subscriber, message_ids=[delivered], dry_run=True).events == 1
    assert log.bus.replay(log.subscriber, message_ids=ids, since=datetime.now(UTC), dry_run=True).events == 0


def test_mistakes_are_told_at_once(log: Log) -> None:
    """Before anything is recorded; an unknown id is named."""
    for fields, error, text in (
        ({"message_ids": [log.events[0], "no-such-id"]}, UnknownMessage, "no event 'no-such-id'"),
        ({"message_ids": []}, InvalidMessage, "a list of 1 to 1000 ids"),
        ({"message_ids": log.events[0]}, InvalidMessage, "a list of 1 to 1000 ids"),
        ({"limit": 0}, InvalidMessage, "limit must be"),
        ({"since": datetime(2026, 1, 1)}, InvalidMessage, "aware"),
        ({"since": None}, InvalidMessage, "neither since nor conversation nor message_ids"),
        ({"conversation": "nothing"}, UnknownMessage, "no message, thread or conversation"),
        ({"dry_run": True}, InvalidMessage, "dry_run"),
    ):
        with pytest.raises(error, match=text):
            log.start(**fields)
    for operation in (log.bus.replay_progress, log.bus.cancel_replay):
        with pytest.raises(UnknownReplay, match="no replay 'nothing'"):
            operation("nothing")
    assert log.bus.replays() == []


def test_a_cancelled_replay_sends_no_more(log: Log) -> None:
    """Also one that waits for the time of its next event, and one that no worker has begun."""
    waiting = log.start()
    assert log.bus.cancel_replay(waiting.replay_id).state is ReplayState.CANCELLED
    slow = log.start(per_second=0.5)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(log.run, 25.0)
        until(lambda: log.bus.replay_progress(slow.replay_id).events == 1, "the first event")
        cancelled = log.bus.cancel_replay(slow.replay_id)
        assert (cancelled.state, cancelled.ended) == (ReplayState.CANCELLED, True)
        assert running.result(timeout=20) is None
    assert len(log.sent()) <= 2
    assert log.bus.replay_progress(slow.replay_id).events == 1
    assert log.bus.cancel_replay(slow.replay_id) == cancelled


def test_a_replay_goes_on_where_a_killed_worker_left_it(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is sent once, also those that were sent without a record of it."""
    monkeypatch.setattr(replay_runner, "BATCH_SIZE", 10)
    replay = log.start()
    advance, calls = LedgerReplays.advance, []

    def killed(self: LedgerReplays, *arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return advance(self, *arguments)

    monkeypatch.setattr(LedgerReplays, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        log.run()
    assert log.sent() == list(range(20))
    assert log.bus.replay_progress(replay.replay_id).events == 10
    wait = log.run()
    assert wait is not None
    assert 30 < wait <= 60  # another worker may still be alive
    with log.app.database.begin("let the claim expire") as connection:
        connection.execute(update(ReplayRow).values(claimed_until=datetime.now(UTC) - timedelta(seconds=1)))
    done = log.run_to_end(replay.replay_id)
    assert (done.state, done.events) == (ReplayState.FINISHED, 30)
    assert log.sent() == list(range(30))


def test_a_worker_that_finds_nothing_for_long_keeps_its_replay(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It extends its claim while it reads, and a cancellation ends it meanwhile."""
    monkeypatch.setattr(replay_runner, "_LOOK_SECONDS", 0.0)
    advance, calls = LedgerReplays.advance, []

    def counted(self: LedgerReplays, *arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) == 5:
            log.bus.cancel_replay(replay.replay_id)
        return advance(self, *arguments)

    monkeypatch.setattr(LedgerReplays, "advance", counted)
    replay = log.start(where={"n": {"gt": 1000}})
    assert log.run() is None
    assert len(calls) == 5
    assert log.bus.replay_progress(replay.replay_id).state is ReplayState.CANCELLED


def test_two_workers_share_replays_and_take_turns(log: Log) -> None:
    """Each replay is carried out by one of them at a time, and a long one leaves turns to the others."""
    replays = [log.start(per_second=30) for _ in range(4)]
    with ThreadPoolExecutor(2) as pool:
        until(lambda: [*pool.map(lambda _: log.run(0.3), range(2))] == [None, None], "the end of the replays")
    states = [log.bus.replay_progress(each.replay_id) for each in replays]
    assert {each.state for each in states} == {ReplayState.FINISHED}
    assert [each.events for each in states] == [30] * 4
    assert sorted(log.sent()) == sorted(list(range(30)) * 4)


def test_a_pace_holds_over_several_turns(log: Log) -> None:
    """A turn is shorter than the pause between two events."""
    replay = log.start(per_second=2, limit=4)
    began = time.monotonic()
    done = log.run_to_end(replay.replay_id, 0.2)
    assert done.events == 4
    assert time.monotonic() - began >= 3 / 2


def test_an_outage_of_the_broker_only_delays_a_replay(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what keeps it from going on, and goes on by itself."""
    monkeypatch.setattr(replay_runner, "RETRY_SECONDS", 0.5)
    replay = log.start()
    with monkeypatch.context() as patch:

        def away(*_: Any, **__: Any) -> None:
            raise BrokerUnavailable("the broker is away")

        patch.setattr(log.app.publisher, "publish", away)
        log.run(0.1)
    found = log.bus.replay_progress(replay.replay_id)
    assert (found.state, found.error, found.events) == (ReplayState.RUNNING, "the broker is away", 0)
    done = log.run_to_end(replay.replay_id)
    assert (done.state, done.events, done.error) == (ReplayState.FINISHED, 30, None)


def test_a_replay_to_a_removed_subscription_fails(log: Log) -> None:
    """Its error says why; other replays go on."""
    replay, other = log.start(), log.start(where={"n": {"lt": 2}})
    log.bus.unsubscribe(log.subscriber)
    failed = log.run_to_end(replay.replay_id)
    assert failed.state is ReplayState.FAILED
    assert "was removed: resubscribe first" in str(failed.error)
    assert log.bus.replay_progress(other.replay_id).ended


def test_replays_need_a_ledger(valkey_broker: Broker) -> None:
    """Without a ledger no event is recorded."""
    with closing(valkey_broker.app()) as app:
        bus = EventBus(app)
        operations: list[Callable[[], Any]] = [
            bus.replays,
            lambda: bus.replay_progress("x"),
            lambda: bus.cancel_replay("x"),
            lambda: bus.replay("a.b", message_ids=["x"], wait=False),
        ]
        for operation in operations:
            with pytest.raises(ConfigurationError, match="there is no ledger"):
                operation()
