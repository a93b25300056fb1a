"""The number of dead letters is limited, and a broker that accepts none does not block failed messages."""

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
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end, valkey

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A server that only this test uses."""
    with valkey() as url:
        yield Broker(url, url, tmp_path)


@contextmanager
def running_agent(broker: Broker, app: AgentApp, **settings: Any) -> Iterator[str]:
    """Run an agent while the block runs, and yield its name."""
    name = broker.name()
    process = broker.start(name, app, **settings)
    try:
        yield name
    finally:
        end(process)


def test_oldest_dead_letters_make_room_on_redis(own_broker: Broker) -> None:
    """With a limit of 100 there are about 100 at most, whatever adds them, and the newest is among them."""
    with (
        closing(own_broker.app(waooaw_dead_letters_max=100)) as app,
        Redis.from_url(store_url(own_broker.url)) as client,
    ):
        for number in range(350):
            app.dead_letters.add("agent.x", f"number {number}", b"raw")
        assert 100 <= client.xlen(DEAD_LETTERS_KEY) < 250
        assert app.dead_letters.list(limit=1)[0].reason == "number 349"
        queue = agent_queue("x")
        for _ in range(300):
            client.lpush(queue.name, b"garbage")
        with app.connection_for_read() as connection, connection.channel() as channel:
            assert queue(channel).get() is None
        assert 100 <= client.xlen(DEAD_LETTERS_KEY) < 250
        assert app.dead_letters.list(limit=1)[0].reason == "it is not a message"


@pytest.mark.rabbitmq
def test_dead_letter_queue_keeps_its_limit_on_rabbitmq(amqp_url: str, redis_url: str, tmp_path: Path) -> None:
    """The queue is created with a limit. Another setting later does not keep dead letters from being stored."""
    reason = uuid4().hex
    with closing(Broker(amqp_url, redis_url, tmp_path).app()) as app:
        storages = [AmqpDeadLetterStorage(app, max_count) for max_count in (100_000, 50)]
        for storage in storages:
            storage.add("agent.x", reason, b"raw")
        found = storages[1].list(DeadLetterFilter(reason=reason), 10)
        assert [each.raw for each in found] == [b"raw", b"raw"]
        assert storages[0].remove([each.id for each in found]) == {each.id for each in found}
        assert not storages[1].list(DeadLetterFilter(reason=reason), 10)
        # The broker itself keeps the limit: it refuses a declaration with another one.
        with app.connection_for_write() as connection, connection.channel() as channel:
            bound = {"x-max-length": 50}
            refused = pytest.raises(connection.channel_errors, match="x-max-length")
            with refused:
                channel.queue_declare(DEAD_LETTERS_KEY, durable=True, arguments=bound, auto_delete=False)


def test_failure_is_recorded_without_a_dead_letter(own_broker: Broker) -> None:
    """The receipt is FAILED, the log names the dead letter that could not be stored, and the worker continues."""
    with closing(own_broker.app()) as app, Redis.from_url(store_url(own_broker.url)) as client:
        client.set(DEAD_LETTERS_KEY, "not a stream")
        with running_agent(own_broker, app) as name:
            message = Message(from_agent="tests", to_agent=name, payload={"fail": "never"})
            MessageBus(app).send(message)
            assert settled(app, message.message_id) is MessageStatus.FAILED
            assert Requests(app).request(name, "echo", {"value": 1}) == 1
            log = (own_broker.folder / f"{name}.log").read_text()
            assert f"the dead letter of {message.message_id}" in log
            with pytest.raises(BrokerUnavailable, match="could not read the dead letters"):
                app.dead_letters.list()


def test_kombu_transport_uses_the_same_stream(own_broker: Broker) -> None:
    """On Kombu's transport, unreadable messages and failures become dead letters in the same stream."""
    settings: dict[str, Any] = {"waooaw_redis_transport": "kombu"}
    with closing(own_broker.app(**settings)) as app, running_agent(own_broker, app, **settings) as name:
        bad = app.signature(f"{name}.command", args=({"fail": "never"},)).delay()
        assert settled(app, bad.id) is MessageStatus.FAILED
        with app.connection_for_write() as connection, connection.channel() as channel:
            for headers in ({"task": f"{name}.command", "id": "early", "eta": "tomorrow"}, {"id": "none"}):
                message = channel.prepare_message("[[1],{},{}]", 3, "application/json", "utf-8", headers, {})
                channel.basic_publish(message, exchange="", routing_key=agent_queue(name).name)
        until(lambda: len(app.dead_letters.list(agent=name)) == 3, "three dead letters")
        assert {each.message_id for each in app.dead_letters.list(agent=name)} == {bad.id, "early", "none"}
        assert Requests(app).request(name, "echo", {"value": 1}) == 1


@pytest.mark.slow
def test_message_is_acknowledged_after_its_dead_letter_is_stored(own_broker: Broker) -> None:
    """While the broker accepts no dead letter, the message stays and the worker continues."""
    settings: dict[str, Any] = {"waooaw_redis_transport": "kombu"}
    with (
        closing(own_broker.app(**settings)) as app,
        Redis.from_url(store_url(own_broker.url)) as client,
        running_agent(own_broker, app, **settings) as name,
    ):
        client.set(DEAD_LETTERS_KEY, "not a stream")
        with app.connection_for_write() as connection, connection.channel() as channel:
            headers = {"task": f"{name}.command", "id": "early", "eta": "tomorrow"}
            message = channel.prepare_message("[[1],{},{}]", 3, "application/json", "utf-8", headers, {})
            channel.basic_publish(message, exchange="", routing_key=agent_queue(name).name)
        log = own_broker.folder / f"{name}.log"
        until(lambda: "stays unacknowledged until its dead letter is stored" in log.read_text(), "the warning")
        assert any(b"early" in entry for entry in client.hvals("unacked"))
        client.delete(DEAD_LETTERS_KEY)
        until(lambda: app.dead_letters.list(agent=name), "the dead letter")
        until(lambda: not client.hvals("unacked"), "the acknowledgement")
        [dead_letter] = app.dead_letters.list(agent=name)
        assert dead_letter.message_id == "early"
        assert Requests(app).request(name, "echo", {"value": 1}) == 1
