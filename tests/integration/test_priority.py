"""Priority has one meaning on every broker."""

from __future__ import annotations

import random
from collections.abc import Callable

from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.messages.queues import agent_queue, queue_depth


def test_urgent_and_high_overtake_normal_and_low(app: AgentApp, broker: Broker, start: Callable[..., str]) -> None:
    """Waiting messages are handled by rank, and within a rank in the order of sending."""
    agent = broker.name()
    app.conf.waooaw_agents = [agent]
    ranks = [priority for priority in Priority for _ in range(3)]
    random.Random(7).shuffle(ranks)  # noqa: S311 - an order, not a secret
    for number, priority in enumerate(ranks):
        MessageBus(app).send(
            Message(from_agent="tests", to_agent=agent, payload={"number": number}, priority=priority)
        )
    start(agent)
    until(lambda: len(Requests(app).request(agent, "seen", priority=Priority.LOW)) == len(ranks), "handling")
    handled = [facts["payload"]["number"] for facts in Requests(app).request(agent, "seen")]
    assert handled == sorted(range(len(ranks)), key=lambda number: ranks[number].rank)


def test_a_delay_without_priority_is_normal(app: AgentApp, broker: Broker, start: Callable[..., str]) -> None:
    """A plain ``.delay`` overtakes LOW, and HIGH overtakes it."""
    agent = broker.name()
    app.conf.waooaw_agents = [agent]
    command = app.signature(f"{agent}.command")
    command.apply_async(({},), priority=Priority.LOW)
    command.delay({})
    command.apply_async(({},), priority="high")
    start(agent)
    until(lambda: len(Requests(app).request(agent, "seen", priority=Priority.LOW)) == 3, "handling")
    assert [facts["priority"] for facts in Requests(app).request(agent, "seen")] == ["HIGH", "NORMAL", "LOW"]


def test_an_urgent_message_waits_only_for_the_running_one(app: AgentApp, start: Callable[..., str]) -> None:
    """Nothing is prefetched: an URGENT message that is sent while another runs is handled next."""
    agent = start()
    bus = MessageBus(app)
    first = Message(from_agent="tests", to_agent=agent, payload={"sleep": 1.0, "n": "running"})
    bus.send(first)
    until(lambda: bus.receipt(first.message_id).delivered_at is not None, "the first to begin")
    for number in range(3):
        bus.send(Message(from_agent="tests", to_agent=agent, payload={"n": number}, priority=Priority.LOW))
    bus.send(Message(from_agent="tests", to_agent=agent, payload={"n": "urgent"}, priority=Priority.URGENT))
    until(lambda: len(Requests(app).request(agent, "seen", priority=Priority.LOW)) == 5, "handling")
    handled = [facts["payload"]["n"] for facts in Requests(app).request(agent, "seen")]
    assert handled == ["running", "urgent", 0, 1, 2]


def test_queue_depth_counts_waiting_messages(app: AgentApp, broker: Broker) -> None:
    """They are counted by priority on Redis, in total on RabbitMQ, and 0 for an unknown queue."""
    agent = broker.name()
    app.conf.waooaw_agents = [agent]
    with app.connection_for_read() as connection:
        assert queue_depth(connection, agent_queue(agent)).total == 0
        for priority in (Priority.URGENT, Priority.LOW, Priority.LOW):
            MessageBus(app).send(Message(from_agent="tests", to_agent=agent, priority=priority))
        depth = queue_depth(connection, agent_queue(agent))
    assert depth.total == 3
    if app.driver == "redis":
        assert depth.by_priority == {Priority.URGENT: 1, Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 2}
    else:
        assert depth.by_priority is None
