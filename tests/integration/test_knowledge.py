"""What is known of agents and messages: the registry, the receipts, the sweep."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from support import Broker, note, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.embedded import valkey
from waooaw_celery.errors import BackendUnavailable, BrokerUnavailable, StoreUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.receipt import SWEEP_GRACE, MessageEvent
from waooaw_celery.store.connection import connect, store_url


@pytest.fixture
def broker(valkey_broker: Broker) -> Broker:
    """What is known is kept in Redis whatever the broker, so one broker is enough here."""
    return valkey_broker


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with each of the keepers of what is known: one contract, three times."""
    if request.param == "redis":
        url = None
    elif request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    else:
        url = request.getfixturevalue("postgres_url")
    app = broker.app(waooaw_database_url=url)
    if url is not None:
        schema.upgrade(app.database)
    yield app
    app.close()


def test_an_agent_declares_itself_when_its_worker_starts(app: AgentApp, probe: str) -> None:
    """It is known with its handlers and its worker, and counts as alive."""
    record = app.registry.get(probe)
    assert {"command", "ack", "echo", "seen"} <= set(record.handlers or ())
    assert record.workers == (f"{probe}@{record.workers[0].partition('@')[2]}",)
    assert record.alive(timedelta(seconds=30))
    assert record.declared_at is not None
    assert record.last_seen is not None
    assert record.declared_at <= record.last_seen <= datetime.now(UTC)


def test_a_stopped_agent_stays_known_without_a_worker(broker: Broker, app: AgentApp) -> None:
    """After SIGTERM the worker is not listed; the agent and its handlers stay."""
    name = broker.name()
    process = broker.start(name, app)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    record = app.registry.get(name)
    assert record.workers == ()
    assert record.handlers is not None


def test_heartbeats_continue(broker: Broker, app: AgentApp, start: Callable[..., str]) -> None:
    """A running agent's last heartbeat becomes newer."""
    name = start()
    first = app.registry.get(name).last_seen
    until(lambda: app.registry.get(name).last_seen != first, "another heartbeat")


def test_an_agent_named_in_a_setting_is_known(broker: Broker) -> None:
    """It is listed without handlers, and what it handles is not checked."""
    app = broker.app(waooaw_agents=["planned"])
    record = app.registry.get("planned")
    assert (record.handlers, record.last_seen, record.workers) == (None, None, ())
    assert "planned" in [agent.name for agent in app.registry.all()]
    app.close()


def test_a_handler_added_later_is_found(kept: AgentApp) -> None:
    """What a sender remembers of an agent does not hide a handler that a new version has."""
    registry = kept.registry
    registry.declare("grows", ["command"], "grows@h", 60)
    target = kept.target("grows.command")
    assert target is not None
    registry.check_handler(target)
    registry.declare("grows", ["command", "ack"], "grows@h", 60)
    registry.check_handler(target._replace(handler="ack"))


def test_a_worker_that_missed_its_heartbeats_is_not_listed(kept: AgentApp) -> None:
    """A worker whose lifetime is over is not listed, although it did not withdraw."""
    kept.registry.declare("short", ["command"], "short@h", 0.05)
    until(lambda: kept.registry.get("short").workers == (), "the end of its lifetime")


def test_a_worker_reports_about_itself(kept: AgentApp) -> None:
    """The report of a living worker is read back, and that of a stalled worker makes its agent's state STALLED."""
    registry, within = kept.registry, timedelta(seconds=60)
    registry.declare("told", ["command"], "told@h", 60, report={"clock": {"offset": 0.25}})
    registry.declare("told", ["command"], "other@h", 60)
    assert registry.get("told").reports == {"told@h": {"clock": {"offset": 0.25}}}
    assert registry.get("told").state(within) == "alive"
    registry.declare("told", ["command"], "told@h", 60, report={"not_taking": "disk full", "stalled": {"for": 61}})
    assert registry.get("told").state(within) == "STALLED"
    registry.retire("told", "told@h")
    assert registry.get("told").reports == {}


def message(app: AgentApp, **fields: object) -> Message:
    """Record a message that nobody will take."""
    sent = Message(from_agent="tests", to_agent="nobody-there", **fields)  # type: ignore[arg-type]
    app.receipts.pending([(sent, "command")])()
    return sent


def test_the_status_grows_with_the_facts(kept: AgentApp) -> None:
    """PENDING, SENT, DELIVERED, HANDLED: the newest fact is the status."""
    sent = message(kept)
    statuses = [kept.receipts.get(sent.message_id).status]
    for event in (MessageEvent.SENT, MessageEvent.DELIVERED, MessageEvent.HANDLED):
        note(kept.receipts, sent, event)
        statuses.append(kept.receipts.get(sent.message_id).status)
    assert statuses == ["pending", "sent", "delivered", "handled"]


def test_the_first_end_wins(kept: AgentApp) -> None:
    """Celery reports a hard time limit twice, and a sweep may meet a worker: the first end stays."""
    sent = message(kept)
    note(kept.receipts, sent, MessageEvent.FAILED, error="TimeLimitExceeded")
    note(kept.receipts, sent, MessageEvent.EXPIRED)
    receipt = kept.receipts.get(sent.message_id)
    assert (receipt.status, receipt.error) == (MessageStatus.FAILED, "TimeLimitExceeded")


def test_the_sweep_expires_what_nobody_began(kept: AgentApp) -> None:
    """Past its time and never begun is EXPIRED; begun, finished, not yet due or without expiry is left alone."""
    past = datetime.now(UTC) - timedelta(seconds=60)
    overdue = message(kept, sent_at=past, ttl_seconds=60 - SWEEP_GRACE - 1)
    begun = message(kept, sent_at=past, ttl_seconds=1)
    note(kept.receipts, begun, MessageEvent.DELIVERED)
    handled = message(kept, sent_at=past, ttl_seconds=1)
    note(kept.receipts, handled, MessageEvent.HANDLED)
    just_due = message(kept, sent_at=past, ttl_seconds=60)
    forever = message(kept, sent_at=past, ttl_seconds=None)
    swept = kept.receipts.sweep()
    assert overdue.message_id in swept
    assert not {m.message_id for m in (begun, handled, just_due, forever)} & set(swept)
    assert kept.receipts.get(overdue.message_id).status is MessageStatus.EXPIRED
    assert kept.receipts.get(begun.message_id).status is MessageStatus.DELIVERED
    assert overdue.message_id not in kept.receipts.sweep()


def test_receipts_are_kept_for_their_time(broker: Broker) -> None:
    """A receipt disappears after waooaw_receipt_seconds, and asking for it says so."""
    app = broker.app(waooaw_receipt_seconds=0.2)
    sent = message(app, ttl_seconds=None)
    until(lambda: not app.receipts._client.exists(f"waooaw:message:{sent.message_id}"), "forgetting")
    with pytest.raises(UnknownMessage, match="never sent, or is older than"):
        app.receipts.get(sent.message_id)
    app.receipts.sweep()
    assert sent.message_id not in [receipt.message_id for receipt in app.receipts.recent(limit=10_000)]
    app.close()


def test_recent_gives_the_newest_messages_in_order(kept: AgentApp) -> None:
    """recent() is ordered by time of sending, and takes a beginning and a limit."""
    mine = [message(kept).message_id for _ in range(3)]
    since = kept.receipts.get(mine[1]).sent_at
    found = [receipt.message_id for receipt in kept.receipts.recent(since=since, limit=1000)]
    assert [message_id for message_id in found if message_id in mine] == mine[1:]
    assert len(kept.receipts.recent(limit=2)) == 2


@pytest.fixture
def lone_server() -> Iterator[str]:
    """A server of the test's own, which may be frozen."""
    with valkey() as url:
        yield url


@pytest.fixture
def freeze(lone_server: str) -> Iterator[Callable[[], None]]:
    """Stop the lone server without closing its connections; it is woken up in the end."""
    server = connect(store_url(None, lone_server)).info("server")["process_id"]

    def stop() -> None:
        os.kill(server, signal.SIGSTOP)

    yield stop
    os.kill(server, signal.SIGCONT)


def test_a_frozen_store_is_an_error_in_seconds_and_nothing_is_sent(
    broker: Broker, lone_server: str, freeze: Callable[[], None]
) -> None:
    """A send does not hang on the Redis that keeps the receipts, and publishes nothing without it."""
    absent = broker.name()
    app = broker.app(waooaw_redis_url=lone_server, waooaw_agents=[absent])
    freeze()
    with pytest.raises(StoreUnavailable, match="waooaw_redis_url"):
        MessageBus(app).send(Message(from_agent="tests", to_agent=absent))
    with redis.Redis.from_url(store_url(None, broker.url)) as client:
        assert client.keys(f"agent.{absent}*") == []
    app.close()


def test_a_frozen_broker_is_an_error_and_the_receipt_stays_pending(
    broker: Broker, lone_server: str, freeze: Callable[[], None]
) -> None:
    """Whether a frozen broker has the message is not known: the caller hears it, the receipt says PENDING."""
    app = broker.app(broker_url=lone_server, waooaw_redis_url=broker.url, waooaw_agents=["absent"])
    sent = Message(from_agent="tests", to_agent="absent")
    freeze()
    with pytest.raises(BrokerUnavailable, match=sent.message_id):
        MessageBus(app).send(sent)
    assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.PENDING
    app.close()


def test_a_refusing_result_backend_is_an_error_before_the_request_is_sent(broker: Broker, probe: str) -> None:
    """A request whose answer could not come back is not sent."""
    app = broker.app(result_backend="redis://127.0.0.1:1/0", waooaw_redis_url=broker.url)
    with pytest.raises(BackendUnavailable, match=probe):
        RequestResponseHandler(app).request(probe, "echo", {"value": 1}, timeout=1)
    app.close()


def test_cancellations_are_kept_until_their_messages_expire(kept: AgentApp) -> None:
    """They are listed by agent. A later request does not take back that a running handler is stopped too."""
    receipts = kept.receipts
    first, second, past = message(kept), message(kept, ttl_seconds=None), message(kept)
    for sent, running in ((first, False), (second, True), (second, False)):
        receipts.request_cancel(receipts.get(sent.message_id), running, "tests")
    known = receipts.cancellations(["nobody-there", "nobody-else"])
    assert {id_: known.get(id_) for id_ in (first.message_id, second.message_id, past.message_id)} == {
        first.message_id: False,
        second.message_id: True,
        past.message_id: None,
    }
    assert receipts.cancellations(["nobody-else"]) == {}
    receipt = receipts.get(second.message_id)
    assert receipt.status is MessageStatus.PENDING
    assert receipt.cancel_requested_at is not None


def test_a_cancellation_does_not_change_a_running_message(kept: AgentApp) -> None:
    """The sweep does not count a message as never started because somebody asked to cancel it."""
    past = datetime.now(UTC) - timedelta(seconds=60)
    sent = message(kept, sent_at=past, ttl_seconds=1)
    note(kept.receipts, sent, MessageEvent.DELIVERED)
    kept.receipts.request_cancel(kept.receipts.get(sent.message_id), False, "tests")
    assert sent.message_id not in kept.receipts.sweep()
    assert kept.receipts.get(sent.message_id).status is MessageStatus.DELIVERED
