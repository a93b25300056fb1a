"""Messages between real processes, on every broker."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from celery import signals
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, NoHandler, UnknownAgent, UnknownMessage
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.reference_clock import ReferenceClock

#: Its tests list dead letters: those of RabbitMQ are shared.
pytestmark = pytest.mark.usefixtures("dead_letters_alone")


def seen(app: AgentApp, agent: str, message_id: str) -> dict[str, object]:
    """Return what the agent received of a message."""
    [facts] = [facts for facts in Requests(app).request(agent, "seen") if facts["message_id"] == message_id]
    return facts


def test_a_message_arrives_as_it_was_sent(app: AgentApp, probe: str) -> None:
    """The handler gets the sender, type, payload, priority and times that the sender set."""
    message = Message(from_agent="tests", to_agent=probe, payload={"n": [1, "ü", None]}, priority=Priority.HIGH)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert seen(app, probe, message.message_id) == {
        "from": "tests",
        "to": probe,
        "type": "command",
        "payload": {"n": [1, "ü", None]},
        "priority": "HIGH",
        "message_id": message.message_id,
        "correlation_id": message.message_id,
        "conversation_id": message.message_id,
        "causation_id": None,
        "sent_at": message.sent_at.isoformat(),
        "expires_at": message.expires_at and message.expires_at.isoformat(),
    }


def test_a_message_leaves_no_result(app: AgentApp, probe: str, broker: Broker) -> None:
    """The result backend stores nothing for a message, even one sent with ``.delay``."""
    message = Message(from_agent="tests", to_agent=probe)
    MessageBus(app).send(message)
    delayed = app.signature(f"{probe}.command", args=({},)).delay()
    with connect(store_url(None, broker.redis_url)) as client:
        for message_id in (message.message_id, delayed.id):
            assert settled(app, message_id) is MessageStatus.HANDLED
            assert client.exists(f"celery-task-meta-{message_id}") == 0


def test_each_type_goes_to_its_own_handler(app: AgentApp, probe: str) -> None:
    """The handler of ACK gets an ACK; the handler of COMMAND does not."""
    message = Message(from_agent="tests", to_agent=probe, message_type=MessageType.ACK)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert seen(app, probe, message.message_id)["type"] == "ack"


def test_the_receipt_has_the_error_of_a_failed_message(app: AgentApp, probe: str) -> None:
    """An exception of the handler makes the message FAILED, with its class and text."""
    message = Message(from_agent="tests", to_agent=probe, payload={"fail": "no such invoice"})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    receipt = MessageBus(app).receipt(message.message_id)
    assert receipt.error == "ValueError: no such invoice"
    assert receipt.attempts == 1
    assert receipt.sent_at <= (receipt.delivered_at or receipt.sent_at) <= (receipt.finished_at or receipt.sent_at)


def test_a_retried_message_counts_its_attempts_and_ends_once(app: AgentApp, probe: str) -> None:
    """After two retries, one message with one envelope has three attempts and is HANDLED."""
    message = Message(from_agent="tests", to_agent=probe, payload={"fail_times": 2}, priority=Priority.URGENT)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert MessageBus(app).receipt(message.message_id).attempts == 3
    attempts = [f for f in Requests(app).request(probe, "seen") if f["message_id"] == message.message_id]
    assert len(attempts) == 3
    assert attempts[0] == attempts[2]


@pytest.mark.parametrize("broker", ["ledger"], indirect=True)  # Celery takes five seconds to notice each death
def test_a_handler_that_kills_its_process_is_tried_four_times(app: AgentApp, other: str) -> None:
    """After its retries the message is DEAD and has a dead letter, and the worker goes on."""
    killer = Message(from_agent="tests", to_agent=other, payload={"kill": True})
    MessageBus(app).send(killer)
    assert settled(app, killer.message_id) is MessageStatus.DEAD
    receipt = MessageBus(app).receipt(killer.message_id)
    assert receipt.attempts == 4
    [dead_letter] = app.dead_letters.list(agent=other, reason="WorkerLostError")
    assert (dead_letter.message_id, dead_letter.reason) == (killer.message_id, receipt.error)
    assert "WorkerLostError" in (receipt.error or "")
    assert Requests(app).request(other, "echo", {"value": 1}) == 1


def test_an_expired_message_is_never_handled(app: AgentApp, other: str) -> None:
    """A message that waits past its expiry behind another one becomes EXPIRED."""
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=other, payload={"sleep": 1.0}))
    late = Message(from_agent="tests", to_agent=other, ttl_seconds=0.3)
    bus.send(late)
    assert settled(app, late.message_id) is MessageStatus.EXPIRED
    assert bus.receipt(late.message_id).attempts == 0
    assert [f for f in Requests(app).request(other, "seen") if f["message_id"] == late.message_id] == []


def test_a_message_waits_for_an_agent_that_does_not_run(
    app: AgentApp, broker: Broker, start: Callable[..., str]
) -> None:
    """The messages of a known agent are SENT until a worker of it starts."""
    agent = broker.name()
    app.conf.waooaw_agents = [agent]
    bus = MessageBus(app)
    message = Message(from_agent="tests", to_agent=agent)
    assert bus.send(message).status is MessageStatus.SENT
    start(agent)
    assert settled(app, message.message_id) is MessageStatus.HANDLED


def test_a_message_sent_by_a_handler_is_linked_to_its_cause(app: AgentApp, probe: str) -> None:
    """It has the same conversation and correlation id, and the causation id of the handled message."""
    first = Message(
        from_agent="tests",
        to_agent=probe,
        correlation_id="order-7",
        payload={"forward_to": probe, "forward": {"step": 2}},
    )
    MessageBus(app).send(first)
    until(lambda: any(_caused(facts, first) for facts in Requests(app).request(probe, "seen")), "forwarding")
    [second] = [facts for facts in Requests(app).request(probe, "seen") if _caused(facts, first)]
    assert second["from"] == probe
    assert second["correlation_id"] == "order-7"
    assert second["conversation_id"] == first.message_id


def test_delay_fills_in_queue_priority_and_sender(app: AgentApp, probe: str) -> None:
    """A plain ``.delay`` in a handler sends a full message: its sender, NORMAL, an expiry, the conversation."""
    first = Message(from_agent="tests", to_agent=probe, payload={"delay_to": probe})
    MessageBus(app).send(first)
    until(lambda: any(_caused(facts, first) for facts in Requests(app).request(probe, "seen")), "the .delay")
    [second] = [facts for facts in Requests(app).request(probe, "seen") if _caused(facts, first)]
    assert second["from"] == probe
    assert second["payload"] == {"by": "delay"}
    assert second["priority"] == "NORMAL"
    assert datetime.fromisoformat(str(second["expires_at"])) > datetime.now(UTC) + timedelta(seconds=200)
    assert second["conversation_id"] == first.message_id


def _caused(facts: dict[str, object], first: Message) -> bool:
    return facts["causation_id"] == first.message_id


def test_broadcast_gives_each_recipient_a_message_and_a_receipt(app: AgentApp, probe: str, other: str) -> None:
    """Each agent gets one message, and all have one correlation id."""
    receipts = MessageBus(app).broadcast("tests", [probe, other, probe], {"hello": "all"})
    assert list(receipts) == [probe, other]
    assert {settled(app, receipt.message_id) for receipt in receipts.values()} == {MessageStatus.HANDLED}
    assert len({receipt.correlation_id for receipt in receipts.values()}) == 1


def test_send_many_refuses_all_when_one_recipient_is_unknown(app: AgentApp, probe: str) -> None:
    """If one message of a batch cannot be sent, none is."""
    good = Message(from_agent="tests", to_agent=probe)
    with pytest.raises(UnknownAgent, match="agent 'nobody' is not known"):
        MessageBus(app).send_many([good, Message(from_agent="tests", to_agent="nobody")])
    with pytest.raises(UnknownMessage):
        MessageBus(app).receipt(good.message_id)


def test_send_many_refuses_expired_and_repeated_messages(app: AgentApp, probe: str) -> None:
    """Both are found before anything is sent."""
    good = Message(from_agent="tests", to_agent=probe)
    over = Message(from_agent="tests", to_agent=probe, sent_at=datetime.now(UTC) - timedelta(hours=1))
    for batch in ([good, over], [good, good]):
        with pytest.raises(InvalidMessage, match=r"expired before it was sent|occurs 2 times"):
            MessageBus(app).send_many(batch)
    with pytest.raises(UnknownMessage):
        MessageBus(app).receipt(good.message_id)


@pytest.mark.parametrize("ahead", [0.0, 60.0], ids=["right clock", "wrong clock"])
def test_a_message_is_sent_once(broker: Broker, probe: str, ahead: float) -> None:
    """Sending the same Message again is refused, because two messages would share one receipt."""
    errors = itertools.count(0.0, 0.001)  # no two readings are equal

    @contextmanager
    def reference() -> Iterator[Callable[[], float]]:
        yield lambda: time.time() - ahead - next(errors)

    with closing(broker.app()) as app:
        app.components.reference_clock = ReferenceClock("a reference", reference)
        app.reference_clock.measure()
        message = Message(from_agent="tests", to_agent=probe)
        MessageBus(app).send(message)
        assert settled(app, message.message_id) is MessageStatus.HANDLED
        for _ in range(10):
            app.reference_clock.measure()
            with pytest.raises(InvalidMessage, match=f"{message.message_id} was sent already"):
                MessageBus(app).send(message)


def test_a_projects_routes_do_not_divert_messages(broker: Broker, probe: str) -> None:
    """An entry of task_routes that matches every task does not change the queue of an agent's messages."""
    app = broker.app(task_routes={"*": {"exchange": "elsewhere", "routing_key": "lost"}})
    message = Message(from_agent="tests", to_agent=probe)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    app.close()


@pytest.mark.rabbitmq
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("has_listener", [False, True])
def test_a_queue_that_was_deleted_is_declared_again_on_rabbitmq(broker: Broker, has_listener: bool) -> None:
    """The next send puts its message into a new queue; while Celery's signals have receivers, the one after it."""
    absent = broker.name()
    app = broker.app(waooaw_agents=[absent])
    bus = MessageBus(app)

    def listen(**_: object) -> None:
        """Listen to Celery's signal, so that each message is published as a task of its own."""

    if has_listener:
        signals.after_task_publish.connect(listen)
    bus.send(Message(from_agent="tests", to_agent=absent))
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(absent)(channel).delete()
    if has_listener:
        with pytest.raises(BrokerUnavailable, match="NO_ROUTE"):
            bus.send(Message(from_agent="tests", to_agent=absent))
    bus.send_many(Message(from_agent="tests", to_agent=absent) for _ in range(3))
    with app.connection_for_write() as connection:
        assert queue_depth(connection, agent_queue(absent)).total == 3
    signals.after_task_publish.disconnect(listen)
    app.close()


def test_an_unknown_agent_is_refused_and_no_queue_is_filled(app: AgentApp, probe: str) -> None:
    """The send raises at once, lists the known agents, and leaves no receipt."""
    message = Message(from_agent="tests", to_agent="nobody")
    with pytest.raises(UnknownAgent, match=probe):
        MessageBus(app).send(message)
    with pytest.raises(UnknownMessage):
        MessageBus(app).receipt(message.message_id)


def test_a_type_without_handler_is_refused(app: AgentApp, probe: str) -> None:
    """A QUERY to an agent that handles only COMMAND and ACK raises; the error says how to add a handler."""
    with pytest.raises(NoHandler, match=r"it handles: ACK, COMMAND.*@agent\.on\(MessageType\.QUERY\)"):
        MessageBus(app).send(Message(from_agent="tests", to_agent=probe, message_type=MessageType.QUERY))


@pytest.mark.parametrize("message_type", [MessageType.EVENT, MessageType.RESPONSE])
def test_send_refuses_events_and_responses(app: AgentApp, probe: str, message_type: MessageType) -> None:
    """The error names the types that can be sent."""
    with pytest.raises(InvalidMessage, match=r"send\(\) takes COMMAND, QUERY, ACK"):
        MessageBus(app).send(Message(from_agent="tests", to_agent=probe, message_type=message_type))
