"""The transport's channels beside Kombu's own: alike where they must be, and what only ours promises."""

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
from channels import SEPARATOR, Broker, Reader, a_queue, listed, send
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import RedisError
from support import until

from waooaw_celery.embedded import free_port, valkey

both = pytest.mark.parametrize("kind", ["ours", "kombu"])


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    """The server of all tests, with keys of the test's own."""
    broker = Broker(redis_url)
    yield broker
    broker.close()


# --- alike on both


@both
def test_no_more_is_delivered_than_may_be_held(broker: Broker, kind: str) -> None:
    """A consumer holds at most its prefetch count, and one more for each that it lets go."""
    queue = a_queue()
    send(broker.connect(kind), queue, *range(10))
    reader = Reader(broker.connect(kind), queue, prefetch=3)
    assert reader.take(3) == [0, 1, 2]
    assert reader.drain(0.5) == [0, 1, 2]
    assert len(listed(broker, queue)) == 7
    reader.got[0].ack()
    assert reader.take(4) == [0, 1, 2, 3]
    assert reader.drain(0.3) == [0, 1, 2, 3]


@both
def test_what_is_acknowledged_is_forgotten(broker: Broker, kind: str) -> None:
    """An acknowledged or rejected message leaves nothing behind, also when the channel closes."""
    queue, connection = a_queue(), broker.connect(kind)
    send(connection, queue, "acknowledged", "rejected")
    reader = Reader(connection, queue)
    reader.take(2)
    assert broker.held() == 2
    reader.got[0].ack()
    reader.got[1].reject()
    until(lambda: broker.held() == 0, "forgetting")
    reader.channel.close()
    assert listed(broker, queue) == []


@both
def test_what_is_requeued_waits_behind_the_others(broker: Broker, kind: str) -> None:
    """A message that is let go for requeueing comes last, marked as redelivered."""
    queue = a_queue()
    send(broker.connect(kind), queue, "a", "b", "c")
    reader = Reader(broker.connect(kind), queue, prefetch=1)
    reader.take(1)
    reader.got[0].requeue()
    for count in (2, 3, 4):
        reader.take(count)
        reader.got[-1].ack()
    assert reader.bodies == ["a", "b", "c", "a"]
    assert reader.redelivered == [False] * 3 + [True]
    until(lambda: broker.held() == 0, "forgetting")


@both
def test_what_is_held_goes_back_to_the_front(broker: Broker, kind: str) -> None:
    """A channel that closes puts what it holds back before the rest, marked as redelivered; ours in order."""
    queue = a_queue()
    send(broker.connect(kind), queue, *range(6))
    first = Reader(broker.connect(kind), queue, prefetch=3)
    first.take(3)
    first.connection.close()
    assert broker.held() == 0
    second = Reader(broker.connect(kind), queue)
    bodies = second.take(6)
    assert (bodies if kind == "ours" else [*sorted(bodies[:3]), *bodies[3:]]) == [0, 1, 2, 3, 4, 5]
    assert second.redelivered == [True] * 3 + [False] * 3


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_what_was_claimed_ahead_goes_back_as_it_was(broker: Broker, how: str) -> None:
    """What a consumer claimed and nobody saw goes back unchanged and in order, behind what was delivered."""
    queue = a_queue()
    send(broker.connect(), queue, *range(6))
    before = listed(broker, queue)
    reader = Reader(broker.connect(), queue)
    reader.connection.drain_events(timeout=5)
    reader.connection.drain_events(timeout=5)
    assert (reader.bodies, broker.held(), listed(broker, queue)) == ([0, 1], 6, [])
    if how == "closed":
        reader.connection.close()
        assert [json.loads(item)["headers"].get("redelivered") for item in listed(broker, queue)[:2]] == [
            True,
            True,
        ]
        assert (listed(broker, queue)[2:], broker.held()) == (before[2:], 0)
    else:
        reader.consumer.cancel()
        assert (listed(broker, queue), broker.held()) == (before[2:], 2)


@both
def test_a_message_is_fetched_directly(broker: Broker, kind: str) -> None:
    """``basic_get`` brings the next message or None, and holds it unless no acknowledgement is wanted."""
    queue, connection = a_queue(), broker.connect(kind)
    send(connection, queue, "first", "second")
    channel: Any = connection.channel()
    message = channel.basic_get(queue.name)
    assert (message.payload, broker.held()) == ("first", 1)
    message.ack()
    assert broker.held() == 0
    assert channel.basic_get(queue.name, no_ack=True).payload == "second"
    assert (broker.held(), channel.basic_get(queue.name)) == (0, None)


@both
def test_a_consumer_may_do_without_acknowledging(broker: Broker, kind: str) -> None:
    """With ``no_ack`` nothing is held, and nothing comes back when the channel closes."""
    queue = a_queue()
    send(broker.connect(kind), queue, *range(5))
    reader = Reader(broker.connect(kind), queue, no_ack=True)
    assert reader.take(5) == [0, 1, 2, 3, 4]
    reader.connection.close()
    assert (broker.held(), listed(broker, queue)) == (0, [])


@both
def test_queues_take_turns(broker: Broker, kind: str) -> None:
    """A queue with many messages does not keep another from being consumed."""
    many, few = a_queue(), a_queue()
    send(broker.connect(kind), many, *["many"] * 6)
    send(broker.connect(kind), few, *["few"] * 3)
    reader = Reader(broker.connect(kind), many, few, prefetch=1)
    for count in range(1, 10):
        reader.take(count)
        reader.got[-1].ack()
    assert sorted(reader.bodies[:4]) == ["few", "few", "many", "many"]
    assert reader.bodies[6:] == ["many"] * 3


@both
def test_urgent_messages_come_first(broker: Broker, kind: str) -> None:
    """Of what waits, the lowest number is first, and within a number what was sent first."""
    queue = a_queue()
    for number, priority in enumerate([9, 0, 6, 3, 9, 0]):
        send(broker.connect(kind), queue, [priority, number], priority=priority)
    reader = Reader(broker.connect(kind), queue)
    assert reader.take(6) == [[0, 1], [0, 5], [3, 3], [6, 2], [9, 0], [9, 4]]


@pytest.mark.parametrize("prefix", ["", "p:"])
@both
def test_a_queue_may_expire(broker: Broker, kind: str, prefix: str) -> None:
    """A queue with ``x-expires`` is gone when nobody used it for so long; what is sent or fetched keeps it."""
    queue = a_queue(expires=60.0)
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
    brief = a_queue(expires=0.2)
    brief(channel).queue_declare()
    producer.publish("soon gone", routing_key=brief.name, exchange="")
    until(lambda: not broker.redis.exists(f"{prefix}{brief.name}"), "the end of the queue")
    assert channel.basic_get(brief.name) is None


@both
def test_queues_are_declared_purged_and_deleted(broker: Broker, kind: str) -> None:
    """Purging tells how many messages there were, and a queue without any is not there for a passive look."""
    exchange = Exchange(f"e-{a_queue().name}")
    queue = Queue(a_queue().name, exchange, routing_key="r")
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
def test_a_fanout_reaches_all(broker: Broker, kind: str) -> None:
    """What is sent to a fanout exchange reaches every queue that is bound, on either transport."""
    exchange = Exchange(f"f-{a_queue().name}", type="fanout")
    readers = [
        Reader(broker.connect(each), Queue(a_queue().name, exchange, auto_delete=True))
        for each in ("ours", "kombu")
    ]
    sender = broker.connect(kind)

    def published() -> bool:  # a subscription takes a moment, and what was sent before it is gone
        sender.Producer(exchange=exchange).publish("to all")
        return all("to all" in reader.drain(0.1) for reader in readers)

    until(published, "both readers to hear")


@both
def test_a_batch_arrives_in_order(broker: Broker, kind: str) -> None:
    """Messages of a producer's batch arrive in the order of publishing, by priority, with none lost."""
    queue, connection = a_queue(), broker.connect(kind)
    with connection.channel() as channel:
        producer = connection.Producer(channel)
        with producer.batch(max_size=700):
            for number in range(2500):
                producer.publish(number, routing_key=queue.name, exchange="", priority=3 * (number % 2))
    reader = Reader(broker.connect(kind), queue, no_ack=True)
    assert reader.take(2500) == [*range(0, 2500, 2), *range(1, 2500, 2)]


# --- beside each other


@pytest.mark.parametrize(("sender", "receiver"), [("ours", "kombu"), ("kombu", "ours")])
@pytest.mark.parametrize("body", [{"a": [1, "ü"]}, "text", b"\x00\xff bytes"], ids=["json", "text", "bytes"])
def test_each_reads_what_the_other_sends(broker: Broker, sender: str, receiver: str, body: Any) -> None:
    """A body and its headers survive the way from either transport to the other, also packed."""
    queue = a_queue()
    send(broker.connect(sender), queue, body, headers={"x": [1, None]})
    send(broker.connect(sender), queue, body, compression="gzip")
    reader = Reader(broker.connect(receiver), queue, accept=["json", "text/plain", "application/data"])
    first, second = reader.take(2)
    assert (first, second) == (body, body)
    assert reader.got[0].headers["x"] == [1, None]


def test_both_consume_one_queue(broker: Broker) -> None:
    """Consumers of both kinds on one queue get everything exactly once, each its part."""
    queue = a_queue()
    readers = [Reader(broker.connect(kind), queue, prefetch=5) for kind in ("ours", "kombu")]
    with readers[0].going_on(), readers[1].going_on():
        for start in range(0, 400, 50):
            send(broker.connect("ours" if start % 100 else "kombu"), queue, *range(start, start + 50))
        until(lambda: sum(len(reader.got) for reader in readers) >= 400, "all messages")
    assert sorted([*readers[0].bodies, *readers[1].bodies]) == list(range(400))
    assert all(reader.got for reader in readers)


def test_kombus_consumer_restores_what_ours_noted(broker: Broker) -> None:
    """What ours holds is in Kombu's own notes, from which its consumer puts it back, still readable for both."""
    queue = a_queue()
    send(broker.connect(), queue, {"a": 1})
    Reader(broker.connect(), queue).take(1)
    stock: Any = broker.connect("kombu", visibility_timeout=0).channel()
    stock.qos.restore_visible(interval=1)
    assert broker.held() == 0
    for kind in ("kombu", "ours"):
        reader = Reader(broker.connect(kind), queue)
        assert reader.take(1) == [{"a": 1}]
        assert reader.redelivered == [True]
        reader.connection.close()


def test_ours_restores_what_kombus_consumer_left(broker: Broker) -> None:
    """A message that Kombu's consumer holds is put back after the foreign timeout, and not before it."""
    patient, impatient = a_queue(), a_queue()
    for queue in (patient, impatient):
        send(broker.connect("kombu"), queue, queue.name)
        Reader(broker.connect("kombu"), queue).take(1)
    options = {"visibility_timeout": 0.4, "unacked_restore_interval": 0.1}
    Reader(broker.connect(foreign_visibility_timeout=3600, **options), a_queue())
    send(broker.connect(), patient, "ours")
    dead = Reader(broker.connect(visibility_timeout=3600), patient)  # it renews nothing for a long time
    dead.take(1)
    until(lambda: listed(broker, patient), "what ours left to come back")
    assert broker.held() == 2
    Reader(broker.connect(foreign_visibility_timeout=0.5, **options), a_queue())
    until(lambda: broker.held() == 0, "what Kombu's left to come back")
    assert [json.loads(item)["headers"]["redelivered"] for item in listed(broker, impatient)] == [True]


# --- doorbells


def test_a_bell_wakes_at_once(broker: Broker) -> None:
    """An idle consumer gets what ours publishes at once, half of it in far less than a tenth of a second."""
    queue, sender = a_queue(), broker.connect()
    reader = Reader(broker.connect(), queue)
    waits = []
    with reader.going_on():
        for number in range(20):
            pause = time.monotonic() + 0.05  # until it is idle again
            until(lambda: time.monotonic() > pause, "a pause")  # noqa: B023 - asked within the turn
            sent_at = time.monotonic()
            send(sender, queue, number)
            until(lambda: len(reader.got) > number, "the message")  # noqa: B023 - the same
            waits.append(reader.times[-1] - sent_at)
    assert statistics.median(waits) < 0.05
    assert max(waits) < 1.0


def test_a_publisher_that_rings_no_bell_is_noticed(broker: Broker) -> None:
    """What Kombu's own producer sends is noticed by an idle consumer within about a second."""
    queue, sender = a_queue(), broker.connect("kombu")
    reader = Reader(broker.connect(), queue)
    with reader.going_on():
        for number in range(3):
            sent_at = time.monotonic()
            send(sender, queue, number)
            until(lambda: len(reader.got) > number, "the message", 5)  # noqa: B023 - asked within the turn
            assert reader.times[-1] - sent_at < 1.5


def test_a_bell_wakes_as_many_as_are_needed(broker: Broker) -> None:
    """Two idle consumers that may hold one message each both get one of two that are sent together, at once."""
    queue, connection = a_queue(), broker.connect()
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
def test_what_a_living_process_has_stays_its_own(broker: Broker, how: str) -> None:
    """However a message was taken, no other consumer is given it while the process that has it lives."""
    queue = a_queue()
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
        assert len(reader.got) == 1
    other = Reader(broker.connect(**LEASE), queue)
    assert other.drain(1.5) == []


def test_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """While a server is away its consumer says once that leases cannot be renewed, and not that they are."""
    with valkey() as url:
        broker = Broker(url)
        Reader(broker.connect(**LEASE | {"unacked_restore_interval": 0.4}), a_queue()).drain(0.1)

    def told(action: str) -> int:
        return sum(getattr(record, "action", "") == action for record in caplog.records)

    until(lambda: told("lease_failed"), "a word about it")
    ends_at = time.monotonic() + 1
    until(lambda: time.monotonic() > ends_at, "a second")
    broker.close()
    assert (told("lease_failed"), told("lease_back")) == (1, 0)


def test_what_was_claimed_and_not_read_in_time_is_let_go(broker: Broker) -> None:
    """An answer that a busy consumer reads when its lease is over brings nothing that another has by now."""
    busy, queue = None, a_queue()
    Reader(broker.connect(), queue).drain(0.1)  # from here on the server knows the script
    while busy is None or busy.got:  # whether the answer is there already is a matter of luck
        queue = a_queue()
        send(broker.connect(), queue, "once")
        busy = Reader(broker.connect(**LEASE), queue)
        with suppress(TimeoutError, Empty):
            busy.connection.drain_events(timeout=0)
    other = Reader(broker.connect(**LEASE), queue)
    assert other.take(1) == ["once"]
    assert busy.drain(0.5) == []
    other.got[0].ack()
    until(lambda: broker.redis.zscore(f"{broker.unacked}-index", other.got[0].delivery_tag) is None, "forgetting")


def test_thousands_of_old_foreign_messages_hide_nothing(broker: Broker) -> None:
    """What ours left comes back also where Kombu's consumers hold thousands of older messages."""
    queue, index = a_queue(), f"{broker.unacked}-index"
    send(broker.connect(), queue, "ours")
    Reader(broker.connect(visibility_timeout=3600), queue).take(1)
    noted = json.dumps([{"headers": {}, "properties": {}}, "", "nowhere"])
    broker.redis.hset(broker.unacked, mapping={f"stock-{number}": noted for number in range(2500)})
    long_ago = time.time() - 600
    broker.redis.zadd(index, {f"stock-{number}": long_ago for number in range(2500)})
    Reader(broker.connect(**LEASE), a_queue())
    until(lambda: listed(broker, queue), "what ours left to come back", 10)
    assert broker.held() == 2500


@pytest.mark.parametrize(
    "noted",
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
def test_a_note_that_nobody_can_read_stops_nothing(broker: Broker, noted: bytes) -> None:
    """A damaged note of another consumer becomes a dead letter, and what ours left still comes back."""
    queue, index = a_queue(), f"{broker.unacked}-index"
    letters = broker.redis.xlen("waooaw.dead")
    for tag in (b"lease:damaged:1.1", b"\xff\xfe"):
        broker.redis.hset(broker.unacked, tag, noted)
        broker.redis.zadd(index, {tag: 5})
    Reader(broker.connect(foreign_visibility_timeout=0.5, **LEASE), a_queue())
    send(broker.connect(), queue, "ours")
    Reader(broker.connect(visibility_timeout=3600), queue).take(1)
    until(lambda: listed(broker, queue), "what ours left to come back", 10)
    until(lambda: broker.held() == 0, "the dead letters")
    assert broker.redis.xlen("waooaw.dead") == letters + 2


# --- servers


@contextmanager
def cut_in_use(line: Any) -> Iterator[None]:
    """Let a connection find that it was cut when it next says something, though it had looked before."""
    cut, other_end = socket.socketpair()
    cut.shutdown(socket.SHUT_WR)
    with cut, other_end:
        if line._sock is not None:
            line._sock.close()
        line._sock = cut
        yield


def test_what_was_handled_is_forgotten_over_another_line_when_one_is_cut(broker: Broker) -> None:
    """A line that is cut as the channel is closed leaves nothing noted that would be handled again."""
    queue = a_queue()
    send(broker.connect(), queue, "handled")
    reader = Reader(broker.connect(), queue, prefetch=1)
    assert reader.take(1) == ["handled"]
    line = reader.channel.scripts_client.connection
    with cut_in_use(line), pytest.raises(RedisError):
        reader.got[0].ack()
    with cut_in_use(line):
        reader.connection.close()
    assert (broker.held(), listed(broker, queue)) == (0, [])


def test_a_prefix_of_all_keys_is_kept(broker: Broker) -> None:
    """With ``global_keyprefix`` everything works, and no key is without it, on both transports alike."""
    prefix = f"{a_queue().name}:"
    queue = a_queue()
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
    for message in reader.got:
        message.ack()
    assert reader.take(8)[4:] == ["from ours", ["ours", 0], ["ours", 1], ["ours", 2]]
    reader.got[4].ack()
    reader.got[5].requeue()
    reader.connection.close()
    stock = Reader(broker.connect("kombu", global_keyprefix=prefix), queue)
    assert sorted(map(str, stock.take(3))) == ["['ours', 0]", "['ours', 1]", "['ours', 2]"]
    assert broker.redis.xlen(f"{prefix}waooaw.dead") == 1
    stray = {
        key for key in set(broker.redis.scan_iter(count=10_000)) - before if not key.startswith(prefix.encode())
    }
    assert not stray


def test_a_full_server_loses_nothing() -> None:
    """A server at its memory limit refuses to publish; what waits is consumed, requeued and acknowledged."""
    with valkey() as url:
        broker = Broker(url)
        queue, connection = a_queue(), broker.connect()
        send(connection, queue, *range(100))
        reader = Reader(broker.connect(), queue, prefetch=10)
        reader.take(10)
        broker.redis.config_set("maxmemory", "100kb")
        for size in (1, 100_000):
            with pytest.raises((OperationalError, RedisError)):
                send(connection, queue, "x" * size)
        reader.got[0].requeue()
        done = 1
        while done < 101:
            reader.take(done + 1)
            reader.got[done].ack()
            done += 1
        assert sorted(reader.bodies) == sorted([*range(100), 0])
        until(lambda: broker.held() == 0, "forgetting")
        broker.redis.config_set("maxmemory", 0)
        send(connection, queue, "again")
        assert reader.take(102)[-1] == "again"
        broker.close()


def test_a_server_that_forgets_the_scripts_loses_nothing(broker: Broker) -> None:
    """SCRIPT FLUSH in the midst of sending, batches, consuming and restoring loses and doubles nothing."""
    queue, connection = a_queue(), broker.connect()
    reader = Reader(broker.connect(**LEASE), queue, prefetch=7)
    with reader.going_on(), connection.channel() as channel:
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
        until(lambda: len(reader.got) >= 600, "all messages")
    assert reader.bodies == list(range(600))
    until(lambda: broker.held() == 0, "forgetting")


def test_a_server_is_reached_over_tcp() -> None:
    """A redis:// URL and a socket of the same server carry the same messages."""
    port = free_port()
    with valkey(port=port) as url:
        broker, queue = Broker(url), a_queue()
        [path] = broker.redis.config_get("unixsocket").values()
        other = f"redis+socket://{path}"
        send(broker.connect(), queue, "over TCP")
        send(broker.connect(url=other), queue, "over a socket")
        for address in (other, url):
            reader = Reader(broker.connect(url=address), queue, prefetch=1)
            reader.take(1)
            reader.got[0].ack()
            reader.connection.close()
        assert (listed(broker, queue), broker.held()) == ([], 0)
        broker.close()


def test_messages_without_notes_are_refused(broker: Broker) -> None:
    """An option that would lose messages is refused with a sentence that says what to do."""
    with pytest.raises(ValueError, match="waooaw_redis_transport"):
        broker.connect(ack_emulation=False).channel()


def test_the_doorbell_is_no_message(broker: Broker) -> None:
    """The key of a doorbell is beside the queue's lists, holds at most one element, and expires by itself."""
    queue = a_queue()
    send(broker.connect(), queue, *range(5))
    bell = f"{queue.name}{SEPARATOR}bell"
    assert broker.redis.llen(bell) == 1
    assert 0 < broker.redis.ttl(bell) <= 60
    with Connection(broker.url) as connection, connection.channel() as channel:
        assert channel.queue_declare(queue.name).message_count == 5
