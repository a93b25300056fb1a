"""The Redis transport beside Kombu's own: what both guarantee, and what only ours does."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

import pytest
from amqp.exceptions import ChannelError as AMQPChannelError
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError
from redis_channels import SEPARATOR, Broker, Reader, new_queue, queue_items, send
from support import until

from waooaw_celery.broker.redis.leases.restore import restore_overdue
from waooaw_celery.testing.embedded import free_port, valkey

both = pytest.mark.parametrize("kind", ["ours", "kombu"])


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    """The shared server, with keys that only this test uses."""
    broker = Broker(redis_url)
    yield broker
    broker.close()


# --- what both transports guarantee


@both
def test_prefetch_count_limits_deliveries(broker: Broker, kind: str) -> None:
    """A consumer holds at most its prefetch count, and gets one more message for each acknowledged one."""
    queue = new_queue()
    send(broker.connect(kind), queue, *range(10))
    reader = Reader(broker.connect(kind), queue, prefetch=3)
    assert reader.take(3) == [0, 1, 2]
    assert reader.drain(0.5) == [0, 1, 2]
    assert len(queue_items(broker, queue)) == 7
    reader.messages[0].ack()
    assert reader.take(4) == [0, 1, 2, 3]
    assert reader.drain(0.3) == [0, 1, 2, 3]


@both
def test_acknowledged_and_rejected_messages_are_removed(broker: Broker, kind: str) -> None:
    """An acknowledged or rejected message leaves nothing behind, also when the channel closes."""
    queue, connection = new_queue(), broker.connect(kind)
    send(connection, queue, "acknowledged", "rejected")
    reader = Reader(connection, queue)
    reader.take(2)
    assert broker.unacked_count() == 2
    reader.messages[0].ack()
    reader.messages[1].reject()
    until(lambda: broker.unacked_count() == 0, "the acknowledgement")
    reader.channel.close()
    assert queue_items(broker, queue) == []


@both
def test_requeued_message_goes_to_the_end(broker: Broker, kind: str) -> None:
    """A requeued message becomes the last of its queue, marked as redelivered."""
    queue = new_queue()
    send(broker.connect(kind), queue, "a", "b", "c")
    reader = Reader(broker.connect(kind), queue, prefetch=1)
    reader.take(1)
    reader.messages[0].requeue()
    for count in (2, 3, 4):
        reader.take(count)
        reader.messages[-1].ack()
    assert reader.bodies == ["a", "b", "c", "a"]
    assert reader.redelivered == [False] * 3 + [True]
    until(lambda: broker.unacked_count() == 0, "the acknowledgement")


def test_a_message_that_is_handed_back_stays_first_and_unchanged(broker: Broker) -> None:
    """Another consumer gets it before the messages behind it, and not marked as redelivered."""
    queue = new_queue()
    send(broker.connect(), queue, "a", "b", "c")
    before = queue_items(broker, queue)
    reader = Reader(broker.connect(), queue, prefetch=1)
    reader.take(1)
    reader.consumer.cancel()
    reader.channel.qos.hand_back(reader.messages[0].delivery_tag)
    reader.channel.qos.hand_back(reader.messages[0].delivery_tag)
    assert queue_items(broker, queue) == before
    assert broker.unacked_count() == 0
    other = Reader(broker.connect(), queue)
    assert other.take(3) == ["a", "b", "c"]
    assert other.redelivered == [False] * 3


def test_a_message_that_cannot_be_requeued_comes_back_and_blocks_no_slot(broker: Broker) -> None:
    """The channel gives it up when the connection is lost, so that the next message is delivered."""
    queue = new_queue()
    send(broker.connect(), queue, "a", "b")
    reader = Reader(broker.connect(**LEASE), queue, prefetch=1)
    reader.take(1)
    with connection_lost_on_use(reader.channel.scripts_client.connection), pytest.raises(RedisError):
        reader.messages[0].requeue()
    assert reader.take(2) == ["a", "b"]
    reader.messages[1].ack()
    assert reader.take(3)[2] == "a"
    assert reader.redelivered == [False, False, True]


@both
def test_closing_a_channel_requeues_held_messages_first(broker: Broker, kind: str) -> None:
    """A closing channel puts its messages back to the front, marked as redelivered. Ours keeps their order."""
    queue = new_queue()
    send(broker.connect(kind), queue, *range(6))
    first = Reader(broker.connect(kind), queue, prefetch=3)
    first.take(3)
    first.connection.close()
    assert broker.unacked_count() == 0
    second = Reader(broker.connect(kind), queue)
    bodies = second.take(6)
    assert (bodies if kind == "ours" else [*sorted(bodies[:3]), *bodies[3:]]) == [0, 1, 2, 3, 4, 5]
    assert second.redelivered == [True] * 3 + [False] * 3


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_claimed_but_undelivered_messages_go_back_unchanged(broker: Broker, how: str) -> None:
    """Claimed messages that were not delivered go back unchanged and in order, after the delivered ones."""
    queue = new_queue()
    send(broker.connect(), queue, *range(6))
    before = queue_items(broker, queue)
    reader = Reader(broker.connect(), queue)
    reader.connection.drain_events(timeout=5)
    reader.connection.drain_events(timeout=5)
    assert (reader.bodies, broker.unacked_count(), queue_items(broker, queue)) == ([0, 1], 6, [])
    if how == "closed":
        reader.connection.close()
        assert [json.loads(item)["headers"].get("redelivered") for item in queue_items(broker, queue)[:2]] == [
            True,
            True,
        ]
        assert (queue_items(broker, queue)[2:], broker.unacked_count()) == (before[2:], 0)
    else:
        reader.consumer.cancel()
        assert (queue_items(broker, queue), broker.unacked_count()) == (before[2:], 2)


@both
def test_basic_get_takes_one_message(broker: Broker, kind: str) -> None:
    """``basic_get`` returns the next message or None, and holds it unless ``no_ack`` is set."""
    queue, connection = new_queue(), broker.connect(kind)
    send(connection, queue, "first", "second")
    channel: Any = connection.channel()
    message = channel.basic_get(queue.name)
    assert (message.payload, broker.unacked_count()) == ("first", 1)
    message.ack()
    assert broker.unacked_count() == 0
    assert channel.basic_get(queue.name, no_ack=True).payload == "second"
    assert (broker.unacked_count(), channel.basic_get(queue.name)) == (0, None)


@both
def test_consumer_with_no_ack_holds_nothing(broker: Broker, kind: str) -> None:
    """With ``no_ack`` nothing is held, and nothing comes back when the channel closes."""
    queue = new_queue()
    send(broker.connect(kind), queue, *range(5))
    reader = Reader(broker.connect(kind), queue, no_ack=True)
    assert reader.take(5) == [0, 1, 2, 3, 4]
    reader.connection.close()
    assert (broker.unacked_count(), queue_items(broker, queue)) == (0, [])


@both
def test_queues_take_turns(broker: Broker, kind: str) -> None:
    """A queue with many messages does not keep another queue from being consumed."""
    many, few = new_queue(), new_queue()
    send(broker.connect(kind), many, *["many"] * 6)
    send(broker.connect(kind), few, *["few"] * 3)
    reader = Reader(broker.connect(kind), many, few, prefetch=1)
    for count in range(1, 10):
        reader.take(count)
        reader.messages[-1].ack()
    assert sorted(reader.bodies[:4]) == ["few", "few", "many", "many"]
    assert reader.bodies[6:] == ["many"] * 3


@both
def test_urgent_messages_come_first(broker: Broker, kind: str) -> None:
    """The lowest priority number comes first; within a priority, the oldest message."""
    queue = new_queue()
    for number, priority in enumerate([9, 0, 6, 3, 9, 0]):
        send(broker.connect(kind), queue, [priority, number], priority=priority)
    reader = Reader(broker.connect(kind), queue)
    assert reader.take(6) == [[0, 1], [0, 5], [3, 3], [6, 2], [9, 0], [9, 4]]


@pytest.mark.parametrize("prefix", ["", "p:"])
@both
def test_queue_with_x_expires_is_deleted(broker: Broker, kind: str, prefix: str) -> None:
    """A queue with ``x-expires`` is deleted after so long without use. Publishing and ``basic_get`` are uses."""
    queue = new_queue(expires=60.0)
    connection = broker.connect(kind, global_keyprefix=prefix)
    channel: Any = connection.channel()
    queue(channel).queue_declare()
    producer = connection.Producer(channel)
    for use in (
        lambda: producer.publish("a", routing_key=queue.name, exchange=""),
        lambda: producer.publish("b", routing_key=queue.name, exchange=""),
        lambda: channel.basic_get(queue.name, no_ack=True),
    ):
        broker.redis.pexpire(f"{prefix}{queue.name}", 5000)
        use()
        assert 50_000 < broker.redis.pttl(f"{prefix}{queue.name}") <= 60_000
    brief = new_queue(expires=0.2)
    brief(channel).queue_declare()
    producer.publish("soon gone", routing_key=brief.name, exchange="")
    until(lambda: not broker.redis.exists(f"{prefix}{brief.name}"), "the end of the queue")
    assert channel.basic_get(brief.name) is None


@both
def test_queues_are_declared_purged_and_deleted(broker: Broker, kind: str) -> None:
    """Purging returns the number of messages. A passive declaration of an empty queue fails."""
    exchange = Exchange(f"e-{new_queue().name}")
    queue = Queue(new_queue().name, exchange, routing_key="r")
    channel: Any = broker.connect(kind).channel()
    with pytest.raises((ChannelError, AMQPChannelError)):
        channel.queue_declare(queue.name, passive=True)
    bound = queue(channel)
    bound.declare()
    producer = channel.connection.client.Producer(channel)
    for priority in (0, 3, 9):
        producer.publish("x", exchange=exchange, routing_key="r", priority=priority)
    assert channel.queue_declare(queue.name, passive=True).message_count == 3
    assert bound.purge() == 3
    assert bound.purge() == 0
    producer.publish("x", exchange=exchange, routing_key="r")
    bound.delete()
    assert not list(broker.redis.scan_iter(f"{queue.name}*"))
    assert not broker.redis.exists(f"_kombu.binding.{exchange.name}")


@both
def test_fanout_exchange_reaches_all_queues(broker: Broker, kind: str) -> None:
    """A message to a fanout exchange reaches every bound queue, on either transport."""
    exchange = Exchange(f"f-{new_queue().name}", type="fanout")
    readers = [
        Reader(broker.connect(each), Queue(new_queue().name, exchange, auto_delete=True))
        for each in ("ours", "kombu")
    ]
    sender = broker.connect(kind)

    def published() -> bool:  # a subscription takes a moment, and earlier messages are lost
        sender.Producer(exchange=exchange).publish("to all")
        return all("to all" in reader.drain(0.1) for reader in readers)

    until(published, "both readers to receive it")


@both
def test_batch_keeps_the_order(broker: Broker, kind: str) -> None:
    """All messages of a producer's batch arrive, by priority and in the order of publishing."""
    queue, connection = new_queue(), broker.connect(kind)
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        with producer.batch(max_size=700):
            for number in range(2500):
                producer.publish(number, routing_key=queue.name, exchange="", priority=3 * (number % 2))
    reader = Reader(broker.connect(kind), queue, no_ack=True)
    assert reader.take(2500) == [*range(0, 2500, 2), *range(1, 2500, 2)]


# --- both transports on one queue


@pytest.mark.parametrize(("sender", "receiver"), [("ours", "kombu"), ("kombu", "ours")])
@pytest.mark.parametrize("body", [{"a": [1, "ü"]}, "text", b"\x00\xff bytes"], ids=["json", "text", "bytes"])
def test_transports_read_each_others_messages(broker: Broker, sender: str, receiver: str, body: Any) -> None:
    """Each transport reads the bodies and headers that the other sends, also compressed."""
    queue = new_queue()
    send(broker.connect(sender), queue, body, headers={"x": [1, None]})
    send(broker.connect(sender), queue, body, compression="gzip")
    reader = Reader(broker.connect(receiver), queue, accept=["json", "text/plain", "application/data"])
    first, second = reader.take(2)
    assert (first, second) == (body, body)
    assert reader.messages[0].headers["x"] == [1, None]


def test_consumers_of_both_transports_share_a_queue(broker: Broker) -> None:
    """Consumers of both transports on one queue get each message exactly once, and each gets some."""
    queue = new_queue()
    readers = [Reader(broker.connect(kind), queue, prefetch=5) for kind in ("ours", "kombu")]
    with readers[0].consuming(), readers[1].consuming():
        for start in range(0, 400, 50):
            send(broker.connect("ours" if start % 100 else "kombu"), queue, *range(start, start + 50))
        until(lambda: sum(len(reader.messages) for reader in readers) >= 400, "all messages")
    assert sorted([*readers[0].bodies, *readers[1].bodies]) == list(range(400))
    assert all(reader.messages for reader in readers)


def test_kombu_restores_messages_of_our_consumer(broker: Broker) -> None:
    """Our consumer lists its messages where Kombu's does, and Kombu's can put them back, readable for both."""
    queue = new_queue()
    send(broker.connect(), queue, {"a": 1})
    Reader(broker.connect(), queue).take(1)
    stock: Any = broker.connect("kombu", visibility_timeout=0).channel()
    stock.qos.restore_visible(interval=1)
    assert broker.unacked_count() == 0
    for kind in ("kombu", "ours"):
        reader = Reader(broker.connect(kind), queue)
        assert reader.take(1) == [{"a": 1}]
        assert reader.redelivered == [True]
        reader.connection.close()


def test_our_consumer_restores_messages_of_kombu(broker: Broker) -> None:
    """A message of Kombu's consumer is put back after the foreign visibility timeout, not earlier."""
    ours, foreign = new_queue(), new_queue()
    for queue in (ours, foreign):
        send(broker.connect("kombu"), queue, queue.name)
        Reader(broker.connect("kombu"), queue).take(1)
    options = {"visibility_timeout": 0.4, "unacked_restore_interval": 0.1}
    Reader(broker.connect(foreign_visibility_timeout=3600, **options), new_queue())
    send(broker.connect(), ours, "ours")
    dead = Reader(broker.connect(visibility_timeout=3600), ours)  # it will not renew for a long time
    dead.take(1)
    until(lambda: queue_items(broker, ours), "our message to come back")
    assert broker.unacked_count() == 2
    Reader(broker.connect(foreign_visibility_timeout=0.5, **options), new_queue())
    until(lambda: broker.unacked_count() == 0, "the message of Kombu's consumer to come back")
    assert [json.loads(item)["headers"]["redelivered"] for item in queue_items(broker, foreign)] == [True]


# --- doorbells


def test_doorbell_wakes_an_idle_consumer(broker: Broker) -> None:
    """An idle consumer gets our messages at once. Without a doorbell it would look for them once a second."""
    queue, sender = new_queue(), broker.connect()
    reader = Reader(broker.connect(), queue)
    waits = []
    with reader.consuming():
        for number in range(20):
            pause = time.monotonic() + 0.05  # so that it is idle again
            until(lambda: time.monotonic() > pause, "a pause")  # noqa: B023 - called within the iteration
            sent_at = time.monotonic()
            send(sender, queue, number)
            until(lambda: len(reader.messages) > number, "the message")  # noqa: B023 - the same
            waits.append(reader.times[-1] - sent_at)
    assert statistics.median(waits) < 0.25


def test_message_without_a_doorbell_is_found_within_a_second(broker: Broker) -> None:
    """An idle consumer finds a message of Kombu's own producer within about a second."""
    queue, sender = new_queue(), broker.connect("kombu")
    reader = Reader(broker.connect(), queue)
    with reader.consuming():
        for number in range(3):
            sent_at = time.monotonic()
            send(sender, queue, number)
            until(lambda: len(reader.messages) > number, "the message", 5)  # noqa: B023 - called within the iteration
            assert reader.times[-1] - sent_at < 1.5


def test_doorbell_wakes_as_many_consumers_as_needed(broker: Broker) -> None:
    """Two idle consumers with a prefetch count of one each get one of two messages at once."""
    queue, connection = new_queue(), broker.connect()
    readers = [Reader(broker.connect(), queue, prefetch=1) for _ in range(2)]
    for reader in readers:
        reader.drain(0.3)
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        with producer.batch():
            for number in range(2):
                producer.publish(number, routing_key=queue.name, exchange="")
    for reader in readers:
        reader.take(1, seconds=0.5)
    assert sorted(readers[0].bodies + readers[1].bodies) == [0, 1]


# --- leases


LEASE = {"visibility_timeout": 0.5, "unacked_restore_interval": 0.1}


@pytest.mark.parametrize("how", ["consumed", "fetched", "claimed ahead", "without acknowledging"])
def test_messages_of_a_living_process_are_not_redelivered(broker: Broker, how: str) -> None:
    """While a process lives, no other consumer gets its messages, however it received them."""
    queue = new_queue()
    send(broker.connect(), queue, *range(3))
    holder: Any = broker.connect(**LEASE)
    if how == "fetched":
        channel = holder.channel()
        held = [channel.basic_get(queue.name) for _ in range(3)]
        assert all(held)
    elif how == "consumed":
        Reader(holder, queue).take(3)
    else:  # the first is delivered, and the other two wait in this process
        reader = Reader(holder, queue, no_ack=how == "without acknowledging")
        holder.drain_events(timeout=5)
        assert len(reader.messages) == 1
    other = Reader(broker.connect(**LEASE), queue)
    assert other.drain(1.5) == []


def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """During an outage the log says once that leases cannot be renewed, and not that they are renewed again."""
    with valkey() as url:
        broker = Broker(url)
        Reader(broker.connect(**LEASE | {"unacked_restore_interval": 0.4}), new_queue()).drain(0.1)

    def count(action: str) -> int:
        return sum(getattr(record, "action", "") == action for record in caplog.records)

    until(lambda: count("lease_failed"), "the warning")
    ends_at = time.monotonic() + 1
    until(lambda: time.monotonic() > ends_at, "a second")
    broker.close()
    assert (count("lease_failed"), count("lease_back")) == (1, 0)


def test_claim_that_is_read_after_its_lease_is_dropped(broker: Broker) -> None:
    """A reply that is read after the lease ended brings no message that another consumer has by now."""
    busy, queue = None, new_queue()
    Reader(broker.connect(), queue).drain(0.1)  # now the server has the script
    while busy is None or busy.messages:  # the reply may or may not have arrived already
        queue = new_queue()
        send(broker.connect(), queue, "once")
        busy = Reader(broker.connect(**LEASE), queue)
        with suppress(TimeoutError, Empty):
            busy.connection.drain_events(timeout=0)
    other = Reader(broker.connect(**LEASE), queue)
    assert other.take(1) == ["once"]
    assert busy.drain(0.5) == []
    other.messages[0].ack()
    until(
        lambda: broker.redis.zscore(f"{broker.unacked}-index", other.messages[0].delivery_tag) is None,
        "the acknowledgement",
    )


def test_many_foreign_messages_do_not_hide_overdue_ones(broker: Broker) -> None:
    """Our overdue messages are restored although Kombu's consumers hold thousands of older ones."""
    queue, index = new_queue(), f"{broker.unacked}-index"
    send(broker.connect(), queue, "ours")
    Reader(broker.connect(visibility_timeout=3600), queue).take(1)
    entry = json.dumps([{"headers": {}, "properties": {}}, "", "nowhere"])
    broker.redis.hset(broker.unacked, mapping={f"stock-{number}": entry for number in range(2500)})
    long_ago = time.time() - 600
    broker.redis.zadd(index, {f"stock-{number}": long_ago for number in range(2500)})
    Reader(broker.connect(**LEASE), new_queue())
    until(lambda: queue_items(broker, queue), "our message to come back", 10)
    assert broker.unacked_count() == 2500


def test_a_search_for_overdue_messages_lets_leases_be_renewed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a computer with thousands of messages died, the one that restores them keeps its own."""
    monkeypatch.setattr("waooaw_celery.broker.redis.leases.restore.SEARCH_SECONDS", 0.0)
    queue, index = new_queue(), f"{broker.unacked}-index"
    channel = broker.connect(**LEASE).channel()
    assert restore_overdue(channel, channel.client, lambda: True) is True  # nothing is unacknowledged
    send(broker.connect(), queue, *range(25))
    Reader(broker.connect(visibility_timeout=3600), queue).take(25)
    broker.redis.zadd(index, dict.fromkeys(broker.redis.hkeys(broker.unacked), 5))
    assert restore_overdue(channel, channel.client, lambda: True) is False  # no time: it stops before it searches
    monkeypatch.setattr("waooaw_celery.broker.redis.leases.restore.SEARCH_SECONDS", 30.0)
    assert restore_overdue(channel, channel.client, lambda: True) is True
    assert (broker.unacked_count(), len(queue_items(broker, queue))) == (0, 25)


@pytest.mark.parametrize(
    "entry",
    [
        b"garbage",
        b"[]",
        b"[1, 2, 3]",
        b'[{"headers": [1]}, "", "q"]',
        b'[{"headers": {"x-delivery-count": "x"}}, "", "q"]',
        b'[{"headers": {"x-delivery-count": Infinity}}, "", "q"]',
        b'[{"headers": {"x": {"__type__": "bytes", "__value__": 5}}}, "", "q"]',
        b'[{"headers": {}}, "", "\\ud800"]',
        b'[{}, "no-such-exchange", "q"]',
        b'[{}, {"a": 1}, "q"]',
        b'[{"headers": {}}, "", null]',
        b'["\xff"]',
        b"[" * 100_000,
    ],
    ids=range(13),
)
def test_unreadable_unacknowledged_entry_blocks_nothing(broker: Broker, entry: bytes) -> None:
    """A damaged entry of another consumer becomes a dead letter, and our overdue messages are restored."""
    queue, index = new_queue(), f"{broker.unacked}-index"
    before = broker.redis.xlen("waooaw.dead")
    for tag in (b"lease:damaged:1.1", b"\xff\xfe"):
        broker.redis.hset(broker.unacked, tag, entry)
        broker.redis.zadd(index, {tag: 5})
    Reader(broker.connect(foreign_visibility_timeout=0.5, **LEASE), new_queue())
    send(broker.connect(), queue, "ours")
    Reader(broker.connect(visibility_timeout=3600), queue).take(1)
    until(lambda: queue_items(broker, queue), "our message to come back", 10)
    until(lambda: broker.unacked_count() == 0, "the dead letters")
    assert broker.redis.xlen("waooaw.dead") == before + 2


# --- servers


@contextmanager
def connection_lost_on_use(connection: Any) -> Iterator[None]:
    """Make a connection fail when it is next written to, although it looks connected."""
    closed, other_end = socket.socketpair()
    closed.shutdown(socket.SHUT_WR)
    with closed, other_end:
        if connection._sock is not None:
            connection._sock.close()
        connection._sock = closed
        yield


def test_closing_channel_acknowledges_over_a_new_connection(broker: Broker) -> None:
    """If the connection is lost while the channel closes, its acknowledgements are sent over a new one."""
    queue = new_queue()
    send(broker.connect(), queue, "handled")
    reader = Reader(broker.connect(), queue, prefetch=1)
    assert reader.take(1) == ["handled"]
    connection = reader.channel.scripts_client.connection
    with connection_lost_on_use(connection), pytest.raises(RedisError):
        reader.messages[0].ack()
    with connection_lost_on_use(connection):
        reader.connection.close()
    assert (broker.unacked_count(), queue_items(broker, queue)) == (0, [])


def test_global_keyprefix_applies_to_every_key(broker: Broker) -> None:
    """With ``global_keyprefix`` everything works on both transports, and every key has the prefix."""
    prefix = f"{new_queue().name}:"
    queue = new_queue()
    before = set(broker.redis.scan_iter(count=10_000))
    for kind in ("kombu", "ours"):
        connection = broker.connect(kind, global_keyprefix=prefix)
        send(connection, queue, f"from {kind}")
        with connection.channel() as channel:
            producer = connection.Producer(channel)
            with producer.batch():
                for number in range(3):
                    producer.publish([kind, number], routing_key=queue.name, exchange="")
    broker.redis.rpush(f"{prefix}{queue.name}", b"garbage")
    reader = Reader(broker.connect(global_keyprefix=prefix), queue, prefetch=4)
    assert reader.take(4) == ["from kombu", ["kombu", 0], ["kombu", 1], ["kombu", 2]]
    for message in reader.messages:
        message.ack()
    assert reader.take(8)[4:] == ["from ours", ["ours", 0], ["ours", 1], ["ours", 2]]
    reader.messages[4].ack()
    reader.messages[5].requeue()
    reader.connection.close()
    stock = Reader(broker.connect("kombu", global_keyprefix=prefix), queue)
    assert sorted(map(str, stock.take(3))) == ["['ours', 0]", "['ours', 1]", "['ours', 2]"]
    assert broker.redis.xlen(f"{prefix}waooaw.dead") == 1
    stray = {
        key for key in set(broker.redis.scan_iter(count=10_000)) - before if not key.startswith(prefix.encode())
    }
    assert not stray


def test_server_at_its_memory_limit_still_delivers() -> None:
    """It refuses to publish, but messages are still consumed, requeued and acknowledged."""
    with valkey() as url:
        broker = Broker(url)
        queue, connection = new_queue(), broker.connect()
        send(connection, queue, *range(100))
        reader = Reader(broker.connect(), queue, prefetch=10)
        reader.take(10)
        broker.redis.config_set("maxmemory", "100kb")
        for size in (1, 100_000):
            with pytest.raises((OperationalError, RedisError)):
                send(connection, queue, "x" * size)
        reader.messages[0].requeue()
        done = 1
        while done < 101:
            reader.take(done + 1)
            reader.messages[done].ack()
            done += 1
        assert sorted(reader.bodies) == sorted([*range(100), 0])
        until(lambda: broker.unacked_count() == 0, "the acknowledgement")
        broker.redis.config_set("maxmemory", 0)
        send(connection, queue, "again")
        assert reader.take(102)[-1] == "again"
        broker.close()


def test_script_flush_loses_nothing(broker: Broker) -> None:
    """SCRIPT FLUSH while messages are sent, batched and consumed loses and doubles nothing."""
    queue, connection = new_queue(), broker.connect()
    reader = Reader(broker.connect(**LEASE), queue, prefetch=7)
    with reader.consuming(), connection.channel() as channel:
        producer = connection.Producer(channel)
        for start in range(0, 600, 30):
            broker.redis.script_flush()
            with producer.batch(max_size=10):
                for number in range(start, start + 20):
                    producer.publish(number, routing_key=queue.name, exchange="")
            broker.redis.script_flush()
            for number in range(start + 20, start + 30):
                producer.publish(number, routing_key=queue.name, exchange="")
                broker.redis.script_flush()
        until(lambda: len(reader.messages) >= 600, "all messages")
    assert reader.bodies == list(range(600))
    until(lambda: broker.unacked_count() == 0, "the acknowledgement")


def test_tcp_and_unix_socket_carry_the_same_messages() -> None:
    """A redis:// URL and a socket URL of the same server carry the same messages."""
    port = free_port()
    with valkey(port=port) as url:
        broker, queue = Broker(url), new_queue()
        [path] = broker.redis.config_get("unixsocket").values()
        other = f"redis+socket://{path}"
        send(broker.connect(), queue, "over TCP")
        send(broker.connect(url=other), queue, "over a socket")
        for address in (other, url):
            reader = Reader(broker.connect(url=address), queue, prefetch=1)
            reader.take(1)
            reader.messages[0].ack()
            reader.connection.close()
        assert (queue_items(broker, queue), broker.unacked_count()) == ([], 0)
        broker.close()


def test_ack_emulation_false_is_refused(broker: Broker) -> None:
    """``ack_emulation=False`` would lose messages. The error says what to do instead."""
    with pytest.raises(ValueError, match="waooaw_redis_transport"):
        broker.connect(ack_emulation=False).channel()


def test_doorbell_is_not_counted_as_a_message(broker: Broker) -> None:
    """The doorbell has its own key, holds at most one element, and expires."""
    queue = new_queue()
    send(broker.connect(), queue, *range(5))
    bell = f"{queue.name}{SEPARATOR}bell"
    assert broker.redis.llen(bell) == 1
    assert 0 < broker.redis.ttl(bell) <= 60
    with Connection(broker.url) as connection, connection.channel() as channel:
        assert channel.queue_declare(queue.name).message_count == 5
