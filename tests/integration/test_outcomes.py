"""Every way in which a message can end in a worker. The ledger has one final event for each, and the right one."""

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
from process_pool import spawn
from support import Broker, lone_database, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, create_app
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.read.records import AuditEvent
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.testing.embedded import end_all, valkey

ROOT = Path(__file__).parents[2]

Process: TypeAlias = subprocess.Popen[bytes]
Start: TypeAlias = Callable[[Broker, str], Process]


@pytest.fixture(scope="module")
def ledger_url(postgres_url: str) -> Iterator[str]:
    """A ledger for this file alone, because it sets what counts as lost."""
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
    """Name of an agent that meets all these outcomes, one after another, in one worker."""
    app, name = broker.app(), broker.name()
    process = broker.start(name, app)
    yield name
    assert process.poll() is None, "the worker has ended"
    end_all([process])
    app.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a worker of a broker's agent for one test."""
    processes = []

    def _start(broker: Broker, name: str) -> Process:
        app = broker.app()
        processes.append(broker.start(name, app))
        app.close()
        return processes[-1]

    yield _start
    end_all(processes)


def kill(worker: Process) -> None:
    """Kill a worker and the processes of its pool, like a computer that fails."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)


@dataclass(frozen=True)
class Outcome:
    """A message, and the events that the ledger has of it after SENT.

    Attributes:
        events: each with its attempt.
        error: a pattern for the error of the last event; None: there is no error.
    """

    events: list[tuple[str, int]]
    error: str | None = None
    handler: str = "command"
    payload: Any = None
    options: dict[str, Any] = field(default_factory=dict)


TWO_ATTEMPTS = [("delivered", 1), ("retried", 1), ("delivered", 2)]
FAILED = [("delivered", 1), ("failed", 1)]
HANDLED = [("delivered", 1), ("handled", 1)]
OUTCOMES = {
    "success": Outcome(HANDLED),
    "an exception": Outcome(FAILED, "ValueError: no such invoice", payload={"fail": "no such invoice"}),
    "a soft time limit": Outcome(
        FAILED, r"SoftTimeLimitExceeded\(\)", payload={"sleep": 30}, options={"soft_time_limit": 1}
    ),
    "a hard time limit": Outcome(
        FAILED, r"TimeLimitExceeded\(1,\)", payload={"sleep": 30}, options={"time_limit": 1}
    ),
    "a retry, then success": Outcome([*TWO_ATTEMPTS, ("handled", 2)], payload={"fail_times": 1}),
    "retries up to the limit": Outcome(
        [*TWO_ATTEMPTS, ("failed", 2)], "TimeoutError: not yet", payload={"fail_times": 9, "max_retries": 1}
    ),
    "Reject": Outcome(FAILED, "Reject: not mine", payload={"reject": "not mine"}),
    "Reject with requeue, then success": Outcome([*TWO_ATTEMPTS, ("handled", 2)], payload={"requeue": "not now"}),
    "Ignore": Outcome(HANDLED, payload={"ignore": "not mine"}),
    "no memory": Outcome(
        FAILED, r"HandlerExited: .* ran out of memory: too much", payload={"exhaust": "too much"}
    ),
    "sys.exit": Outcome(FAILED, r"HandlerExited: .* called sys\.exit\(3\)", payload={"exit": 3}),
    "its process killed, then success": Outcome([*TWO_ATTEMPTS, ("handled", 2)], payload={"kill_times": 1}),
    "its process terminated, then success": Outcome(
        [*TWO_ATTEMPTS, ("handled", 2)], payload={"kill_times": 1, "signal": signal.SIGTERM}
    ),
    "a result that cannot be encoded": Outcome(
        FAILED, "InvalidMessage: the result is a set, which cannot be sent.*", handler="answer_with_a_set"
    ),
    "a retry after the expiry": Outcome(
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


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_every_outcome_is_recorded_once(app: AgentApp, agent: str, outcome: Outcome) -> None:
    """The ledger has one final event, with its error, attempt and worker, and the worker continues."""
    args = () if outcome.payload is None and outcome.handler != "command" else (outcome.payload,)
    message_id = app.signature(f"{agent}.{outcome.handler}", args=args).apply_async(**outcome.options).id
    assert_outcome(app, agent, message_id, outcome.events, outcome.error)


def test_a_handler_without_memory_does_not_end_its_process(app: AgentApp, agent: str) -> None:
    """``MemoryError`` ends neither the worker nor the process of the pool."""
    before = Requests(app).request(agent, "process")
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={"exhaust": "too much"}))
    assert settled(app, sent.message_id) is MessageStatus.FAILED
    assert Requests(app).request(agent, "process") == before


def test_a_message_that_expires_in_the_queue_has_no_attempt(app: AgentApp, agent: str) -> None:
    """It waits behind a long handler, and ends as EXPIRED."""
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=agent, payload={"sleep": 0.8}))
    late = bus.send(Message(from_agent="tests", to_agent=agent, ttl_seconds=0.3))
    assert_outcome(app, agent, late.message_id, [("expired", 0)])


def test_a_message_that_expires_in_the_worker_has_no_attempt(app: AgentApp, agent: str) -> None:
    """It is due while the process is busy, waits inside the worker, and ends as EXPIRED."""
    late = app.signature(f"{agent}.command", args=(None,)).apply_async(countdown=0.5, expires=0.8)
    MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={"sleep": 1.5}))
    assert_outcome(app, agent, late.id, [("expired", 0)])


def test_a_message_revoked_before_its_handler_starts_has_failed(app: AgentApp, agent: str) -> None:
    """The worker drops it, and the ledger says that an operator revoked it."""
    message = Message(from_agent="tests", to_agent=agent)
    assert app.control.revoke(message.message_id, reply=True, limit=1, timeout=10)
    MessageBus(app).send(message)
    assert_outcome(app, agent, message.message_id, [("failed", 0)], "revoked by an operator")


def test_a_message_revoked_while_its_handler_runs_has_failed(app: AgentApp, agent: str) -> None:
    """The process that handles it is ended, and it is not tried again."""
    message_id = send_and_wait_for_start(app, agent, {"sleep": 30})
    app.control.revoke(message_id, terminate=True)
    assert_outcome(app, agent, message_id, FAILED, "revoked by an operator")


def send_and_wait_for_start(app: AgentApp, agent: str, payload: Any, **fields: Any) -> str:
    """Send a message, wait until its handler has started, and return its id."""
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload=payload, **fields))
    until(
        lambda: "delivered" in [event.event for event in recorded_events(app, sent.message_id)],
        "the handler to start",
    )
    return sent.message_id


def test_the_caller_of_an_ignored_request_gets_an_error_at_once(app: AgentApp, agent: str) -> None:
    """A method that raises ``Ignore`` gives no answer, and its caller does not wait for the timeout."""
    response = Requests(app).send_request(agent, "ignore", {"text": "not mine"}, timeout=20)
    assert isinstance(response.error, RemoteError)
    assert (response.error.type, response.error.message) == ("Ignore", "not mine")
    assert response.seconds < 5
    assert_outcome(app, agent, response.message_id, HANDLED)


def test_a_method_may_store_a_state_and_ignore_its_request(app: AgentApp, agent: str) -> None:
    """A state that the method stored before it raised ``Ignore`` stays."""
    call = app.signature(f"{agent}.ignore", kwargs={"text": "later", "state": "AT_THE_PRINTER"}).delay()
    assert_outcome(app, agent, call.id, HANDLED)
    assert call.state == "AT_THE_PRINTER"


def test_a_message_without_a_handler_is_a_dead_letter(broker: Broker, app: AgentApp, start: Start) -> None:
    """A sender that knows only the agent's name can send what its worker does not handle."""
    agent = broker.name()
    sender = broker.app(waooaw_agents=[agent])
    message = Message(from_agent="tests", to_agent=agent, message_type=MessageType.QUERY)
    MessageBus(sender).send(message)
    sender.close()
    start(broker, agent)
    assert_outcome(app, agent, message.message_id, [("dead", 0)], f"the worker has no handler '{agent}.query'")


def test_an_outcome_that_cannot_be_stored_is_a_failure(
    broker: Broker, app: AgentApp, start: Start, tmp_path: Path
) -> None:
    """When the result backend is gone before the method returns, the message fails; a retry is still a retry."""
    agent = broker.name()
    with ExitStack() as stack:
        start(Broker(broker.url, stack.enter_context(valkey()), tmp_path, broker.database_url), agent)
        lost = app.signature(f"{agent}.sleep", args=(1,)).delay()
        again = app.signature(f"{agent}.sleep_and_retry", args=(0,)).delay()
        until(lambda: recorded_events(app, lost.id)[-1].event == "delivered", "the handler to start")
    for message_id, expected in ((lost.id, FAILED), (again.id, [*TWO_ATTEMPTS, ("failed", 2)])):
        assert settled(app, message_id) is MessageStatus.FAILED
        events = recorded_events(app, message_id)
        assert [(event.event, event.attempt) for event in events] == [("sent", 0), *expected]
        assert re.match("its outcome could not be stored: .+", events[-1].error or "")
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED


@pytest.mark.rabbitmq
def test_a_message_of_a_killed_worker_is_handled_by_the_next(
    amqp_url: str, redis_url: str, ledger_url: str, tmp_path: Path, start: Start
) -> None:
    """RabbitMQ delivers it again at once: two attempts with number 1, and one final event."""
    broker = Broker(amqp_url, redis_url, tmp_path, ledger_url)
    app, agent = broker.app(), broker.name()
    worker = start(broker, agent)
    message_id = send_and_wait_for_start(app, agent, {"first_sleep": 60})
    kill(worker)
    start(broker, agent)
    assert_outcome(app, agent, message_id, [("delivered", 1), ("delivered", 1), ("handled", 1)])
    broker.clean()
    app.close()


@pytest.mark.slow
def test_periodic_tasks_end_messages_of_lost_workers(
    broker: Broker, app: AgentApp, start: Start, tmp_path: Path
) -> None:
    """A killed worker leaves a started message, a retry and a waiting message: they end as FAILED or EXPIRED."""
    agent = broker.name()
    worker = start(broker, agent)
    again = send_and_wait_for_start(app, agent, {"fail_times": 1, "countdown": 4}, ttl_seconds=6.0)
    until(lambda: recorded_events(app, again)[-1].event == "retried", "its retry")
    started = send_and_wait_for_start(app, agent, {"sleep": 60}, ttl_seconds=2.0)
    waiting = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, ttl_seconds=1.0)).message_id
    forever = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, ttl_seconds=None)).message_id
    kill(worker)
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(agent)(channel).delete()
    assert app.ledger.reconcile() == []  # `waooaw_lost_seconds` is an hour here
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
        final = [
            (settled(app, message_id), recorded_events(app, message_id))
            for message_id in (started, again, waiting)
        ]
    finally:
        end_all(processes)
    assert [status for status, _ in final] == [MessageStatus.FAILED, MessageStatus.EXPIRED, MessageStatus.EXPIRED]
    assert [[(event.event, event.attempt) for event in events[1:]] for _, events in final] == [
        [("delivered", 1), ("failed", 0)],
        [("delivered", 1), ("retried", 1), ("expired", 0)],
        [("expired", 0)],
    ]
    assert final[0][1][-1].error == "lost: begun more than 1 s ago, and no worker reported its end"
    assert MessageBus(app).receipt(forever).status is MessageStatus.SENT


def assert_outcome(
    app: AgentApp, agent: str, message_id: str, expected: list[tuple[str, int]], error: str | None = None
) -> None:
    """Wait for the end of a message, and for that of a later one, and compare what the ledger has."""
    settled(app, message_id)
    # A second report, if there is one, has arrived when the next message is handled.
    assert Requests(app).request(agent, "echo", {"value": 1}, timeout=20) == 1
    events = recorded_events(app, message_id)
    assert [(event.event, event.attempt) for event in events] == [("sent", 0), *expected]
    assert sum(event.event in ("handled", "failed", "expired", "dead") for event in events) == 1
    last = events[-1]
    assert last.error == error if error is None else re.fullmatch(error, last.error or "", re.DOTALL), last.error
    assert {(event.worker or "").partition("@")[0] for event in events[1:]} == {agent}
    receipt = MessageAuditTrail(app.ledger).receipt(message_id).receipt
    assert receipt.attempts == [event for event, _ in expected].count("delivered")
    assert (receipt.status, receipt.error, receipt.finished_at) == (last.event, last.error, last.at)


def recorded_events(app: AgentApp, message_id: str) -> tuple[AuditEvent, ...]:
    return MessageAuditTrail(app.ledger).receipt(message_id).events
