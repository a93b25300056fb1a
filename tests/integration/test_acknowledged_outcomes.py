"""Where receipts and broker share a Redis, a claim records the delivery, and an acknowledgement the outcome."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import support
from redis import Redis
from redis_channels import Broker, Reader, new_queue, send

from waooaw_celery import Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.store.connection import connect, is_same_redis, store_url
from waooaw_celery.store.deliveries import RecordedDeliveries, withdraw_delivery
from waooaw_celery.store.receipts import RedisReceipts
from waooaw_celery.worker.outcomes.acknowledged_outcomes import end_with_acknowledgement

#: Messages of the test that counts commands.
COUNT = 60


@pytest.fixture
def channels(redis_url: str) -> Iterator[Broker]:
    broker = Broker(redis_url)
    yield broker
    broker.close()


@pytest.fixture
def receipts(redis_url: str) -> Iterator[RedisReceipts]:
    """Receipts whose keys only one test uses."""
    receipts = RedisReceipts(connect(store_url(redis_url)), 3600, prefix=f"t-{uuid4().hex}:")
    yield receipts
    receipts.close()


class Setup:
    """A queue whose consumer records deliveries."""

    def __init__(self, channels: Broker, receipts: RedisReceipts, slots: int = 1) -> None:
        self.channels, self.receipts, self.queue = channels, receipts, new_queue()
        self.reader = Reader(channels.connect(), self.queue, prefetch=10)
        self.reader.channel.deliveries = RecordedDeliveries(receipts, lambda: slots)

    def send(self, *, recorded: bool = True, headers: dict[str, Any] | None = None) -> str:
        """Send a message, and return its id."""
        message = Message(from_agent="a", to_agent="b", payload={})
        if recorded:
            self.receipts.begin_recording([(message, "command")])()
        own = {"id": message.message_id, "waooaw": {"version": 1}}
        send(self.channels.connect(), self.queue, "text", headers=own | (headers or {}))
        return message.message_id

    def take(self, count: int = 1) -> list[bool]:
        """Return for each message whether its claim has recorded the delivery."""
        self.reader.take(count)
        return [message._raw.claim.is_recorded for message in self.reader.messages]


def handled(message_id: str) -> MessageFact:
    return MessageFact(message_id=message_id, event=MessageEvent.HANDLED, at=datetime.now(UTC))


def test_a_claim_records_the_delivery(channels: Broker, receipts: RedisReceipts) -> None:
    """The receipt says DELIVERED after one attempt when the consumer has the message."""
    setup = Setup(channels, receipts)
    id_ = setup.send()
    assert setup.take() == [True]
    receipt = receipts.get(id_)
    assert (receipt.status, receipt.attempts) == (MessageStatus.DELIVERED, 1)
    assert receipt.delivered_at is not None
    assert abs(receipt.delivered_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "headers",
    [
        {"eta": "2099-01-01T00:00:00+00:00"},
        {"expires": "2020-01-01T00:00:00+00:00"},
        {"expires": "2099-01-01T00:00:00+02:00"},
        {DELIVERY_COUNT: 1},
        {"waooaw": "text"},
    ],
    ids=["not due", "expired", "another time zone", "redelivered", "no message of an agent"],
)
def test_a_message_that_may_not_begin_is_left_to_the_worker(
    channels: Broker, receipts: RedisReceipts, headers: dict[str, Any]
) -> None:
    """Its claim records nothing."""
    setup = Setup(channels, receipts)
    id_ = setup.send(headers=headers)
    assert setup.take() == [False]
    assert receipts.get(id_).attempts == 0


def test_a_message_that_has_ended_is_left_to_the_worker(channels: Broker, receipts: RedisReceipts) -> None:
    """Neither a second copy of a handled message, nor one without a receipt, is recorded by its claim."""
    setup = Setup(channels, receipts, slots=2)
    id_ = setup.send()
    receipts.note(handled(id_))
    unknown = setup.send(recorded=False)
    assert setup.take(2) == [False, False]
    assert receipts.get(id_).attempts == 0
    assert receipts.known([unknown]) == set()


def test_only_messages_that_begin_at_once_are_recorded(channels: Broker, receipts: RedisReceipts) -> None:
    """Of three claimed messages, the first fills the only slot."""
    setup = Setup(channels, receipts)
    ids = [setup.send() for _ in range(3)]
    assert setup.take(3) == [True, False, False]
    assert [receipts.get(id_).attempts for id_ in ids] == [1, 0, 0]


def test_a_message_that_goes_back_before_it_begins_counts_no_attempt(
    channels: Broker, receipts: RedisReceipts
) -> None:
    """The channel closes with two claimed messages that it has not delivered: their receipts are as before."""
    setup = Setup(channels, receipts, slots=3)
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    ids = [setup.send(headers={"expires": expires}) for _ in range(3)]
    assert setup.take(1) == [True]
    assert [receipts.get(id_).attempts for id_ in ids] == [1, 1, 1]
    setup.reader.connection.close()
    assert [receipts.get(id_).attempts for id_ in ids] == [1, 0, 0]
    assert [receipts.get(id_).status for id_ in ids[1:]] == [MessageStatus.PENDING] * 2
    assert set(receipts.client.zrange(receipts.keys.expiring, 0, -1)) == set(ids[1:])


def test_an_outage_does_not_keep_a_worker_from_recording_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A delivery that cannot be taken back is logged, and what follows it, such as EXPIRED, is recorded."""
    with closing(RedisReceipts(connect("redis://127.0.0.1:1"), 3600)) as away:
        withdraw_delivery(away, "m-1")
    assert [record.action for record in caplog.records] == ["delivery_not_withdrawn"]  # type: ignore[attr-defined]


def test_an_acknowledgement_records_the_outcome(channels: Broker, receipts: RedisReceipts) -> None:
    """Nothing is recorded before it. Then the message is gone, and its receipt says HANDLED."""
    setup = Setup(channels, receipts)
    id_ = setup.send()
    setup.take()
    message, acks = setup.reader.messages[0], setup.reader.channel.acks
    acks.carry(message.delivery_tag, *receipts.outcome_commands(handled(id_)))
    assert receipts.get(id_).status is MessageStatus.DELIVERED
    message.ack()
    assert receipts.get(id_).status is MessageStatus.HANDLED
    assert (channels.unacked_count(), acks.carried) == (0, {})


def test_a_command_that_fails_does_not_keep_its_message(
    channels: Broker, receipts: RedisReceipts, caplog: pytest.LogCaptureFixture
) -> None:
    """The server refuses one command. The next one is executed, and the message is acknowledged."""
    setup = Setup(channels, receipts)
    id_ = setup.send()
    setup.take()
    message, acks = setup.reader.messages[0], setup.reader.channel.acks
    refused = "INCR", receipts.keys.message(id_)
    acks.carry(message.delivery_tag, refused, *receipts.outcome_commands(handled(id_)))
    message.ack()
    assert receipts.get(id_).status is MessageStatus.HANDLED
    assert channels.unacked_count() == 0
    assert [getattr(each, "action", "") for each in caplog.records] == ["outcome_not_recorded"]
    assert "WRONGTYPE" in caplog.text


def test_another_database_is_another_redis(redis_url: str) -> None:
    """Receipts in another database than the queues cannot be recorded with them."""
    url = store_url(redis_url)
    clients: list[Any] = [Redis.from_url(url), connect(url), Redis.from_url(url)]
    clients[2].connection_pool.connection_kwargs["db"] = 1
    assert is_same_redis(clients[0], clients[1])
    assert not is_same_redis(clients[0], clients[2])


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_records_and_answers_on_each_pool(valkey_broker: support.Broker, pool: str) -> None:
    """A message is HANDLED after one attempt, a failing one FAILED, and a request gets its answer."""
    app, name = valkey_broker.app(), valkey_broker.name()
    with valkey_broker.running(name, app, "-P", pool):
        bus, requests = MessageBus(app), RequestResponseHandler(app)
        receipt = bus.send(Message(from_agent="tests", to_agent=name, payload={"n": 1}))
        assert support.settled(app, receipt.message_id) is MessageStatus.HANDLED
        assert bus.receipt(receipt.message_id).attempts == 1
        assert requests.request(name, "echo", {"value": 7}, timeout=20) == 7
        answered = [each for each in app.receipts.recent() if each.to_agent == name and each.handler == "echo"]
        assert [support.settled(app, each.message_id) for each in answered] == [MessageStatus.HANDLED]
    app.close()


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_message_costs_a_worker_one_round_trip(valkey_broker: support.Broker, redis_url: str, pool: str) -> None:
    """One script ends the last message, claims the next one and records its delivery."""
    app, name = valkey_broker.app(), valkey_broker.name()
    with valkey_broker.running(name, app, "-P", pool):
        bus, server = MessageBus(app), Redis.from_url(store_url(redis_url))
        before = _calls(server)
        messages = [Message(from_agent="tests", to_agent=name, payload={"n": n}) for n in range(COUNT)]
        bus.send_many(messages)
        for message in messages:
            support.until(lambda id_=message.message_id: bus.receipt(id_).status.final, "the end")  # type: ignore[misc]
        # Beside the claims there are some claims that find no message, and renewals of leases.
        assert _calls(server) - before < COUNT * 1.5
    app.close()


def _calls(server: Any) -> int:
    """Return how many scripts the server has run."""
    return int(server.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


@pytest.mark.parametrize("rounds", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_a_shutdown_just_after_the_claim_knows_what_has_begun(
    valkey_broker: support.Broker, tmp_path: Path, rounds: int
) -> None:
    """The worker ends soon, and the receipt counts an attempt only if the handler began."""
    app, bus = valkey_broker.app(), None
    for number in range(rounds):
        name, mark = valkey_broker.name(), tmp_path / str(number)
        with valkey_broker.running(name, app) as process:
            bus = bus or MessageBus(app)
            sent = bus.send(Message(from_agent="tests", to_agent=name, payload={"mark": str(mark)}))
            ends_at = time.monotonic() + support.WAIT_SECONDS
            while bus.receipt(sent.message_id).status is MessageStatus.SENT:  # no pause: the moment is short
                assert time.monotonic() < ends_at
            process.terminate()
            process.wait(20)  # Celery waits for half a minute if it does not read what a process has begun
            receipt = bus.receipt(sent.message_id)
            expected = (MessageStatus.HANDLED, 1) if mark.exists() else (MessageStatus.SENT, 0)
            assert (receipt.status, receipt.attempts) == expected
    app.close()


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_killed_worker_loses_no_message_between_its_steps(
    valkey_broker: support.Broker, tmp_path: Path, pool: str
) -> None:
    """A worker is killed with SIGKILL while it handles: each message is HANDLED by the next one, none is lost."""
    app, name = valkey_broker.app(), valkey_broker.name()
    options = {"broker_transport_options": {"visibility_timeout": 2, "unacked_restore_interval": 0.5}}
    bus = MessageBus(app)
    with valkey_broker.running(name, app, "-P", pool, **options) as process:
        messages = [Message(from_agent="tests", to_agent=name, payload={"n": n}) for n in range(200)]
        bus.send_many(messages)
        first = messages[20].message_id
        support.until(lambda: bus.receipt(first).status.final, "the first messages")
        process.kill()
    with valkey_broker.running(name, app, "-P", pool, node=f"{name}-2", **options):
        assert {support.settled(app, each.message_id) for each in messages} == {MessageStatus.HANDLED}
    app.close()


def test_a_frozen_worker_takes_no_message(valkey_broker: support.Broker) -> None:
    """It is stopped while it waits for messages: the other worker handles all, each at its first attempt."""
    app, name = valkey_broker.app(), valkey_broker.name()
    pool = ("-P", "threads", "-c", "4")
    with (
        valkey_broker.running(name, app, *pool) as frozen,
        valkey_broker.running(name, app, *pool, node=f"{name}-2"),
    ):
        bus = MessageBus(app)

        def handle(count: int) -> list[str]:
            sent = bus.send_many(Message(from_agent="tests", to_agent=name, payload=None) for _ in range(count))
            assert {support.settled(app, each.message_id) for each in sent} == {MessageStatus.HANDLED}
            return [each.message_id for each in sent]

        handle(20)  # a worker that has just had a message must not take another one in advance
        frozen.send_signal(signal.SIGSTOP)
        try:
            ids = handle(20)
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert {bus.receipt(id_).attempts for id_ in ids} == {1}
    app.close()


def test_a_handled_message_is_recorded_also_when_its_connection_was_lost(
    receipts: RedisReceipts, caplog: pytest.LogCaptureFixture
) -> None:
    """The acknowledgement cannot carry the outcome then. An outage is logged, and raises nothing."""
    message = Message(from_agent="a", to_agent="b", payload={})
    receipts.begin_recording([(message, "command")])()
    app: Any = type("App", (), {"receipts": receipts})()
    end_with_acknowledgement(SimpleNamespace(app=app, id=message.message_id))
    assert receipts.get(message.message_id).status is MessageStatus.HANDLED
    app.receipts = RedisReceipts(connect("redis://127.0.0.1:1/0"), 3600)
    end_with_acknowledgement(SimpleNamespace(app=app, id=message.message_id))
    assert f"it could not be recorded that {message.message_id} is handled" in caplog.text
