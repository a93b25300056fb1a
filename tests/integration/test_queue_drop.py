"""Dropping the waiting messages of one sender, on both brokers with a ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.waiting import amqp as amqp_module
from waooaw_celery.broker.waiting import redis as redis_module
from waooaw_celery.errors import Cancelled
from waooaw_celery.maintenance.queue_drop import drop
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.testing.embedded import end_all

pytestmark = pytest.mark.usefixtures("dead_letters_alone")

BULLY, OTHER = "bully", "other"
#: Takes messages out of a queue and dies with them.
DIE = """
import os, signal, sys
from waooaw_celery import create_app
from waooaw_celery.app.waiting import waiting_messages
app = create_app()
with waiting_messages(app) as waiting:
    batch = next(waiting.take(sys.argv[1], sys.argv[2]))
    print(len(batch), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def app(ledgered_broker: Broker) -> Iterator[AgentApp]:
    """An application that knows an agent without a worker, whose name is its only configured agent."""
    app = ledgered_broker.app(waooaw_agents=[ledgered_broker.name()])
    yield app
    app.close()


@pytest.fixture
def agent(app: AgentApp) -> str:
    name: str = app.settings.agents[0]
    return name


def send(app: AgentApp, agent: str, sender: str, count: int = 1, **facts: Any) -> list[str]:
    messages = [Message(from_agent=sender, to_agent=agent, payload={"n": n}, **facts) for n in range(count)]
    return [receipt.message_id for receipt in MessageBus(app).send_many(messages)]


def waiting(app: AgentApp, agent: str) -> int:
    with app.connection_for_write() as connection:
        return queue_depth(connection, agent_queue(agent)).total


def take_all(app: AgentApp, agent: str) -> list[str]:
    """Take the messages of an agent's queue in their order, and return their ids."""
    ids = []
    with app.connection_for_write() as connection, connection.channel() as opened:
        channel: Any = opened
        while (message := channel.basic_get(agent_queue(agent).name, no_ack=True)) is not None:
            ids.append(message.headers["id"])
    return ids


def test_messages_of_one_sender_become_dead_letters(
    app: AgentApp, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets a dead letter, an event and the status DEAD after a dry run; the others keep their order."""
    for module in (redis_module, amqp_module):
        monkeypatch.setattr(module, "BATCH_SIZE", 7)
    bully, other = [], []
    for priority in (Priority.LOW, Priority.URGENT, Priority.NORMAL):
        for _ in range(3):
            bully += send(app, agent, BULLY, 5, priority=priority)
            other += send(app, agent, OTHER, 2, priority=priority)
    assert MessageBus(app).waiting(agent, read=True).by_sender == {BULLY: 45, OTHER: 18}
    dry = drop(app, agent, BULLY, by="ada", dry_run=True)
    assert (dry.total, dry.messages[Priority.URGENT]) == (45, 15)
    until(lambda: waiting(app, agent) == 63, "the return of what was counted")

    done = drop(app, agent, BULLY, by="ada", reason="it sends in a circle")
    assert done.messages == {Priority.URGENT: 15, Priority.NORMAL: 15, Priority.LOW: 15}
    bus, note = MessageBus(app), "dropped from the queue by ada: it sends in a circle"
    assert {(bus.receipt(id_).status, bus.receipt(id_).error) for id_ in bully} == {(MessageStatus.DEAD, note)}
    [record] = MessageAuditTrail(app.ledger).conversation(bully[0])
    assert [event.event for event in record.events] == ["sent", "dead"]
    letters = app.dead_letters.list(agent=agent, limit=100)
    assert sorted(str(letter.message_id) for letter in letters) == sorted(bully)
    assert {letter.reason for letter in letters} == {note}
    until(lambda: waiting(app, agent) == 18, "the return of the others")
    assert take_all(app, agent) == other[6:12] + other[12:] + other[:6]

    [again] = app.dead_letters.retry(letters[:1])
    assert take_all(app, agent) == [again.new_id]
    app.dead_letters.discard(letters[1:], reason="the end of a test")
    assert drop(app, agent, BULLY, by="ada").total == 0


def test_discarded_messages_are_cancelled_and_their_callers_told(app: AgentApp, agent: str) -> None:
    """They are gone from the broker, and a caller gets Cancelled long before its timeout."""
    errors: list[object] = []

    def ask() -> None:
        response = Requests(app).send_request(agent, "echo", {"value": 1}, from_agent=BULLY, timeout=25)
        errors.append(response.error)

    thread = threading.Thread(target=ask)
    thread.start()
    ids = send(app, agent, BULLY, 3)
    kept = send(app, agent, OTHER)
    until(lambda: waiting(app, agent) == 5, "the request")
    assert drop(app, agent, BULLY, by="ada", discard=True).total == 4
    thread.join(10)
    assert [type(error) for error in errors] == [Cancelled]
    assert {MessageBus(app).receipt(id_).status for id_ in ids} == {MessageStatus.CANCELLED}
    assert "dropped from the queue by ada" in str(MessageBus(app).receipt(ids[0]).error)
    assert app.dead_letters.list(agent=agent) == []
    until(lambda: waiting(app, agent) == 1, "the return of the other")
    assert take_all(app, agent) == kept


def test_what_a_consumer_holds_is_not_touched(app: AgentApp, agent: str) -> None:
    """Only what waits in the queue is dropped."""
    ids = send(app, agent, BULLY, 3)
    with app.connection_for_write() as connection, connection.channel() as opened:
        channel: Any = opened
        held = channel.basic_get(agent_queue(agent).name)
        assert drop(app, agent, BULLY, by="ada", discard=True).total == 2
        assert MessageBus(app).receipt(held.headers["id"]).status is MessageStatus.SENT
        channel.basic_ack(held.delivery_tag)
    assert held.headers["id"] == ids[0]


@pytest.mark.slow
def test_nothing_is_lost_if_the_command_dies_half_way(app: AgentApp, agent: str, ledgered_broker: Broker) -> None:
    """What it had taken goes back to the queue, and a worker handles it."""
    ids = [*send(app, agent, BULLY, 20), *send(app, agent, OTHER, 3)]
    env = os.environ | {
        "CELERY_BROKER_URL": ledgered_broker.url,
        "CELERY_RESULT_BACKEND": ledgered_broker.redis_url,
        "WAOOAW_DATABASE_URL": str(ledgered_broker.database_url),
        "WAOOAW_SPOOL_FOLDER": str(ledgered_broker.spool_folder),
    }
    command = [sys.executable, "-c", DIE, agent_queue(agent).name, BULLY]
    died = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, "20\n"), died.stderr
    worker = ledgered_broker.start(agent, app)
    try:
        assert {settled(app, id_) for id_ in ids} == {MessageStatus.HANDLED}
    finally:
        end_all([worker])
