"""Messages of one key are handled in order, and those of one sender hold up no others: with real workers."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from celery import Celery
from proxy import proxied
from support import Broker, queue_length, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus, MessageType, Priority
from waooaw_celery.errors import QueueFull
from waooaw_celery.maintenance.queue_drop import drop
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.testing.embedded import end_all

Process: TypeAlias = subprocess.Popen[bytes]
KEYED = {"key": "payload.key"}
#: Marks tests of what only Redis and Valkey can do.
on_redis = pytest.mark.parametrize("broker", ["valkey", "ledger"], indirect=True)
#: Of the test with kills.
MESSAGES = int(os.environ.get("WAOOAW_TEST_KEYED_MESSAGES", "2000"))
KEYS, KILLS = min(MESSAGES // 20, 1000), min(max(MESSAGES // 1000, 2), 20)


@pytest.fixture(scope="session")
def ledgered_rabbitmq_broker(
    amqp_url: str, ledger_broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """RabbitMQ, with the ledger in PostgreSQL."""
    folder = tmp_path_factory.mktemp("keyed")
    broker = Broker(amqp_url, ledger_broker.redis_url, folder, ledger_broker.database_url)
    yield broker
    broker.clean()


@pytest.fixture(params=["valkey", "ledger", pytest.param("ledgered_rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Valkey without a ledger, and with one; and RabbitMQ, where keys need one."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


class Probe:
    """An agent whose commands may have keys.

    Attributes:
        name: its name.
        app: an application that sends to it.
    """

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.name = broker.name()
        self.app = broker.app(waooaw_agents=[self.name])
        self.processes: list[Process] = []
        self._broker, self._calls = broker, folder / f"{self.name}.calls"

    def start(self, *pool: str, options: dict[str, Any] | None = None, **settings: object) -> Process:
        """Start a worker of it."""
        process = self._broker.start(
            *(self.name, self.app, *(pool or ("-P", "threads", "-c", "4"))),
            node=f"{self.name}-{len(self.processes)}",
            module="ordering_probe",
            env={"PROBE_CALLS": str(self._calls)},
            options=options or {},
            **settings,
        )
        self.processes.append(process)
        return process

    def message(self, sender: str = "tests", **payload: Any) -> Message:
        """Return a command for it."""
        return Message(from_agent=sender, to_agent=self.name, message_type=MessageType.COMMAND, payload=payload)

    def send(self, messages: Sequence[Message]) -> list[str]:
        """Send messages, and return their ids."""
        MessageBus(self.app).send_many(messages)
        return [message.message_id for message in messages]

    def calls(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return what its handlers noted."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call for call in map(json.loads, lines) if event in (None, call["event"])]

    def numbers(self, event: str = "end") -> list[int]:
        """Return the numbers of the messages, in the order of an event."""
        return [call["n"] for call in self.calls(event)]

    def check_order(self) -> None:
        """Check that no two messages of a key ran at once, and that they were handled in the order of sending."""
        running: dict[str, str] = {}
        last: dict[str, int] = defaultdict(lambda: -1)
        for call in self.calls():
            key, id_ = call["key"], call["id"]
            if call["event"] == "begin":
                assert running.setdefault(key, id_) == id_, f"two of {key} at once: {call}"
                assert call["n"] >= last[key], f"out of order: {call}"
                last[key] = call["n"]
            else:
                running.pop(key, None)


@pytest.fixture
def agent(broker: Broker, tmp_path: Path) -> Iterator[Probe]:
    probe = Probe(broker, tmp_path)
    with closing(probe.app):
        yield probe
        end_all(probe.processes)


def test_messages_of_a_key_are_handled_in_order_and_one_at_a_time(agent: Probe) -> None:
    """By two workers of four threads; other keys go on meanwhile."""
    agent.start(options=KEYED)
    agent.start(options=KEYED)
    agent.send([agent.message(key=f"k{n % 5}", n=n, seconds=0.02) for n in range(100)])
    until(lambda: len(agent.numbers()) == 100, "all messages")
    agent.check_order()
    begins = agent.calls("begin")
    assert len({call["pid"] for call in begins}) == 2
    events = agent.calls()
    most = running = 0
    for call in events:
        running += 1 if call["event"] == "begin" else -1
        most = max(most, running)
    assert most > 1  # of several keys
    assert queue_length(agent.app, agent.name) == 0


def test_some_messages_of_a_key_may_run_at_once(agent: Probe) -> None:
    """As many as max_running says."""
    agent.start(options={**KEYED, "max_running": 2})
    agent.send([agent.message(key="k", n=n, seconds=0.1) for n in range(12)])
    until(lambda: len(agent.numbers()) == 12, "all messages")
    most = running = 0
    for call in agent.calls():
        running += 1 if call["event"] == "begin" else -1
        most = max(most, running)
    assert most == 2


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_message_that_is_tried_again_keeps_its_place(agent: Probe, pool: str) -> None:
    """Later messages of its key wait, those of another key do not."""
    agent.start("-P", pool, "-c", "3", options=KEYED)
    agent.send([agent.message(key="k", n=0, fails=2)])
    agent.send([agent.message(key="k", n=n) for n in (1, 2)] + [agent.message(key="other", n=9)])
    until(lambda: len(agent.numbers()) == 4, "all messages")
    assert agent.numbers() == [9, 0, 1, 2]
    agent.check_order()


def test_the_next_attempt_does_not_wait_for_the_whole_queue(agent: Probe) -> None:
    """Its key would wait with it."""
    agent.send([agent.message(key="k", n=0, fails=1), agent.message(key="k", n=1)])
    agent.send([agent.message(key=f"other-{n}", n=n, seconds=0.02) for n in range(2, 202)])
    agent.start("-P", "threads", "-c", "2", options=KEYED)
    until(lambda: len(agent.numbers()) == 202, "all messages")
    assert agent.numbers().index(0) < agent.numbers().index(1) < 150
    agent.check_order()


@pytest.mark.slow
def test_the_key_of_a_killed_worker_is_free_within_its_lease(agent: Probe) -> None:
    """The message that it handled comes first again, then the others."""
    killed = agent.start(options=KEYED)
    agent.send(
        [agent.message(key="k", n=0, seconds=1.5), agent.message(key="k", n=1), agent.message(key="k", n=2)]
    )
    until(lambda: agent.calls("begin"), "the first message")
    killed.kill()
    killed.wait(10)
    agent.start(options=KEYED)
    until(lambda: len(agent.numbers()) == 3, "all messages", 60)
    assert agent.numbers() == [0, 1, 2]
    assert [call["n"] for call in agent.calls("begin")] == [0, 0, 1, 2]


@pytest.mark.slow
def test_order_by_key_holds_while_workers_are_killed(agent: Probe) -> None:
    """Each message is handled, no two of a key at once, and none before an earlier one."""
    workers = [agent.start(options=KEYED) for _ in range(2)]
    expected = set(range(MESSAGES))
    for first in range(0, MESSAGES, 500):
        agent.send([agent.message(key=f"k{n % KEYS}", n=n, seconds=0.005) for n in range(first, first + 500)])
    for kill in range(KILLS):
        due = len(expected) * (kill + 1) // (KILLS + 1)
        until(lambda due=due: len(agent.numbers()) >= due, "some messages", 120)  # type: ignore[misc]
        killed = workers.pop(0)
        killed.kill()
        killed.wait(10)
        workers.append(agent.start(options=KEYED))
    until(lambda: set(agent.numbers()) == expected, "all messages", 240)
    agent.check_order()


@pytest.mark.slow
def test_a_worker_is_not_stalled_while_all_messages_wait_for_a_key(agent: Probe) -> None:
    """Another worker handles the message before them: this one has nothing to do."""
    workers = [agent.start(options=KEYED, waooaw_stall_seconds=2) for _ in range(2)]
    agent.send([agent.message(key="k", n=0, seconds=8), *(agent.message(key="k", n=n) for n in range(1, 4))])
    until(lambda: len(agent.numbers()) == 4, "all messages", 60)
    assert [worker.poll() for worker in workers] == [None, None]


def test_a_message_whose_key_is_busy_may_be_dropped(agent: Probe) -> None:
    """It ends as CANCELLED, and the running one goes on."""
    agent.start(options={**KEYED, "on_busy": "drop"})
    [first] = agent.send([agent.message(key="k", n=0, seconds=5)])
    until(lambda: agent.calls("begin"), "the first message")
    [second, other] = agent.send([agent.message(key="k", n=1), agent.message(key="other", n=2)])
    assert settled(agent.app, second) is MessageStatus.CANCELLED
    assert settled(agent.app, other) is MessageStatus.HANDLED
    assert settled(agent.app, first) is MessageStatus.HANDLED
    [third] = agent.send([agent.message(key="k", n=3)])
    assert settled(agent.app, third) is MessageStatus.HANDLED


def test_a_message_may_cancel_the_running_one_of_its_key(agent: Probe) -> None:
    """Those that wait are dropped: only the newest is handled."""
    agent.start(options={**KEYED, "on_busy": "cancel"})
    [first] = agent.send([agent.message(key="k", n=0, seconds=60)])
    until(lambda: agent.calls("begin"), "the first message")
    [second, third] = agent.send([agent.message(key="k", n=1), agent.message(key="k", n=2)])
    assert settled(agent.app, third) is MessageStatus.HANDLED
    assert settled(agent.app, first) is MessageStatus.CANCELLED
    assert settled(agent.app, second) is MessageStatus.CANCELLED
    assert agent.numbers() == [2]


@pytest.mark.slow
def test_a_delayed_message_holds_no_key_before_it_is_due(agent: Probe) -> None:
    """Then it waits for its turn."""
    agent.start(options=KEYED)
    at = datetime.now(UTC) + timedelta(seconds=5)
    agent.app.send_task(f"{agent.name}.command", args=[{"key": "k", "n": 1}], eta=at)
    agent.send([agent.message(key="k", n=0)])
    until(lambda: agent.numbers() == [0], "the message that is not delayed")
    agent.send([agent.message(key="k", n=2, seconds=6)])  # it still runs when the delayed one is due
    until(lambda: len(agent.numbers()) == 3, "all messages")
    assert agent.numbers() == [0, 2, 1]
    assert datetime.fromtimestamp(agent.calls("begin")[-1]["at"], UTC) >= at


def test_a_message_whose_key_cannot_be_found_is_a_dead_letter(agent: Probe) -> None:
    """One without a key is handled."""
    agent.start(options=KEYED)
    [wrong, without] = agent.send([agent.message(key=["k"], n=0), agent.message(n=1)])
    assert settled(agent.app, without) is MessageStatus.HANDLED

    def letters() -> list[Any]:
        return [each for each in agent.app.dead_letters.list() if each.message_id == wrong]

    until(letters, "the dead letter")
    assert "its key payload.key must be a text or a number, not list" in letters()[0].reason
    assert agent.numbers("begin") == [1]


@pytest.mark.parametrize("raises", ["panic", "exit", "error"])
def test_a_function_that_fails_to_find_a_key_does_not_end_its_worker(agent: Probe, raises: str) -> None:
    """Its message becomes a dead letter, and the next one is handled."""
    worker = agent.start(options={"key": "find_key"})
    [wrong, right] = agent.send([agent.message(raises=raises, n=0), agent.message(key="k", n=1)])
    assert settled(agent.app, right) is MessageStatus.HANDLED
    until(lambda: [each for each in agent.app.dead_letters.list() if each.message_id == wrong], "the dead letter")
    assert worker.poll() is None


@on_redis
def test_the_many_messages_of_a_sender_hold_up_no_other(agent: Probe) -> None:
    """While 500 of one wait, another's is handled soon. A plain queue would handle it last."""
    agent.start("-P", "solo", waooaw_fair_queues=True)
    flood = [agent.message("flood", n=n, seconds=0.01) for n in range(500)]
    agent.send(flood)
    until(lambda: len(agent.numbers()) > 10, "some messages")
    before = len(agent.calls("begin"))
    [other] = agent.send([agent.message("quiet", n=-1)])
    assert settled(agent.app, other) is MessageStatus.HANDLED
    position = agent.numbers("begin").index(-1)
    assert (
        position - before <= 100
    )  # some were handled while it was on its way; test_claim_groups.py counts exactly
    until(lambda: len(agent.numbers()) == 501, "all messages")
    assert [n for n in agent.numbers() if n >= 0] == list(range(500))


@on_redis
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_share_of_claims_goes_to_the_least_urgent(agent: Probe, share: float) -> None:
    """So URGENT messages without end do not keep LOW ones from being handled. Without a share, they do."""
    urgent = [agent.message(n=n).evolve(priority=Priority.URGENT) for n in range(60)]
    low = [agent.message(n=n).evolve(priority=Priority.LOW) for n in range(100, 105)]
    agent.send([*urgent, *low])
    agent.start("-P", "solo", waooaw_priority_share=share)
    until(lambda: len(agent.numbers()) == 65, "all messages")
    last_low = agent.numbers().index(104)
    assert last_low == 64 if share == 0 else last_low < 40
    assert [n for n in agent.numbers() if n < 100] == list(range(60))


@pytest.mark.slow
@on_redis
def test_messages_that_wait_in_groups_are_counted_and_can_be_dropped(agent: Probe) -> None:
    """By priority and by sender."""
    agent.start(options=KEYED, waooaw_fair_queues=True)
    agent.send([agent.message("one", key="k", n=0, seconds=60)])
    until(lambda: agent.calls("begin"), "the first message")
    agent.send([agent.message("one", key="k", n=n) for n in range(1, 6)])
    agent.send([agent.message("two", key="k", n=n) for n in range(6, 10)])
    bus = MessageBus(agent.app)
    until(lambda: bus.waiting(agent.name).by_sender == {"one": 5, "two": 4}, "the waiting messages")
    depth = bus.waiting(agent.name)
    assert depth.total == 9
    assert depth.by_priority is not None
    assert depth.by_priority[Priority.NORMAL] == 9
    assert (depth.busy_keys, depth.blocked) == (1, 9)
    assert drop(agent.app, agent.name, "two", by="ada", discard=True).total == 4
    assert bus.waiting(agent.name).by_sender == {"one": 5}


def test_recovery_finds_the_messages_that_wait_in_groups(ledger_broker: Broker, tmp_path: Path) -> None:
    """It publishes none of them again."""
    agent = Probe(ledger_broker, tmp_path)
    with closing(agent.app):
        try:
            agent.start(options=KEYED, waooaw_fair_queues=True)
            agent.send([agent.message(key="k", n=n, seconds=2 if n == 0 else 0) for n in range(20)])
            until(lambda: MessageBus(agent.app).waiting(agent.name).blocked == 19, "the messages that wait")
            assert Recovery(agent.app, after=0.1, pause=0.2).run(agent=agent.name).recovered == []
            until(lambda: agent.numbers() == list(range(20)), "all messages")
        finally:
            end_all(agent.processes)


@on_redis
def test_a_worker_that_does_not_group_gets_what_others_have_grouped(agent: Probe) -> None:
    """So switching it off loses nothing."""
    first = agent.start("-P", "solo", options=KEYED, waooaw_fair_queues=True)
    agent.send([agent.message("one", key="k", n=0, seconds=60)])
    until(lambda: agent.calls("begin"), "the first message")
    first.kill()
    first.wait(10)
    agent.send([agent.message("two", key="k", n=n) for n in range(1, 6)])
    second = agent.start(options=KEYED)
    until(lambda: queue_length(agent.app, agent.name) >= 5, "sorted messages")
    end_all([second])
    agent.start()
    until(lambda: set(agent.numbers()) >= set(range(1, 6)), "all messages", 60)


def test_a_full_queue_refuses_messages_and_takes_them_when_it_has_room(agent: Probe, broker: Broker) -> None:
    """A sender that may wait sends as soon as a worker has made room."""
    with closing(broker.app(waooaw_agents=[agent.name], waooaw_max_waiting=5)) as limited:
        bus = MessageBus(limited)
        bus.send_many([agent.message(n=n) for n in range(5)])
        with pytest.raises(QueueFull, match=f"5 messages wait for '{agent.name}'"):
            bus.send(agent.message(n=5))
        assert queue_length(agent.app, agent.name) == 5
        agent.start()
        bus.send(agent.message(n=6), wait=30)
    until(lambda: sorted(agent.numbers()) == [0, 1, 2, 3, 4, 6], "all messages")


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("sorted_by_worker", [False, True])
def test_a_sender_with_too_many_waiting_is_refused_and_others_are_not(
    agent: Probe, broker: Broker, fair: bool, sorted_by_worker: bool
) -> None:
    """Also when a worker has sorted the messages by sender and key."""
    if fair and broker.url.startswith("amqp"):
        pytest.skip("fair queues need Redis")
    agent.send([agent.message("quiet", key="k", n=0, seconds=60), agent.message("other", key="k", n=1)])
    if sorted_by_worker:
        agent.start("-P", "solo", options=KEYED, **({"waooaw_fair_queues": True} if fair else {}))
        until(lambda: agent.calls("begin"), "the first message")
    with closing(broker.app(waooaw_agents=[agent.name], waooaw_max_waiting_per_sender=5)) as limited:
        bus = MessageBus(limited)
        bus.send_many([agent.message("flood", key="k", n=n) for n in range(2, 7)])
        with pytest.raises(QueueFull, match=f"5 messages of 'flood' wait for '{agent.name}'"):
            bus.send(agent.message("flood", n=7))
        bus.send(agent.message("calm", n=8))
    for process in agent.processes:
        process.kill()


@pytest.mark.rabbitmq
def test_senders_and_busy_keys_are_counted_by_the_ledger_on_rabbitmq(
    ledgered_rabbitmq_broker: Broker, tmp_path: Path
) -> None:
    """RabbitMQ does not say what waits in a queue, and workers hold what waits for a key."""
    agent = Probe(ledgered_rabbitmq_broker, tmp_path)
    with closing(agent.app):
        try:
            agent.start(options=KEYED)
            agent.send([agent.message("one", key="k", n=0, seconds=60)])
            until(lambda: agent.calls("begin"), "the first message")
            agent.send([agent.message("one", key="k", n=1), agent.message("two", key="k", n=2)])
            bus = MessageBus(agent.app)
            until(lambda: bus.waiting(agent.name).blocked == 2, "the messages that wait")
            depth = bus.waiting(agent.name)
            assert (depth.busy_keys, depth.by_sender) == (1, {"one": 2, "two": 1})
            assert Recovery(agent.app, after=0.1, pause=0.2).run(agent=agent.name).recovered == []
        finally:
            for process in agent.processes:
                process.kill()
            end_all(agent.processes)


@pytest.mark.rabbitmq
def test_a_message_of_a_plain_celery_client_has_a_place_on_rabbitmq(
    ledgered_rabbitmq_broker: Broker, tmp_path: Path
) -> None:
    """From when a worker first gets it: nobody has recorded when it was sent."""
    agent = Probe(ledgered_rabbitmq_broker, tmp_path)
    plain = Celery("plain", broker=ledgered_rabbitmq_broker.url, set_as_current=False)
    with closing(agent.app):
        try:
            agent.start(options=KEYED)
            agent.send([agent.message(key="k", n=0, seconds=1)])
            until(lambda: agent.calls("begin"), "the first message")
            for number in (1, 2):
                plain.send_task(
                    f"{agent.name}.command",
                    args=[{"key": "k", "n": number}],
                    queue=agent_queue(agent.name),
                )
            until(lambda: len(agent.numbers()) == 3, "all messages")
            assert agent.numbers() == [0, 1, 2]
            agent.check_order()
        finally:
            end_all(agent.processes)
            plain.close()


@pytest.mark.rabbitmq
def test_a_key_is_held_by_a_worker_that_has_lost_its_connection(
    ledgered_rabbitmq_broker: Broker, tmp_path: Path
) -> None:
    """Its handlers run on: the messages come again, and another worker waits for their ends."""
    with proxied(ledgered_rabbitmq_broker.url) as proxy:
        through = replace(ledgered_rabbitmq_broker, url=proxy.url, folder=tmp_path)
        agent = Probe(through, tmp_path)
        with closing(agent.app):
            try:
                agent.start(options=KEYED)
                agent.send(
                    [agent.message(key="k", n=0, seconds=4), *(agent.message(key="k", n=n) for n in (1, 2))]
                )
                until(lambda: agent.calls("begin"), "the first message")
                agent.start(options=KEYED)
                proxy.cut()
                until(lambda: agent.numbers()[-1:] == [2], "all messages", 60)
                agent.check_order()
                assert [call["n"] for call in agent.calls("begin")] == [0, 1, 2]
            finally:
                end_all(agent.processes)
    ledgered_rabbitmq_broker.names.add(agent.name)
