"""The store of agents and receipts, and the sweep of expired messages."""

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
from waooaw_celery.errors import BackendUnavailable, BrokerUnavailable, StoreUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.receipt import SWEEP_GRACE, MessageEvent
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import valkey


@pytest.fixture
def broker(valkey_broker: Broker) -> Broker:
    """Agents and receipts are in Redis for any broker, so one broker is enough."""
    return valkey_broker


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def store_app(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with each kind of store, so that each test runs three times."""
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
    """The registry has its handlers and its worker, and it is alive."""
    record = app.registry.get(probe)
    assert {"command", "ack", "echo", "seen"} <= set(record.handlers or ())
    assert record.workers == (f"{probe}@{record.workers[0].partition('@')[2]}",)
    assert record.alive(timedelta(seconds=30))
    assert record.declared_at is not None
    assert record.last_seen is not None
    assert record.declared_at <= record.last_seen <= datetime.now(UTC)


def test_a_stopped_agent_stays_known_without_a_worker(broker: Broker, app: AgentApp) -> None:
    """After SIGTERM the worker no longer counts; the agent and its handlers stay."""
    name = broker.name()
    with broker.running(name, app) as process:
        handlers = app.registry.get(name).handlers
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    record = app.registry.get(name)
    assert record.workers == ()
    assert record.handlers == handlers
    assert "command" in (handlers or ())


@pytest.mark.slow
def test_a_running_agent_sends_heartbeats(broker: Broker, app: AgentApp, start: Callable[..., str]) -> None:
    """last_seen becomes newer."""
    name = start()
    first = app.registry.get(name).last_seen
    until(lambda: app.registry.get(name).last_seen != first, "another sign of life")


def test_an_agent_named_in_a_setting_is_known(broker: Broker) -> None:
    """It has no handlers, and they are not checked."""
    app = broker.app(waooaw_agents=["planned"])
    record = app.registry.get("planned")
    assert (record.handlers, record.last_seen, record.workers) == (None, None, ())
    assert "planned" in [agent.name for agent in app.registry.all()]
    app.close()


def test_a_handler_added_later_is_found(store_app: AgentApp) -> None:
    """A sender's cache does not hide a handler that a new version of the agent has."""
    registry = store_app.registry
    registry.declare("grows", ["command"], "grows@h", 60)
    target = store_app.target("grows.command")
    assert target is not None
    registry.check_handler(target)
    registry.declare("grows", ["command", "ack"], "grows@h", 60)
    registry.check_handler(target._replace(handler="ack"))


def test_a_worker_without_heartbeats_no_longer_counts(store_app: AgentApp) -> None:
    """It is not listed after its lifetime, even if it was not retired."""
    store_app.registry.declare("short", ["command"], "short@h", 0.05)
    until(lambda: store_app.registry.get("short").workers == (), "the end of its lifetime")


def test_a_worker_reports_about_itself(store_app: AgentApp) -> None:
    """The report of a living worker is read back; that of a stalled worker sets the state of its agent."""
    registry, within = store_app.registry, timedelta(seconds=60)
    registry.declare("reports", ["command"], "reports@h", 60, report={"clock": {"offset": 0.25}})
    registry.declare("reports", ["command"], "other@h", 60)
    record = registry.get("reports")
    assert record.reports["reports@h"]["clock"] == {"offset": 0.25}
    assert "clock" not in record.reports.get("other@h", {})
    assert record.ledgers == dict.fromkeys(["other@h", "reports@h"], store_app.ledger_id)
    assert registry.get("reports").state(within) == "alive"
    registry.declare(
        "reports", ["command"], "reports@h", 60, report={"not_taking": "disk full", "stalled": {"for": 61}}
    )
    assert registry.get("reports").state(within) == "STALLED"
    registry.retire("reports", "reports@h")
    assert "reports@h" not in registry.get("reports").reports


def test_an_agent_has_the_handlers_of_all_its_living_workers(store_app: AgentApp) -> None:
    """Whichever declared itself last; a handler is gone when no living worker has it."""
    registry = store_app.registry
    registry.declare("mixed", ["command", "added"], "mixed@green", 60)
    registry.declare("mixed", ["command"], "mixed@blue", 60)
    record = registry.get("mixed")
    assert record.handlers == ("added", "command")
    assert record.worker_handlers == {"mixed@green": ("added", "command"), "mixed@blue": ("command",)}
    registry.retire("mixed", "mixed@green")
    assert registry.get("mixed").handlers == ("command",)
    registry.retire("mixed", "mixed@blue")
    assert registry.get("mixed").handlers == ("command",)


def message(app: AgentApp, **fields: object) -> Message:
    """Record a message that no worker will receive."""
    sent = Message(from_agent="tests", to_agent="nobody-there", **fields)  # type: ignore[arg-type]
    app.receipts.begin_recording([(sent, "command")])()
    return sent


def test_the_status_follows_the_facts(store_app: AgentApp) -> None:
    """PENDING, SENT, DELIVERED, HANDLED: the newest fact determines the status."""
    sent = message(store_app)
    statuses = [store_app.receipts.get(sent.message_id).status]
    for event in (MessageEvent.SENT, MessageEvent.DELIVERED, MessageEvent.HANDLED):
        note(store_app.receipts, sent, event)
        statuses.append(store_app.receipts.get(sent.message_id).status)
    assert statuses == ["pending", "sent", "delivered", "handled"]


def test_the_first_terminal_fact_counts(store_app: AgentApp) -> None:
    """Celery reports a hard time limit twice, and a sweep may run while a worker ends the message."""
    sent = message(store_app)
    note(store_app.receipts, sent, MessageEvent.FAILED, error="TimeLimitExceeded")
    note(store_app.receipts, sent, MessageEvent.EXPIRED)
    receipt = store_app.receipts.get(sent.message_id)
    assert (receipt.status, receipt.error) == (MessageStatus.FAILED, "TimeLimitExceeded")


def test_the_sweep_expires_messages_that_were_not_begun(store_app: AgentApp) -> None:
    """It does not change messages that are begun, finished, not yet due, or without expiry."""
    past = datetime.now(UTC) - timedelta(seconds=60)
    overdue = message(store_app, sent_at=past, ttl_seconds=60 - SWEEP_GRACE - 1)
    begun = message(store_app, sent_at=past, ttl_seconds=1)
    note(store_app.receipts, begun, MessageEvent.DELIVERED)
    handled = message(store_app, sent_at=past, ttl_seconds=1)
    note(store_app.receipts, handled, MessageEvent.HANDLED)
    just_due = message(store_app, sent_at=past, ttl_seconds=60)
    forever = message(store_app, sent_at=past, ttl_seconds=None)
    swept = store_app.receipts.sweep()
    assert overdue.message_id in swept
    assert not {m.message_id for m in (begun, handled, just_due, forever)} & set(swept)
    assert store_app.receipts.get(overdue.message_id).status is MessageStatus.EXPIRED
    assert store_app.receipts.get(begun.message_id).status is MessageStatus.DELIVERED
    assert overdue.message_id not in store_app.receipts.sweep()


def test_receipts_are_removed_after_their_time(broker: Broker) -> None:
    """A receipt disappears after waooaw_receipt_seconds, and the error says so."""
    app = broker.app(waooaw_receipt_seconds=0.2)
    sent = message(app, ttl_seconds=None)
    until(lambda: not app.receipts._client.exists(f"waooaw:message:{sent.message_id}"), "forgetting")
    with pytest.raises(UnknownMessage, match="never sent, or was sent more than"):
        app.receipts.get(sent.message_id)
    app.receipts.sweep()
    assert sent.message_id not in [receipt.message_id for receipt in app.receipts.recent(limit=10_000)]
    app.close()


def test_recent_gives_the_newest_messages_in_order(store_app: AgentApp) -> None:
    """recent() is ordered by time of sending, and has a beginning and a limit."""
    mine = [message(store_app).message_id for _ in range(3)]
    since = store_app.receipts.get(mine[1]).sent_at
    found = [receipt.message_id for receipt in store_app.receipts.recent(since=since, limit=1000)]
    assert [message_id for message_id in found if message_id in mine] == mine[1:]
    assert len(store_app.receipts.recent(limit=2)) == 2


@pytest.fixture
def own_server() -> Iterator[str]:
    """A server for one test, which may freeze it."""
    with valkey() as url:
        yield url


@pytest.fixture
def freeze(own_server: str) -> Iterator[Callable[[], None]]:
    """Return a function that stops the server without closing its connections; it is resumed afterwards."""
    server = connect(store_url(None, own_server)).info("server")["process_id"]

    def stop() -> None:
        os.kill(server, signal.SIGSTOP)

    yield stop
    os.kill(server, signal.SIGCONT)


@pytest.mark.slow
def test_a_frozen_store_is_an_error_in_seconds_and_nothing_is_sent(
    broker: Broker, own_server: str, freeze: Callable[[], None]
) -> None:
    """A send does not hang on the Redis for receipts, and publishes nothing without it."""
    absent = broker.name()
    app = broker.app(waooaw_redis_url=own_server, waooaw_agents=[absent])
    freeze()
    with pytest.raises(StoreUnavailable, match="waooaw_redis_url"):
        MessageBus(app).send(Message(from_agent="tests", to_agent=absent))
    with redis.Redis.from_url(store_url(None, broker.url)) as client:
        assert client.keys(f"agent.{absent}*") == []
    app.close()


def test_a_frozen_broker_is_an_error_and_the_receipt_stays_pending(
    broker: Broker, own_server: str, freeze: Callable[[], None]
) -> None:
    """The broker may have the message or not: the caller gets an error, and the receipt stays PENDING."""
    app = broker.app(broker_url=own_server, waooaw_redis_url=broker.url, waooaw_agents=["absent"])
    sent = Message(from_agent="tests", to_agent="absent")
    freeze()
    with pytest.raises(BrokerUnavailable, match=sent.message_id):
        MessageBus(app).send(sent)
    assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.PENDING
    app.close()


def test_a_refusing_result_backend_is_an_error_before_the_request_is_sent(broker: Broker, probe: str) -> None:
    """A request whose answer could not arrive is not sent."""
    app = broker.app(result_backend="redis://127.0.0.1:1/0", waooaw_redis_url=broker.url)
    with pytest.raises(BackendUnavailable, match=probe):
        RequestResponseHandler(app).request(probe, "echo", {"value": 1}, timeout=1)
    app.close()


def test_cancellations_are_stored_until_the_message_expires(store_app: AgentApp) -> None:
    """They are stored by agent and id; once a cancellation includes running handlers, it stays so."""
    receipts = store_app.receipts
    first, second, past = message(store_app), message(store_app, ttl_seconds=None), message(store_app)
    for sent, running in ((first, False), (second, True), (second, False)):
        receipts.request_cancellation(receipts.get(sent.message_id), running, "tests")
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


def test_a_cancellation_does_not_let_the_sweep_expire_a_begun_message(store_app: AgentApp) -> None:
    """The message stays DELIVERED."""
    past = datetime.now(UTC) - timedelta(seconds=60)
    sent = message(store_app, sent_at=past, ttl_seconds=1)
    note(store_app.receipts, sent, MessageEvent.DELIVERED)
    store_app.receipts.request_cancellation(store_app.receipts.get(sent.message_id), False, "tests")
    assert sent.message_id not in store_app.receipts.sweep()
    assert store_app.receipts.get(sent.message_id).status is MessageStatus.DELIVERED
