"""Handlers of batches in real workers, on Redis without and with a ledger, and on RabbitMQ."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from celery import Celery
from postgres_server import Server
from redis import Redis
from support import Broker, queue_length, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    MessageType,
    Priority,
    RequestResponseHandler,
)
from waooaw_celery.errors import NotStoppable
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import AMQP_MAX_PRIORITY, HandlerName
from waooaw_celery.testing.embedded import end, end_all

Process: TypeAlias = subprocess.Popen[bytes]
POOLS = {"solo": ("-P", "solo"), "threads": ("-P", "threads", "-c", "2"), "prefork": ("-P", "prefork", "-c", "2")}
HANDLED, FAILED = MessageStatus.HANDLED, MessageStatus.FAILED


@pytest.fixture(params=["valkey", "ledger", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn: Valkey without a ledger, Valkey with one, RabbitMQ."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture
def name(broker: Broker) -> str:
    """The name of the agent."""
    return broker.name()


@pytest.fixture
def app(broker: Broker, name: str) -> Iterator[AgentApp]:
    """An application that sends to the agent also before its first worker has started."""
    app = broker.app(waooaw_agents=[name])
    yield app
    app.close()


@pytest.fixture
def bus(app: AgentApp) -> MessageBus:
    return MessageBus(app)


class Probe:
    """An agent whose commands are handled in batches.

    Attributes:
        name: its name.
    """

    def __init__(self, name: str, broker: Broker, app: AgentApp, folder: Path) -> None:
        self.name = name
        self.processes: list[Process] = []
        self._broker, self._app, self._calls = broker, app, folder / f"{self.name}.calls"

    def start(self, *options: str, **settings: object) -> Process:
        """Start a worker of it."""
        node = f"{self.name}-{len(self.processes)}"
        process = self._broker.start(
            *(self.name, self._app, *options),
            node=node,
            module="batch_probe",
            env={"PROBE_CALLS": str(self._calls)},
            **settings,
        )
        self.processes.append(process)
        return process

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls of its handler of batches."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [json.loads(line) for line in lines]

    def sizes(self) -> list[int]:
        """Return how many messages each call had."""
        return [len(call["ids"]) for call in self.calls()]

    def log(self) -> str:
        """Return the logs of its workers."""
        logs = sorted(self._broker.folder.glob(f"{self.name}-*.log"))
        return "\n".join(log.read_text() for log in logs)


@pytest.fixture
def agent(name: str, broker: Broker, app: AgentApp, tmp_path: Path) -> Iterator[Probe]:
    probe = Probe(name, broker, app, tmp_path)
    yield probe
    end_all(probe.processes)


Send = Callable[..., list[str]]


@pytest.fixture
def send(bus: MessageBus, agent: Probe) -> Send:
    """Return a function that sends a command for each payload, and returns their ids."""

    def send(payloads: Sequence[object], **options: Any) -> list[str]:
        messages = [
            Message(from_agent="tests", to_agent=agent.name, payload=payload, **options)  # type: ignore[arg-type]
            for payload in payloads
        ]
        return [receipt.message_id for receipt in bus.send_many(messages)]

    return send


def statuses(app: AgentApp, ids: Sequence[str]) -> Counter[MessageStatus]:
    """Wait for the final status of each message, and count them."""
    return Counter(settled(app, id_) for id_ in ids)


@pytest.mark.parametrize("pool", POOLS)
def test_a_batch_fills_and_a_lone_message_does_not_wait_for_long(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, pool: str
) -> None:
    """Twenty waiting messages are two batches in the order of delivery, and one alone is handled after a while."""
    ids = send([{"n": number} for number in range(20)])
    agent.start(*POOLS[pool])
    assert statuses(app, ids) == {HANDLED: 20}
    assert agent.sizes() == [10, 10]
    assert sorted(agent.calls(), key=lambda call: call["ids"] != ids[:10])[0]["ids"] == ids[:10]
    assert all(call["current"] is None for call in agent.calls())
    receipt = bus.receipt(ids[0])
    assert (receipt.attempts, receipt.error) == (1, None)
    assert None not in (receipt.delivered_at, receipt.finished_at)
    began = time.monotonic()
    [alone] = send([{"n": 20}])
    assert settled(app, alone) is HANDLED
    assert 0.3 < time.monotonic() - began < 10
    assert agent.sizes() == [10, 10, 1]


def test_a_batch_fills_on_kombus_own_transport(valkey_broker: Broker, tmp_path: Path) -> None:
    """It does not know for which handler a message is, and the worker raises its prefetch count."""
    name = valkey_broker.name()
    app = valkey_broker.app(waooaw_agents=[name], waooaw_redis_transport="kombu")
    agent = Probe(name, valkey_broker, app, tmp_path)
    try:
        messages = [Message(from_agent="tests", to_agent=name, payload={"n": number}) for number in range(40)]
        ids = [receipt.message_id for receipt in MessageBus(app).send_many(messages)]
        agent.start(*POOLS["prefork"], waooaw_redis_transport="kombu", within=5)
        assert statuses(app, ids) == {HANDLED: 40}
        assert agent.sizes() == [10, 10, 10, 10]
    finally:
        end_all(agent.processes)
        app.close()


def test_urgent_messages_are_first_in_a_batch(app: AgentApp, agent: Probe, send: Send) -> None:
    """The order of a batch is that of delivery: by priority, and then by age."""
    low = send([{"n": number} for number in range(3)], priority=Priority.LOW)
    urgent = send([{"n": number} for number in range(3)], priority=Priority.URGENT)
    agent.start(*POOLS["solo"])
    assert statuses(app, [*low, *urgent]) == {HANDLED: 6}
    assert [id_ for call in agent.calls() for id_ in call["ids"]] == [*urgent, *low]


@pytest.mark.parametrize("pool", POOLS)
def test_each_message_has_its_own_outcome(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path, pool: str
) -> None:
    """One fails, one is retried until it may no more, one is handled at its second attempt, the others at once."""
    payloads = [{"fail": "no text"}, {"retry": "busy"}, {"retry_once": str(tmp_path / "tried")}]
    ids = send([*payloads, *({"n": number} for number in range(5))])
    agent.start(*POOLS[pool])
    failed, retried, second, *others = ids
    assert statuses(app, others) == {HANDLED: 5}
    assert statuses(app, [failed, retried]) == {FAILED: 2}
    assert settled(app, second) is HANDLED
    receipts = [bus.receipt(id_) for id_ in ids]
    assert [(receipt.attempts, receipt.error) for receipt in receipts] == [
        (1, "ValueError: no text"),
        (2, "OSError: busy"),
        (2, None),
        *((1, None) for _ in others),
    ]


@pytest.mark.usefixtures("dead_letters_alone_once")
def test_a_failed_message_of_a_batch_becomes_a_dead_letter(app: AgentApp, agent: Probe, send: Send) -> None:
    """One that failed at once, and one that was tried again; the others do not."""
    failed, retried, handled = send([{"fail": "no text"}, {"retry": "busy"}, {"n": 1}])
    agent.start(*POOLS["threads"])
    assert statuses(app, [failed, retried, handled]) == {FAILED: 2, HANDLED: 1}
    letters = {letter.message_id for letter in app.dead_letters.list(agent=agent.name)}
    assert letters == {failed, retried}


@pytest.mark.parametrize("pool", POOLS)
def test_a_handler_that_raises_fails_the_messages_that_have_no_outcome(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, pool: str
) -> None:
    """Each is tried again, and then fails with the error; the log names the messages, and no payload."""
    ids = send([{"n": "secret-text"}, {"raise": "gone"}, {"fail": "own error"}, {"n": 4}])
    agent.start(*POOLS[pool])
    assert statuses(app, ids) == {FAILED: 4}
    receipts = [bus.receipt(id_) for id_ in ids]
    assert [(receipt.attempts, receipt.error) for receipt in receipts] == [
        (2, "KeyError: 'gone'"),
        (2, "KeyError: 'gone'"),
        (1, "ValueError: own error"),
        (2, "KeyError: 'gone'"),
    ]
    log = agent.log()
    [line, *_] = [line for line in log.splitlines() if "in a batch of 4 messages" in line]
    assert all(id_ in line for id_ in ids)
    assert "secret-text" not in log


@pytest.mark.parametrize("pool", POOLS)
def test_a_next_attempt_may_arrive_before_its_batch_has_ended(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path, pool: str
) -> None:
    """Nine messages are retried at once: the first ones arrive while the others are still published."""
    ids = send([{"retry_now": str(tmp_path / str(number))} for number in range(9)])
    agent.start(*POOLS[pool])
    assert statuses(app, ids) == {HANDLED: 9}
    assert {bus.receipt(id_).attempts for id_ in ids} == {2}


@pytest.mark.slow
def test_a_lost_connection_loses_no_collected_message(own_broker: Broker, tmp_path: Path) -> None:
    """The messages that wait for others are delivered again, and each is handled once."""
    name = own_broker.name()
    app = own_broker.app(waooaw_agents=[name])
    agent, bus = Probe(name, own_broker, app, tmp_path), MessageBus(app)
    try:
        agent.start(*POOLS["prefork"], within=4)
        sent = bus.send_many(Message(from_agent="tests", to_agent=name, payload={"n": n}) for n in range(4))
        ids = [receipt.message_id for receipt in sent]
        until(lambda: queue_length(app, name) == 0, "the collection")
        with Redis.from_url(own_broker.url.replace("redis+socket://", "unix://")) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert statuses(app, ids) == {HANDLED: 4}
        assert Counter(id_ for call in agent.calls() for id_ in call["ids"]) == dict.fromkeys(ids, 1)
        assert {bus.receipt(id_).attempts for id_ in ids} == {1}
        later = [bus.send(Message(from_agent="tests", to_agent=name, payload={"n": n})) for n in range(10)]
        assert statuses(app, [receipt.message_id for receipt in later]) == {HANDLED: 10}
    finally:
        end_all(agent.processes)
        app.close()


@pytest.mark.slow
def test_a_killed_worker_loses_no_message(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path
) -> None:
    """All messages of its batch are redelivered, and handled again."""
    ids = send([{"kill_once": str(tmp_path / "killed")}, *({"n": number} for number in range(9))])
    victim = agent.start(*POOLS["solo"])
    until(lambda: victim.poll() is not None, "the end of the worker")
    assert agent.sizes() == [10]
    assert {bus.receipt(id_).status for id_ in ids} == {MessageStatus.DELIVERED}
    agent.start(*POOLS["solo"])
    assert statuses(app, ids) == {HANDLED: 10}
    assert {bus.receipt(id_).attempts for id_ in ids} == {2}


def test_a_killed_process_of_a_pool_loses_no_message(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path
) -> None:
    """Its worker lives, and all messages of its batch are tried again."""
    ids = send([{"kill_once": str(tmp_path / "killed")}, *({"n": number} for number in range(9))])
    agent.start(*POOLS["prefork"])
    assert statuses(app, ids) == {HANDLED: 10}
    assert {bus.receipt(id_).attempts for id_ in ids} == {2}
    assert len({call["pid"] for call in agent.calls()}) == 2
    line = next(line for line in agent.log().splitlines() if "ended without its outcomes" in line)
    assert all(id_ in line for id_ in ids)


@pytest.mark.slow
def test_an_operator_ends_one_message_of_a_running_batch(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path
) -> None:
    """It fails. The other messages of its batch lose their process too, and are tried again."""
    gate = tmp_path / "gate"
    agent.start(*POOLS["prefork"])
    revoked, *others = send([{"gate": str(gate)}, {"n": 1}, {"n": 2}])
    until(agent.calls, "the batch")
    app.control.revoke(revoked, terminate=True, signal="SIGKILL")
    assert settled(app, revoked) is FAILED
    assert bus.receipt(revoked).error == "revoked by an operator"
    assert statuses(app, others) == {HANDLED: 2}
    assert {bus.receipt(id_).attempts for id_ in others} == {2}


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_ends_while_it_collects_gives_the_messages_back(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, pool: str
) -> None:
    """They were not delivered, and the next worker handles them at their first attempt."""
    first = agent.start(*POOLS[pool], within=50)
    ids = send([{"n": number} for number in range(4)])
    until(lambda: queue_length(app, agent.name) == 0, "the collection")
    first.terminate()
    end(first)
    assert agent.calls() == []
    assert queue_length(app, agent.name) == 4
    assert {bus.receipt(id_).status for id_ in ids} == {MessageStatus.SENT}
    agent.start(*POOLS[pool])
    assert statuses(app, ids) == {HANDLED: 4}
    assert [call["ids"] for call in agent.calls()] == [ids]
    assert {bus.receipt(id_).attempts for id_ in ids} == {1}


@pytest.mark.slow
def test_expired_and_cancelled_messages_are_left_out(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send
) -> None:
    """They wait in a batch that is collected; the handler gets the others."""
    agent.start(*POOLS["solo"], within=4)
    [expired] = send([{"n": 1}], ttl_seconds=1.0)
    cancelled, handled = send([{"n": 2}, {"n": 3}])
    until(lambda: queue_length(app, agent.name) == 0, "the collection")
    assert bus.cancel(cancelled, timeout=20).status is MessageStatus.CANCELLED
    assert settled(app, handled) is HANDLED
    assert settled(app, expired) is MessageStatus.EXPIRED
    assert [call["ids"] for call in agent.calls()] == [[handled]]
    assert [bus.receipt(id_).attempts for id_ in (expired, cancelled, handled)] == [0, 0, 1]


def test_a_message_that_has_ended_is_left_out(app: AgentApp, bus: MessageBus, agent: Probe, send: Send) -> None:
    """A copy of it is delivered with others; only these are handled, and its receipt stays."""
    agent.start(*POOLS["solo"], within=1)
    message = Message(from_agent="tests", to_agent=agent.name, payload={"n": 1})
    bus.send(message)
    assert settled(app, message.message_id) is HANDLED
    ended = bus.receipt(message.message_id)
    target = HandlerName(agent.name, "command")
    app.publisher.publish_recorded([(target, app.message_factory.complete(target, message))])
    others = send([{"n": 2}, {"n": 3}])
    assert statuses(app, others) == {HANDLED: 2}
    assert [call["ids"] for call in agent.calls()] == [[message.message_id], others]
    until(lambda: queue_length(app, agent.name) == 0, "the end of the copy")
    assert bus.receipt(message.message_id) == ended


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_message_of_a_running_batch_cannot_be_stopped(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path, pool: str
) -> None:
    """The cancellation is refused, and its handler and the other messages go on."""
    gate = tmp_path / "gate"
    agent.start(*POOLS[pool])
    ids = send([{"gate": str(gate)}, {"n": 1}])
    until(agent.calls, "the batch")
    with pytest.raises(NotStoppable):
        bus.cancel(ids[0], running=True, timeout=20)
    gate.touch()
    assert statuses(app, ids) == {HANDLED: 2}
    assert agent.sizes() == [2]


def test_a_batched_ledger_records_each_message_of_a_batch(ledger_broker: Broker, tmp_path: Path) -> None:
    """Each has its own events."""
    name = ledger_broker.name()
    app = ledger_broker.app(waooaw_agents=[name], waooaw_audit_mode="batched")
    agent, bus = Probe(name, ledger_broker, app, tmp_path), MessageBus(app)
    try:
        messages = [Message(from_agent="tests", to_agent=name, payload={"n": number}) for number in range(9)]
        failed = Message(from_agent="tests", to_agent=name, payload={"fail": "no text"})
        ids = [receipt.message_id for receipt in bus.send_many([*messages, failed])]
        agent.start(*POOLS["solo"], waooaw_audit_mode="batched")
        assert statuses(app, ids) == {HANDLED: 9, FAILED: 1}
        trail = MessageAuditTrail(app.ledger)
        events = [[event.event for event in trail.receipt(id_).events] for id_ in ids]
        assert [sorted(found) for found in events] == [
            *(["delivered", "handled", "sent"] for _ in range(9)),
            ["delivered", "failed", "sent"],
        ]
        assert agent.sizes() == [10]
    finally:
        end_all(agent.processes)
        app.close()


@pytest.mark.slow
def test_a_batch_outlives_an_outage_of_the_ledger(server: Server, redis_url: str, tmp_path: Path) -> None:
    """The outcomes of its messages wait on this computer, and then stand in the ledger."""
    broker = Broker(redis_url, redis_url, tmp_path, server.url)
    name, gate = broker.name(), tmp_path / "gate"
    app = broker.app(waooaw_agents=[name])
    schema.upgrade(app.database)
    agent, bus = Probe(name, broker, app, tmp_path), MessageBus(app)
    try:
        agent.start(*POOLS["prefork"])
        payloads: list[Any] = [{"gate": str(gate)}, {"fail": "no text"}, {"n": 1}, {"n": 2}]
        messages = [Message(from_agent="tests", to_agent=name, payload=payload) for payload in payloads]
        ids = [receipt.message_id for receipt in bus.send_many(messages)]
        until(agent.calls, "the batch")
        assert unacknowledged(app, name) == 4
        server.stop()
        try:
            gate.touch()
            until(lambda: not unacknowledged(app, name), "the acknowledgements")
        finally:
            server.start()
        with closing(broker.app()) as reader:  # the connections of the other one ended with the server
            assert statuses(reader, ids) == {HANDLED: 3, FAILED: 1}
        assert agent.sizes() == [4]
    finally:
        end_all(agent.processes)
        broker.clean()
        app.close()


def unacknowledged(app: AgentApp, agent: str) -> int:
    """Return how many messages of an agent a worker holds."""
    with app.connection_for_read() as connection:
        entries = connection.default_channel.client.hvals("unacked")
        return sum(f"{agent}.command".encode() in entry for entry in entries)


@pytest.mark.parametrize("pool", POOLS)
def test_other_handlers_are_served_while_a_batch_is_collected(
    app: AgentApp, agent: Probe, send: Send, pool: str
) -> None:
    """A request is answered, and a batch of another handler is handled, while messages wait for others."""
    agent.start(*POOLS[pool], within=50)
    waiting = send([{"n": number} for number in range(4)])
    until(lambda: queue_length(app, agent.name) == 0, "the collection")
    assert RequestResponseHandler(app).request(agent.name, "echo", {"value": 7}, timeout=20) == 7
    assert statuses(app, send([1, 2, 3], message_type=MessageType.QUERY)) == {HANDLED: 3}
    assert agent.calls() == []
    assert statuses(app, [*waiting, *send([{"n": number} for number in range(6)])]) == {HANDLED: 10}
    assert agent.sizes() == [10]


def test_an_async_handler_takes_batches(app: AgentApp, bus: MessageBus, agent: Probe, send: Send) -> None:
    """It is awaited, and each message has its own outcome."""
    agent.start(*POOLS["threads"])
    good, bad = send(["good", "bad"], message_type=MessageType.ACK)
    assert settled(app, good) is HANDLED
    assert settled(app, bad) is FAILED
    assert bus.receipt(bad).error == "ValueError: bad"


def test_delay_of_a_plain_celery_client_lands_in_a_batch(
    broker: Broker, app: AgentApp, agent: Probe, send: Send
) -> None:
    """It is in one batch with the messages of agents."""
    agent.start(*POOLS["solo"], size=3, within=50)
    plain = Celery("plain_client", broker=broker.url, backend=broker.redis_url, set_as_current=False)
    options = {"x-max-priority": AMQP_MAX_PRIORITY} if app.driver == "amqp" else {}
    plain.amqp.queues.add(f"agent.{agent.name}", queue_arguments=options or None)
    [ours] = send([{"n": 1}])
    task = plain.signature(f"{agent.name}.command", args=({"n": 2},))
    theirs = task.apply_async(queue=f"agent.{agent.name}", ignore_result=True)
    answered = task.apply_async(queue=f"agent.{agent.name}")
    until(agent.calls, "the batch")  # a ledger knows them only then
    assert statuses(app, [ours, theirs.id, answered.id]) == {HANDLED: 3}
    assert [sorted(call["ids"]) for call in agent.calls()] == [sorted([ours, theirs.id, answered.id])]
    plain.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_holds_one_batch_beyond_those_that_run(
    app: AgentApp, agent: Probe, send: Send, tmp_path: Path, pool: str
) -> None:
    """With both slots busy, it takes at most one batch more from its queue.

    RabbitMQ does not know for which handler a message is: there it is one batch for each handler of batches.
    """
    least = 40 if app.driver == "redis" else 25
    gate = tmp_path / "gate"
    agent.start(*POOLS[pool])
    send([{"gate": str(gate)} for _ in range(60)])
    until(lambda: len(agent.calls()) == 2, "two running batches")
    lengths: list[int] = []
    ends_at = time.monotonic() + 2
    until(lambda: lengths.append(queue_length(app, agent.name)) or time.monotonic() > ends_at, "two seconds")
    assert min(lengths) == least
    gate.touch()
    until(lambda: sum(agent.sizes()) == 60, "the others")


@pytest.mark.slow
def test_the_time_limit_ends_a_whole_batch(
    app: AgentApp, bus: MessageBus, agent: Probe, send: Send, tmp_path: Path
) -> None:
    """Each of its messages fails, as one that is handled alone."""
    agent.start(*POOLS["prefork"], time_limit=2)
    ids = send([{"gate": str(tmp_path / "never")}, {"n": 1}, {"n": 2}])
    assert statuses(app, ids) == {FAILED: 3}
    assert all("TimeLimitExceeded" in (bus.receipt(id_).error or "") for id_ in ids)
    assert settled(app, *send([{"n": 3}])) is HANDLED


def test_a_large_number_of_messages_is_handled_once_each(app: AgentApp, agent: Probe, send: Send) -> None:
    """Two workers share a queue, and no message is lost or handled twice."""
    ids = send([{"n": number} for number in range(1000)])
    agent.start(*POOLS["prefork"], size=64, within=0.1)
    agent.start(*POOLS["threads"], size=64, within=0.1)
    assert statuses(app, ids) == {HANDLED: 1000}
    assert Counter(id_ for call in agent.calls() for id_ in call["ids"]) == dict.fromkeys(ids, 1)
