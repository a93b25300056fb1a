"""Cancelling messages and requests: those that wait, those that are not due, and those whose handlers run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    RequestResponseHandler,
)
from waooaw_celery.errors import Cancelled, NotStoppable, UnknownMessage
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.testing.embedded import end, end_all

POOLS = {"prefork": ("-P", "prefork"), "threads": ("-P", "threads")}
#: The workers: pool, and module of the agent.
WORKERS = [(pool, module) for pool in POOLS for module in ("probe", "async_probe")]


@pytest.fixture(scope="session")
def workers() -> Iterator[dict[tuple[str, str, str], tuple[str, Any]]]:
    """Agents that live as long as the session, by broker, pool and module."""
    found: dict[tuple[str, str, str], tuple[str, Any]] = {}
    yield found
    end_all(process for _, process in found.values())


AgentIn = Callable[..., str]


@pytest.fixture
def agent_in(broker: Broker, app: AgentApp, workers: dict[tuple[str, str, str], tuple[str, Any]]) -> AgentIn:
    """Return a function that returns the name of an agent in a pool, which handles one message at a time."""

    def _agent_in(pool: str, module: str = "probe") -> str:
        key = str(broker.folder), pool, module
        if key not in workers:
            name = broker.name()
            workers[key] = name, broker.start(name, app, *POOLS[pool], module=module)
        return workers[key][0]

    return _agent_in


@pytest.fixture
def bus(app: AgentApp) -> MessageBus:
    return MessageBus(app)


@pytest.fixture
def requests(app: AgentApp) -> RequestResponseHandler:
    return RequestResponseHandler(app)


def send_command(bus: MessageBus, agent: str, payload: Any, **fields: Any) -> str:
    """Send a command and return its id."""
    return bus.send(Message(from_agent="tests", to_agent=agent, payload=payload, **fields)).message_id


def start_command(bus: MessageBus, agent: str, payload: Any) -> str:
    """Send a command, wait until its handler has started, and return its id."""
    message_id = send_command(bus, agent, payload)
    until(lambda: bus.receipt(message_id).delivered_at is not None, "the handler to start")
    return message_id


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for which handlers wait, so that a test decides when they end."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@contextmanager
def pending_request(
    requests: RequestResponseHandler, *args: Any, **kwargs: Any
) -> Iterator[tuple[Future[Any], str]]:
    """Send a request from another thread; yield its future outcome and its id."""
    before = {receipt.message_id for receipt in requests.app.receipts.recent()}

    def new_requests() -> list[DeliveryReceipt]:
        return [
            receipt
            for receipt in requests.app.receipts.recent()
            if receipt.message_id not in before and receipt.handler == args[1]
        ]

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(requests.send_request, *args, **kwargs)
        until(new_requests, "the request")
        yield future, new_requests()[0].message_id


def events(app: AgentApp, message_id: str) -> list[tuple[str, int]]:
    """Return the events of a message in the ledger, except SENT."""
    recorded = MessageAuditTrail(app.ledger).receipt(message_id).events
    return [(event.event, event.attempt) for event in recorded if event.event != "sent"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_message_behind_a_busy_handler_is_cancelled_at_once(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, gate: Path, pool: str
) -> None:
    """Its handler has not started, so it is CANCELLED now, and never handled."""
    agent = agent_in(pool)
    busy = start_command(bus, agent, {"gate": str(gate)})
    waiting = send_command(bus, agent, {"never": 1})
    receipt = bus.cancel(waiting, timeout=20)
    assert (receipt.status, receipt.attempts) == (MessageStatus.CANCELLED, 0)
    assert receipt.cancel_requested_at is not None
    assert bus.receipt(busy).status is MessageStatus.DELIVERED
    gate.touch()
    assert settled(app, busy) is MessageStatus.HANDLED
    later = RequestResponseHandler(app).request(agent, "seen", timeout=20)
    assert waiting not in [each["message_id"] for each in later]
    assert bus.receipt(waiting) == receipt


@pytest.mark.slow
def test_a_message_to_a_stopped_agent_is_dropped_when_it_starts(
    broker: Broker, app: AgentApp, bus: MessageBus
) -> None:
    """No worker can promise to drop it, so it stays SENT. Its worker drops it, and it is CANCELLED."""
    name = broker.name()
    worker = broker.start(name, app)
    end(worker)
    lost, kept = send_command(bus, name, {"n": 1}, ttl_seconds=None), send_command(bus, name, {"n": 2})
    receipt = bus.cancel(lost)
    assert receipt.status is MessageStatus.SENT
    assert receipt.cancel_requested_at is not None
    worker = broker.start(name, app)
    try:
        assert settled(app, kept) is MessageStatus.HANDLED
        assert settled(app, lost) is MessageStatus.CANCELLED
        assert bus.receipt(lost).attempts == 0
        seen = RequestResponseHandler(app).request(name, "seen", timeout=20)
        assert [each["message_id"] for each in seen] == [kept]
    finally:
        end(worker)


@pytest.mark.slow
def test_a_worker_that_restarts_drops_what_was_cancelled_before(
    broker: Broker, app: AgentApp, bus: MessageBus, gate: Path
) -> None:
    """A worker promised to drop a message and ended. The next one drops it."""
    name = broker.name()
    worker = broker.start(name, app)
    busy = start_command(bus, name, {"gate": str(gate)})
    cancelled = send_command(bus, name, {"n": 1})
    assert bus.cancel(cancelled, timeout=20).status is MessageStatus.CANCELLED
    worker.terminate()
    gate.touch()
    end(worker)
    assert bus.receipt(busy).status is MessageStatus.HANDLED
    worker = broker.start(name, app)
    try:
        assert settled(app, send_command(bus, name, {"n": 2})) is MessageStatus.HANDLED
        seen = RequestResponseHandler(app).request(name, "seen", timeout=20)
        assert [each["payload"] for each in seen] == [{"n": 2}]
        assert bus.receipt(cancelled).status is MessageStatus.CANCELLED
    finally:
        end(worker)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_message_with_a_countdown_is_dropped_at_once(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, pool: str
) -> None:
    """It is in the worker already, which drops it before it is due."""
    agent = agent_in(pool)
    later = app.send_task(f"{agent}.command", args=({"n": 1},), countdown=60).id
    until(lambda: _scheduled(app, agent, later), "the worker to have it")
    assert bus.cancel(later, timeout=20).status is MessageStatus.CANCELLED
    soon = app.send_task(f"{agent}.command", args=({"n": 2},), countdown=5).id
    until(lambda: _scheduled(app, agent, soon), "the worker to have it")
    assert bus.cancel(soon, timeout=20).status is MessageStatus.CANCELLED
    after = app.send_task(f"{agent}.command", args=({"n": 3},), countdown=6).id
    assert settled(app, after) is MessageStatus.HANDLED
    assert bus.receipt(soon).attempts == 0


def _scheduled(app: AgentApp, agent: str, message_id: str) -> bool:
    answers = app.control.inspect(destination=list(app.registry.get(agent).workers)).query_task(message_id) or {}
    return any(message_id in answer for answer in answers.values())


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_handler_is_stopped_only_with_running(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, gate: Path, pool: str
) -> None:
    """The handler comes to its end, and the receipt says HANDLED. A second cancellation changes nothing."""
    message_id = start_command(bus, agent_in(pool), {"gate": str(gate)})
    receipts = [bus.cancel(message_id, timeout=20) for _ in range(2)]
    assert [receipt.status for receipt in receipts] == [MessageStatus.DELIVERED] * 2
    assert receipts[0].cancel_requested_at == receipts[1].cancel_requested_at is not None
    gate.touch()
    assert settled(app, message_id) is MessageStatus.HANDLED


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_coroutine_is_stopped_and_cleans_up(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, agent_in: AgentIn, pool: str, tmp_path: Path
) -> None:
    """Its ``finally`` runs, its caller gets Cancelled at once, and its worker continues."""
    agent = agent_in(pool, "async_probe")
    params = {"path": str(tmp_path / "note")}
    with pending_request(requests, agent, "wait_and_note", params, timeout=30) as (answer, id_):
        until(lambda: bus.receipt(id_).delivered_at is not None, "the handler to start")
        until(lambda: (tmp_path / "note").exists(), "the handler's first line")
        receipt = bus.cancel(id_, running=True, timeout=10)
        assert (receipt.status, receipt.attempts) == (MessageStatus.CANCELLED, 1)
        response = answer.result(15)
    assert isinstance(response.error, Cancelled)
    assert response.seconds < 20
    assert (tmp_path / "note").read_text() == "began, cleaned up"
    assert requests.request(agent, "nap", {"seconds": 0}, timeout=20) == 0


def test_a_running_plain_handler_is_stopped_with_its_process(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, agent_in: AgentIn
) -> None:
    """In the prefork pool every handler can be stopped. It is not tried again in another process."""
    agent = agent_in("prefork")
    with pending_request(requests, agent, "sleep", {"seconds": 60}, timeout=30) as (answer, message_id):
        until(lambda: bus.receipt(message_id).delivered_at is not None, "the handler to start")
        assert bus.cancel(message_id, running=True, timeout=10).status is MessageStatus.CANCELLED
        assert isinstance(answer.result(15).error, Cancelled)
    assert requests.request(agent, "echo", {"value": 1}, timeout=20) == 1
    assert bus.receipt(message_id).attempts == 1


def test_a_plain_handler_in_a_thread_cannot_be_stopped(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, gate: Path
) -> None:
    """``cancel`` raises NotStoppable, and the handler comes to its end."""
    message_id = start_command(bus, agent_in("threads"), {"gate": str(gate)})
    with pytest.raises(NotStoppable, match="cannot be stopped"):
        bus.cancel(message_id, running=True, timeout=20)
    assert bus.receipt(message_id).status is MessageStatus.DELIVERED
    gate.touch()
    assert settled(app, message_id) is MessageStatus.HANDLED


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_the_next_attempt_of_a_cancelled_message_is_dropped(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, pool: str
) -> None:
    """The first attempt has run, and there is no second."""
    message_id = send_command(bus, agent_in(pool), {"fail_times": 5, "countdown": 10})
    until(lambda: bus.receipt(message_id).attempts == 1, "the first attempt")
    bus.cancel(message_id, timeout=20)
    assert settled(app, message_id) is MessageStatus.CANCELLED
    assert bus.receipt(message_id).attempts == 1


def test_the_caller_of_a_cancelled_request_gets_cancelled(
    bus: MessageBus, requests: RequestResponseHandler, agent_in: AgentIn, gate: Path
) -> None:
    """The caller gets Cancelled at once, and not at its timeout."""
    agent = agent_in("prefork")
    start_command(bus, agent, {"gate": str(gate)})
    with pending_request(requests, agent, "echo", {"value": 1}, timeout=30) as (answer, message_id):
        assert bus.cancel(message_id, timeout=20).status is MessageStatus.CANCELLED
        response = answer.result(15)
    assert isinstance(response.error, Cancelled)


def test_a_message_that_has_ended_is_unchanged(app: AgentApp, bus: MessageBus, agent_in: AgentIn) -> None:
    """Cancelling a handled message returns its receipt, and records nothing."""
    message_id = send_command(bus, agent_in("prefork"), {})
    settled(app, message_id)
    before = bus.receipt(message_id)
    assert bus.cancel(message_id, running=True) == before
    assert before.cancel_requested_at is None


def test_an_unknown_message_cannot_be_cancelled(bus: MessageBus) -> None:
    """``cancel`` raises UnknownMessage."""
    with pytest.raises(UnknownMessage):
        bus.cancel("never-sent")


def test_the_ledger_records_who_cancelled(ledger_broker: Broker, agent_in: AgentIn) -> None:
    """The cancellation is an event with the name of who asked for it, before the final event."""
    app = ledger_broker.app()
    bus = MessageBus(app)
    name = ledger_broker.name()
    app.registry.declare(name, ["command"], "nobody@nowhere", 0.001)
    message_id = send_command(bus, name, {})
    bus.cancel(message_id, from_agent="auditor", running=True)
    assert events(app, message_id) == [("cancel_requested", 0)]
    [*_, asked] = MessageAuditTrail(app.ledger).receipt(message_id).events
    assert asked.error == "by auditor, also when its handler runs"
    app.close()


@pytest.mark.parametrize(("pool", "module"), WORKERS)
def test_receipts_agree_with_what_the_handlers_did(
    app: AgentApp, bus: MessageBus, agent_in: AgentIn, pool: str, module: str, tmp_path: Path
) -> None:
    """Whenever a cancellation arrives, CANCELLED messages have had no effect, and all others have."""
    agent = agent_in(pool, module)
    ids = []
    for number in range(40):
        id_ = send_command(bus, agent, {"touch": str(tmp_path), "sleep": 0.005})
        time.sleep(number % 10 * 0.002)  # to vary when the cancellation arrives
        bus.cancel(id_, timeout=20, running=module == "async_probe" and pool == "threads" and number % 2 == 1)
        ids.append(id_)
    ends = {id_: settled(app, id_) for id_ in ids}
    assert set(ends.values()) <= {MessageStatus.CANCELLED, MessageStatus.HANDLED}
    handled = {path.name for path in tmp_path.iterdir()}
    assert {id_ for id_, status in ends.items() if status is MessageStatus.HANDLED} == handled


@pytest.mark.parametrize(("pool", "module"), WORKERS)
def test_the_handler_of_a_closed_stream_is_stopped(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, agent_in: AgentIn, pool: str, module: str
) -> None:
    """A generator is closed between two parts, an async one where it waits. The receipt says CANCELLED."""
    agent = agent_in(pool, module)
    with requests.stream(agent, "count", {"to": 1000, "pause": 0.05}, timeout=20) as stream:
        next(stream)
    assert stream.message_id is not None
    assert settled(app, stream.message_id) is MessageStatus.CANCELLED
    assert bus.receipt(stream.message_id).attempts == 1


def test_a_worker_without_remote_control_reads_cancellations_with_its_heartbeat(
    broker: Broker, app: AgentApp, bus: MessageBus
) -> None:
    """A lost broadcast delays the cancellation until the next heartbeat, and nothing is promised before."""
    name = broker.name()
    settings = {"worker_enable_remote_control": False, "waooaw_heartbeat_seconds": 1.0}
    worker = broker.start(name, app, "-P", "threads", module="async_probe", **settings)
    try:
        running, waiting = start_command(bus, name, {"sleep": 60}), send_command(bus, name, {})
        for message_id in (running, waiting):
            receipt = bus.cancel(message_id, running=True, timeout=0.2)
            assert receipt.cancel_requested_at is not None
        assert settled(app, running) is MessageStatus.CANCELLED
        assert settled(app, waiting) is MessageStatus.CANCELLED
        assert [bus.receipt(id_).attempts for id_ in (running, waiting)] == [1, 0]
    finally:
        end(worker)


def test_the_reply_of_a_cancelled_request_is_cancelled(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, agent_in: AgentIn, gate: Path
) -> None:
    """A request whose answer goes to a handler is replied to with Cancelled."""
    agent, asker = agent_in("threads", "async_probe"), agent_in("prefork")
    start_command(bus, agent, {"gate": str(gate)})
    sent = requests.request_later(agent, "nap", {"seconds": 0}, on_reply="replied", from_agent=asker, timeout=20)
    assert bus.cancel(sent.message_id, timeout=20).status is MessageStatus.CANCELLED
    gate.touch()

    def replies_to_request() -> list[Any]:
        replies = requests.request(asker, "replies", timeout=20)
        return [each for each in replies if each["message_id"] == sent.message_id]

    until(replies_to_request, "the reply")
    assert replies_to_request()[0]["error"] == "Cancelled"
