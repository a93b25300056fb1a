"""What a sender knows about each of many messages on RabbitMQ, however the publish ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from proxy import Proxy, proxied
from support import Broker, queue_length, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.broker.amqp.batch import PartlyPublished
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.messages.queues import agent_queue

pytestmark = pytest.mark.rabbitmq

#: Prints the id of each message that the broker has confirmed.
SENDER = """
    import os
    from waooaw_celery import Message, MessageBus, create_app

    app = create_app(broker_url=os.environ["URL"], result_backend=os.environ["REDIS"], waooaw_sender="tests")
    app.conf.waooaw_agents = [os.environ["AGENT"]]
    bus = MessageBus(app)
    while True:
        messages = [Message(from_agent="tests", to_agent=os.environ["AGENT"]) for _ in range(20)]
        for receipt in bus.send_many(messages):
            print(receipt.message_id, flush=True)
"""


@pytest.fixture
def app(rabbitmq_broker: Broker) -> Iterator[AgentApp]:
    with closing(rabbitmq_broker.app()) as app:
        yield app


@pytest.fixture
def proxy(rabbitmq_broker: Broker) -> Iterator[Proxy]:
    """A proxy in front of RabbitMQ."""
    with proxied(rabbitmq_broker.url) as proxy:
        yield proxy


def messages(to: str, count: int, **fields: Any) -> list[Message]:
    """Return messages to an agent."""
    return [Message(from_agent="tests", to_agent=to, **fields) for _ in range(count)]


def ids(sent: list[Message]) -> set[str]:
    """Return the ids of messages."""
    return {message.message_id for message in sent}


def sends(bus: MessageBus, sent: list[Message]) -> bool:
    """Send messages, and return whether the broker confirmed them."""
    with suppress(BrokerUnavailable):
        return len(bus.send_many(sent)) == len(sent)
    return False


def taken(app: AgentApp, agent: str) -> list[str]:
    """Take all messages of an agent's queue, and return their ids."""
    found = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        while (message := channel.basic_get(agent_queue(agent).name, no_ack=True)) is not None:
            found.append(message.properties["correlation_id"])
    return found


def test_returned_messages_are_published_again_and_the_others_not(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """One of two queues was deleted: it is declared again, and each message arrives once."""
    present, absent = rabbitmq_broker.name(), rabbitmq_broker.name()
    app.conf.waooaw_agents = [present, absent]
    bus = MessageBus(app)
    bus.send_many([*messages(present, 1), *messages(absent, 1)])
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(absent)(channel).delete()
    arrive, return_ = messages(present, 150), messages(absent, 150)
    mixed = [message for pair in zip(arrive, return_, strict=True) for message in pair]
    assert {receipt.status for receipt in bus.send_many(mixed)} == {MessageStatus.SENT}
    assert sorted(taken(app, present)[1:]) == sorted(ids(arrive))
    assert sorted(taken(app, absent)) == sorted(ids(return_))


def test_a_queue_that_is_gone_and_one_that_is_full_are_told_apart(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """What RabbitMQ refuses for another reason is not published again, and neither is the rest of its batch."""
    full, absent = rabbitmq_broker.name(), rabbitmq_broker.name()
    app.conf.waooaw_agents = [full, absent]
    bus = MessageBus(app)
    bus.send_many([*messages(full, 1), *messages(absent, 1)])
    limited = {"x-max-length": 1, "x-overflow": "reject-publish", "x-max-priority": 10}
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(absent)(channel).delete()
        agent_queue(full)(channel).delete()
        queue: Any = agent_queue(full)(channel)
        queue.queue_arguments = limited
        queue.max_priority = None
        queue.declare()
    to_full, to_absent = messages(full, 2), messages(absent, 1)
    with pytest.raises(BrokerUnavailable, match=r"2 of 3 messages.*not confirmed") as failed:
        bus.send_many([*to_full, *to_absent])
    assert failed.value.message_ids == (to_full[0].message_id,)
    assert bus.receipt(to_full[1].message_id).status is MessageStatus.PENDING
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(full)(channel).delete()


def test_a_publish_after_a_returned_one_gets_its_own_confirm(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """Over the same channel, the confirm of a returned message is not taken for that of the next one."""
    present, absent = rabbitmq_broker.name(), rabbitmq_broker.name()
    app.conf.waooaw_agents = [present, absent]
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        agent_queue(present)(channel).declare()
        for key, raises in ((absent, True), (present, False), (absent, True), (absent, True)):
            body = channel.prepare_message("{}", properties={"correlation_id": key})
            options = {"exchange": "", "routing_key": agent_queue(key).name, "mandatory": True}
            if raises:
                with pytest.raises(Exception, match="NO_ROUTE"):
                    channel.basic_publish(body, **options)
            else:
                channel.basic_publish(body, **options)
    until(lambda: queue_length(app, present) == 1, "the one message that has a queue")


def test_refused_messages_of_a_batch_are_known(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """A queue that is full refuses all but the first two messages of a batch."""
    queue = Queue(
        rabbitmq_broker.name(),
        Exchange(""),
        queue_arguments={"x-max-length": 2, "x-overflow": "reject-publish"},
        auto_delete=True,
    )
    with app.producer_or_acquire() as producer, app.connection_for_read() as connection:
        bound: Any = queue(connection.default_channel)
        bound.declare()
        batch: Any = producer.channel.create_publish_batch(10)
        for number in range(5):
            body = producer.channel.prepare_message("{}", properties={"correlation_id": f"n{number}"})
            batch.publish(body, exchange="", routing_key=queue.name)
        with pytest.raises(PartlyPublished, match="refused 3 of 5 messages") as failed:
            batch.flush()
        assert failed.value.confirmed == {"n0", "n1"}
        assert set(failed.value.refused) == {"n2", "n3", "n4"}
        bound.delete()


def test_a_returned_message_without_an_id_is_not_taken_for_another(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """It is published alone, since RabbitMQ returns it without saying which one it is."""
    queue = Queue(rabbitmq_broker.name(), Exchange(""), auto_delete=True)
    with app.producer_or_acquire() as producer:
        bound: Any = queue(producer.channel)
        bound.declare()
        batch: Any = producer.channel.create_publish_batch(10)
        batch.publish(producer.channel.prepare_message("{}"), routing_key=queue.name, mandatory=True)
        unroutable = producer.channel.prepare_message("{}")
        with pytest.raises(PartlyPublished, match="NO_ROUTE"):
            batch.publish(unroutable, routing_key=rabbitmq_broker.name(), mandatory=True)
        bound.delete()


def test_a_connection_that_is_cut_half_way_loses_and_repeats_nothing(
    rabbitmq_broker: Broker, proxy: Proxy
) -> None:
    """The confirms are lost: the ids of the error are in the queue, and none of the messages is there twice."""
    name = rabbitmq_broker.name()
    with closing(rabbitmq_broker.app(broker_url=proxy.url, waooaw_agents=[name])) as app:
        bus = MessageBus(app)
        bus.send_many(messages(name, 1))
        sent = messages(name, 300, payload="x" * 2000)
        marked = sent[250].message_id
        proxy.lose_answer(marked.encode())
        with pytest.raises(BrokerUnavailable) as failed:
            bus.send_many(sent)
        assert proxy.lost.is_set()
        assert failed.value.uncertain
        with closing(rabbitmq_broker.app()) as direct:
            found = taken(direct, name)
        assert len(found) == len(set(found))
        assert set(failed.value.message_ids) <= set(found)
        for message in sent:
            status = bus.receipt(message.message_id).status
            assert status is (
                MessageStatus.SENT if message.message_id in failed.value.message_ids else MessageStatus.PENDING
            )

        def are_sent() -> bool:
            """Send over a new connection; the circuit of the lost one is open for a moment."""
            with suppress(BrokerUnavailable):
                return len(bus.send_many(messages(name, 3))) == 3
            return False

        until(are_sent, "a new connection", seconds=10)


def test_a_connection_that_ended_while_idle_is_replaced(rabbitmq_broker: Broker, proxy: Proxy) -> None:
    """Before anything is written, the sender sees that the connection has ended: every message arrives once."""
    name = rabbitmq_broker.name()
    with closing(rabbitmq_broker.app(broker_url=proxy.url, waooaw_agents=[name])) as app:
        bus = MessageBus(app)
        bus.send_many(messages(name, 1))
        for count in (1, 50):
            proxy.cut()
            until(lambda: proxy.connections == 0, "the end of the connections")
            sent = messages(name, count)
            assert len(bus.send_many(sent)) == count
            with closing(rabbitmq_broker.app()) as direct:
                found = taken(direct, name)
            assert ids(sent) <= set(found)
            assert len(found) == len(set(found))


def test_a_frozen_broker_is_given_each_message_once(rabbitmq_broker: Broker, proxy: Proxy) -> None:
    """The call ends in time. When the broker goes on, it has no message twice."""
    name = rabbitmq_broker.name()
    with closing(rabbitmq_broker.app(broker_url=proxy.url, waooaw_agents=[name])) as app:
        bus = MessageBus(app)
        bus.send_many(messages(name, 1))
        proxy.freeze(also_new=True)
        with pytest.raises(BrokerUnavailable, match="did not confirm the publish in time") as failed:
            bus.send_many(messages(name, 10))  # few enough for one piece of the proxy
        assert failed.value.message_ids == ()
        proxy.thaw()  # what was in the socket arrives now, or is lost with its connection
        until(lambda: sends(bus, messages(name, 1)), "a confirmed publish")
        with closing(rabbitmq_broker.app()) as direct:
            found = taken(direct, name)
        assert len(found) == len(set(found))


def test_messages_whose_confirm_a_killed_sender_saw_are_in_the_queue(
    rabbitmq_broker: Broker, app: AgentApp
) -> None:
    """SIGKILL at any moment: every message that ``send_many`` returned is there, once."""
    name = rabbitmq_broker.name()
    env = {**os.environ, "URL": rabbitmq_broker.url, "REDIS": rabbitmq_broker.redis_url, "AGENT": name}
    command = [sys.executable, "-c", textwrap.dedent(SENDER)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        seen = [sender.stdout.readline().strip() for _ in range(70)]
        sender.kill()
        seen += [line.strip() for line in sender.stdout if line.endswith("\n")]
    found = taken(app, name)
    assert set(seen) <= set(found)
    assert len(found) == len(set(found))


def test_messages_sent_together_are_handled(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """A worker reads what was written in one piece: headers, payloads of several frames, and empty ones."""
    name = rabbitmq_broker.name()
    rabbitmq_broker.start(name, app)
    sent = [*messages(name, 20), *messages(name, 2, payload="ü" * 300_000, compression="none")]
    MessageBus(app).send_many(sent)
    assert {settled(app, message.message_id) for message in sent} == {MessageStatus.HANDLED}


def test_an_unconfirmed_channel_publishes_one_by_one(rabbitmq_broker: Broker) -> None:
    """A project that sets ``confirm_publish`` to False gets no batches, whose outcomes would be unknown."""
    options = {"broker_transport_options": {"confirm_publish": False}}
    with closing(rabbitmq_broker.app(**options)) as app, app.producer_or_acquire() as producer:
        assert producer.channel is not None
        assert not producer.supports_batch_publish


def test_the_error_of_one_returned_message_is_kombus(rabbitmq_broker: Broker, app: AgentApp) -> None:
    """Code that publishes by Kombu gets an error that Kombu knows."""
    with (
        app.producer_or_acquire() as producer,
        pytest.raises((OperationalError, *producer.connection.channel_errors)),
    ):
        producer.publish({}, exchange="", routing_key=rabbitmq_broker.name(), mandatory=True, retry=False)
