"""Every way in which a message can end in a worker: the ledger has one end of each, and it is the right one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from nursery import spawn
from support import Broker, lone_database, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, create_app
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.embedded import end_all, valkey
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.read.records import AuditEvent
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.queues import agent_queue

ROOT = Path(__file__).parents[2]

Process: TypeAlias = subprocess.Popen[bytes]
Start: TypeAlias = Callable[[Broker, str], Process]


@pytest.fixture(scope="module")
def ledger_url(postgres_url: str) -> Iterator[str]:
    """A ledger of this module's own: what counts as lost here is nobody else's."""
    with lone_database(postgres_url) as url:
        app = create_app(waooaw_database_url=url)
        schema.upgrade(app.database)
        app.close()
        yield url


@pytest.fixture(scope="module")
def broker(redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("endings"), ledger_url)
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def agent(broker: Broker) -> Iterator[str]:
    """Name of an agent that meets all these ends, one after the other, in one worker."""
    app, name = broker.app(), broker.name()
    process = broker.start(name, app)
    yield name
    assert process.poll() is None, "the worker came to an end"
    end_all([process])
    app.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a worker of a broker's agent that lives as long as the test."""
    processes = []

    def _start(broker: Broker, name: str) -> Process:
        app = broker.app()
        processes.append(broker.start(name, app))
        app.close()
        return processes[-1]

    yield _start
    end_all(processes)


def kill(worker: Process) -> None:
    """Kill a worker with the processes of its pool, as the end of a computer does."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)


@dataclass(frozen=True)
class Ending:
    """What is sent, and what the ledger must tell of it after SENT.

    Attributes:
        events: each with its attempt.
        error: what the error of the last event is, from its beginning to its end; None for none.
    """

    events: list[tuple[str, int]]
    error: str | None = None
    handler: str = "command"
    payload: Any = None
    options: dict[str, Any] = field(default_factory=dict)


TWICE = [("delivered", 1), ("retried", 1), ("delivered", 2)]
FAILED = [("delivered", 1), ("failed", 1)]
HANDLED = [("delivered", 1), ("handled", 1)]
ENDINGS = {
    "success": Ending(HANDLED),
    "an exception": Ending(FAILED, "ValueError: no such invoice", payload={"fail": "no such invoice"}),
    "a soft time limit": Ending(
        FAILED, r"SoftTimeLimitExceeded\(\)", payload={"sleep": 30}, options={"soft_time_limit": 1}
    ),
    "a hard time limit": Ending(
        FAILED, r"TimeLimitExceeded\(1,\)", payload={"sleep": 30}, options={"time_limit": 1}
    ),
    "a retry, then success": Ending([*TWICE, ("handled", 2)], payload={"fail_times": 1}),
    "retries until it is given up": Ending(
        [*TWICE, ("failed", 2)], "TimeoutError: not yet", payload={"fail_times": 9, "max_retries": 1}
    ),
    "Reject": Ending(FAILED, "Reject: not mine", payload={"reject": "not mine"}),
    "Reject with requeue, then success": Ending([*TWICE, ("handled", 2)], payload={"requeue": "not now"}),
    "Ignore": Ending(HANDLED, payload={"ignore": "not mine"}),
    "no memory": Ending(FAILED, r"HandlerExited: .* ran out of memory: too much", payload={"exhaust": "too much"}),
    "sys.exit": Ending(FAILED, r"HandlerExited: .* called sys\.exit\(3\)", payload={"exit": 3}),
    "its process killed, then success": Ending([*TWICE, ("handled", 2)], payload={"kill_times": 1}),
    "its process told to end, then success": Ending(
        [*TWICE, ("handled", 2)], payload={"kill_times": 1, "signal": signal.SIGTERM}
    ),
    "a result that cannot be written": Ending(
        FAILED, r"EncodeError: .*set is not JSON serializable.*", handler="answer_with_a_set"
    ),
    "a retry that would come too late": Ending(
        FAILED,
        "TimeoutError: not yet",
        payload={"fail_times": 1, "countdown": 1},
        options={"expires": 0.5},
    ),
}


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    app = broker.app()
    yield app
    app.close()


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_every_end_is_told_once(app: AgentApp, agent: str, ending: Ending) -> None:
    """The ledger has one terminal event, with its error, attempt and worker, and the worker goes on."""
    args = () if ending.payload is None and ending.handler != "command" else (ending.payload,)
    message_id = app.signature(f"{agent}.{ending.handler}", args=args).apply_async(**ending.options).id
    assert_ended(app, agent, message_id, ending.events, ending.error)


def test_a_handler_without_memory_leaves_its_process_as_it_was(app: AgentApp, agent: str) -> None:
    """``MemoryError`` ends neither the worker nor the process of the pool that met it."""
    before = Requests(app).request(agent, "process")
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={"exhaust": "too much"}))
    assert settled(app, sent.message_id) is MessageStatus.FAILED
    assert Requests(app).request(agent, "process") == before


def test_what_expires_in_the_queue_was_never_begun(app: AgentApp, agent: str) -> None:
    """Behind a message that takes longer than its time it ends as EXPIRED, without an attempt."""
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=agent, payload={"sleep": 0.8}))
    late = bus.send(Message(from_agent="tests", to_agent=agent, ttl_seconds=0.3))
    assert_ended(app, agent, late.message_id, [("expired", 0)])


def test_what_expires_in_the_worker_was_never_begun(app: AgentApp, agent: str) -> None:
    """When its moment comes while the process is busy, it waits inside the worker, and ends the same way."""
    late = app.signature(f"{agent}.command", args=(None,)).apply_async(countdown=0.5, expires=0.8)
    MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={"sleep": 1.5}))
    assert_ended(app, agent, late.id, [("expired", 0)])


def test_a_message_revoked_before_it_is_begun_has_failed(app: AgentApp, agent: str) -> None:
    """The worker drops it, and the ledger says that an operator revoked it."""
    message = Message(from_agent="tests", to_agent=agent)
    assert app.control.revoke(message.message_id, reply=True, limit=1, timeout=10)
    MessageBus(app).send(message)
    assert_ended(app, agent, message.message_id, [("failed", 0)], "revoked by an operator")


def test_a_message_revoked_while_it_runs_has_failed(app: AgentApp, agent: str) -> None:
    """The process that handles it is ended, and it is not tried again."""
    message_id = begin(app, agent, {"sleep": 30})
    app.control.revoke(message_id, terminate=True)
    assert_ended(app, agent, message_id, FAILED, "revoked by an operator")


def begin(app: AgentApp, agent: str, payload: Any, **fields: Any) -> str:
    """Send a message, and return its id when a worker has begun it."""
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload=payload, **fields))
    until(lambda: "delivered" in [event.event for event in told(app, sent.message_id)], "its beginning")
    return sent.message_id


def test_whoever_waits_for_what_is_ignored_is_told_at_once(app: AgentApp, agent: str) -> None:
    """A method that raises ``Ignore`` gives no answer, and its caller hears of that and need not wait."""
    response = Requests(app).send_request(agent, "ignore", {"text": "not mine"}, timeout=20)
    assert isinstance(response.error, RemoteError)
    assert (response.error.type, response.error.message) == ("Ignore", "not mine")
    assert response.seconds < 5
    assert_ended(app, agent, response.message_id, HANDLED)


def test_a_method_may_store_a_state_and_ignore_its_request(app: AgentApp, agent: str) -> None:
    """A state that the method stored before it raised ``Ignore`` stays."""
    call = app.signature(f"{agent}.ignore", kwargs={"text": "later", "state": "AT_THE_PRINTER"}).delay()
    assert_ended(app, agent, call.id, HANDLED)
    assert call.state == "AT_THE_PRINTER"


def test_a_message_for_which_the_worker_has_no_handler_is_a_dead_letter(
    broker: Broker, app: AgentApp, start: Start
) -> None:
    """An agent that is only known by its name may be sent what its worker then does not handle."""
    agent = broker.name()
    sender = broker.app(waooaw_agents=[agent])
    message = Message(from_agent="tests", to_agent=agent, message_type=MessageType.QUERY)
    MessageBus(sender).send(message)
    sender.close()
    start(broker, agent)
    assert_ended(app, agent, message.message_id, [("dead", 0)], f"the worker has no handler '{agent}.query'")


def test_an_outcome_that_cannot_be_stored_is_a_failure(
    broker: Broker, app: AgentApp, start: Start, tmp_path: Path
) -> None:
    """When the result backend is gone before the method returns, the ledger says so; a retry is still a retry."""
    agent = broker.name()
    with ExitStack() as stack:
        start(Broker(broker.url, stack.enter_context(valkey()), tmp_path, broker.database_url), agent)
        lost = app.signature(f"{agent}.sleep", args=(1,)).delay()
        again = app.signature(f"{agent}.sleep_and_retry", args=(0,)).delay()
        until(lambda: told(app, lost.id)[-1].event == "delivered", "its beginning")
    for message_id, expected in ((lost.id, FAILED), (again.id, [*TWICE, ("failed", 2)])):
        assert settled(app, message_id) is MessageStatus.FAILED
        events = told(app, message_id)
        assert [(event.event, event.attempt) for event in events] == [("sent", 0), *expected]
        assert re.match("its outcome could not be stored: .+", events[-1].error or "")
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED


@pytest.mark.rabbitmq
def test_what_a_killed_worker_held_is_handled_by_the_next(
    amqp_url: str, redis_url: str, ledger_url: str, tmp_path: Path, start: Start
) -> None:
    """RabbitMQ hands it out again at once: it is begun twice, each time as the first attempt, and ends once."""
    broker = Broker(amqp_url, redis_url, tmp_path, ledger_url)
    app, agent = broker.app(), broker.name()
    worker = start(broker, agent)
    message_id = begin(app, agent, {"first_sleep": 60})
    kill(worker)
    start(broker, agent)
    assert_ended(app, agent, message_id, [("delivered", 1), ("delivered", 1), ("handled", 1)])
    broker.clean()
    app.close()


def test_beat_closes_what_no_worker_will_tell_of(
    broker: Broker, app: AgentApp, start: Start, tmp_path: Path
) -> None:
    """A killed worker leaves what it had begun, what it was to try again and what waited: lost, and expired."""
    agent = broker.name()
    worker = start(broker, agent)
    again = begin(app, agent, {"fail_times": 1, "countdown": 4}, ttl_seconds=6.0)
    until(lambda: told(app, again)[-1].event == "retried", "its retry")
    begun = begin(app, agent, {"sleep": 60}, ttl_seconds=2.0)
    waiting = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, ttl_seconds=1.0)).message_id
    forever = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, ttl_seconds=None)).message_id
    kill(worker)
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(agent)(channel).delete()
    assert app.ledger.reconcile() == []  # within its time, which is an hour here
    env = os.environ | {
        "CELERY_BROKER_URL": broker.url,
        "WAOOAW_DATABASE_URL": broker.database_url or "",
        "WAOOAW_SWEEP_SECONDS": "1",
        "WAOOAW_LOST_SECONDS": "1",
    }
    celery = [sys.executable, "-m", "celery", "-A", "beat_schedule"]
    beat = [*celery, "beat", "--schedule", str(tmp_path / "schedule")]
    system = [*celery, "worker", "-n", f"{broker.name()}@%h", "-c", "1", "--without-mingle", "--without-gossip"]
    processes = [spawn(command, log=tmp_path / "log", env=env, cwd=ROOT) for command in (beat, system)]
    try:
        ends = [(settled(app, message_id), told(app, message_id)) for message_id in (begun, again, waiting)]
    finally:
        end_all(processes)
    assert [status for status, _ in ends] == [MessageStatus.FAILED, MessageStatus.EXPIRED, MessageStatus.EXPIRED]
    assert [[(event.event, event.attempt) for event in events[1:]] for _, events in ends] == [
        [("delivered", 1), ("failed", 0)],
        [("delivered", 1), ("retried", 1), ("expired", 0)],
        [("expired", 0)],
    ]
    assert ends[0][1][-1].error == "lost: begun more than 1 s ago, and no worker reported its end"
    assert MessageBus(app).receipt(forever).status is MessageStatus.SENT


def assert_ended(
    app: AgentApp, agent: str, message_id: str, expected: list[tuple[str, int]], error: str | None = None
) -> None:
    """Wait for the end of a message, and for that of a later one, and compare what the ledger tells."""
    settled(app, message_id)
    # What is told twice has been told twice when the next message was handled.
    assert Requests(app).request(agent, "echo", {"value": 1}, timeout=20) == 1
    events = told(app, message_id)
    assert [(event.event, event.attempt) for event in events] == [("sent", 0), *expected]
    assert sum(event.event in ("handled", "failed", "expired", "dead") for event in events) == 1
    last = events[-1]
    assert last.error == error if error is None else re.fullmatch(error, last.error or "", re.DOTALL), last.error
    assert {(event.worker or "").partition("@")[0] for event in events[1:]} == {agent}
    receipt = MessageAuditTrail(app.ledger).receipt(message_id).receipt
    assert receipt.attempts == [event for event, _ in expected].count("delivered")
    assert (receipt.status, receipt.error, receipt.finished_at) == (last.event, last.error, last.at)


def told(app: AgentApp, message_id: str) -> tuple[AuditEvent, ...]:
    return MessageAuditTrail(app.ledger).receipt(message_id).events
