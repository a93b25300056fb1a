"""Dead letters have a bound, and a broker that takes none does not hold up what failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.dead_letters.amqp import AmqpDeadLetterStorage
from waooaw_celery.broker.dead_letters.storage import DeadLetterFilter
from waooaw_celery.broker.redis.parking import DEAD_KEY
from waooaw_celery.embedded import end, valkey
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    """A server of this test's own."""
    with valkey() as url:
        yield Broker(url, url, tmp_path)


@contextmanager
def running(broker: Broker, app: AgentApp, **settings: Any) -> Iterator[str]:
    """Run an agent while the block runs, and give its name."""
    name = broker.name()
    process = broker.start(name, app, **settings)
    try:
        yield name
    finally:
        end(process)


def test_the_oldest_letters_make_room_on_redis(own: Broker) -> None:
    """With a bound of 100 there are no more than about 100, whoever adds them, and the newest is among them."""
    with closing(own.app(waooaw_dead_letters_max=100)) as app, Redis.from_url(store_url(own.url)) as client:
        for number in range(350):
            app.dead_letters.add("agent.x", f"number {number}", b"raw")
        assert 100 <= client.xlen(DEAD_KEY) < 250
        assert app.dead_letters.list(limit=1)[0].reason == "number 349"
        queue = agent_queue("x")
        for _ in range(300):
            client.lpush(queue.name, b"garbage")
        with app.connection_for_read() as connection, connection.channel() as channel:
            assert queue(channel).get() is None
        assert 100 <= client.xlen(DEAD_KEY) < 250
        assert app.dead_letters.list(limit=1)[0].reason == "it is no message"


@pytest.mark.rabbitmq
def test_the_queue_of_letters_keeps_its_bound(amqp_url: str, redis_url: str, tmp_path: Path) -> None:
    """It has one from its first letter on; another setting later does not keep a letter from being kept."""
    reason = uuid4().hex
    with closing(Broker(amqp_url, redis_url, tmp_path).app()) as app:
        stores = [AmqpDeadLetterStorage(app, most) for most in (100_000, 50)]
        for store in stores:
            store.add("agent.x", reason, b"raw")
        found = stores[1].list(DeadLetterFilter(reason=reason), 10)
        assert [letter.raw for letter in found] == [b"raw", b"raw"]
        assert stores[0].remove([letter.id for letter in found]) == {letter.id for letter in found}
        assert not stores[1].list(DeadLetterFilter(reason=reason), 10)
        # The broker itself holds the bound: declared otherwise, it refuses.
        with app.connection_for_write() as connection, connection.channel() as channel:
            bound = {"x-max-length": 50}
            refused = pytest.raises(connection.channel_errors, match="x-max-length")
            with refused:
                channel.queue_declare(DEAD_KEY, durable=True, arguments=bound, auto_delete=False)


def test_what_failed_has_failed_also_when_no_letter_of_it_can_be_kept(own: Broker) -> None:
    """The receipt says FAILED, the log that there is no letter, and the worker goes on."""
    with closing(own.app()) as app, Redis.from_url(store_url(own.url)) as client:
        client.set(DEAD_KEY, "no stream")
        with running(own, app) as name:
            message = Message(from_agent="tests", to_agent=name, payload={"fail": "never"})
            MessageBus(app).send(message)
            assert settled(app, message.message_id) is MessageStatus.FAILED
            assert Requests(app).request(name, "echo", {"value": 1}) == 1
            assert f"no dead letter is kept of {message.message_id}" in (own.folder / f"{name}.log").read_text()
            with pytest.raises(BrokerUnavailable, match="could not read the dead letters"):
                app.dead_letters.list()


def test_kombus_own_transport_keeps_letters_in_the_same_stream(own: Broker) -> None:
    """What its worker cannot read, and what a handler gave up, is found where this package's transport parks."""
    settings: dict[str, Any] = {"waooaw_redis_transport": "kombu"}
    with closing(own.app(**settings)) as app, running(own, app, **settings) as name:
        bad = app.signature(f"{name}.command", args=({"fail": "never"},)).delay()
        assert settled(app, bad.id) is MessageStatus.FAILED
        with app.connection_for_write() as connection, connection.channel() as channel:
            for headers in ({"task": f"{name}.command", "id": "early", "eta": "tomorrow"}, {"id": "none"}):
                message = channel.prepare_message("[[1],{},{}]", 3, "application/json", "utf-8", headers, {})
                channel.basic_publish(message, exchange="", routing_key=agent_queue(name).name)
        until(lambda: len(app.dead_letters.list(agent=name)) == 3, "three letters")
        assert {letter.message_id for letter in app.dead_letters.list(agent=name)} == {bad.id, "early", "none"}
        assert Requests(app).request(name, "echo", {"value": 1}) == 1


def test_a_message_is_not_acknowledged_before_its_letter_is_safe(own: Broker) -> None:
    """While the broker takes no letter the message stays, the worker goes on, and later there is one letter."""
    settings: dict[str, Any] = {"waooaw_redis_transport": "kombu"}
    with (
        closing(own.app(**settings)) as app,
        Redis.from_url(store_url(own.url)) as client,
        running(own, app, **settings) as name,
    ):
        client.set(DEAD_KEY, "no stream")
        with app.connection_for_write() as connection, connection.channel() as channel:
            headers = {"task": f"{name}.command", "id": "early", "eta": "tomorrow"}
            message = channel.prepare_message("[[1],{},{}]", 3, "application/json", "utf-8", headers, {})
            channel.basic_publish(message, exchange="", routing_key=agent_queue(name).name)
        log = own.folder / f"{name}.log"
        until(lambda: "stays unacknowledged until its dead letter is stored" in log.read_text(), "the warning")
        assert any(b"early" in noted for noted in client.hvals("unacked"))
        client.delete(DEAD_KEY)
        until(lambda: app.dead_letters.list(agent=name), "the letter")
        until(lambda: not client.hvals("unacked"), "the acknowledgement")
        [letter] = app.dead_letters.list(agent=name)
        assert letter.message_id == "early"
        assert Requests(app).request(name, "echo", {"value": 1}) == 1
