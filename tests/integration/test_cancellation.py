"""Cancelling messages and requests: what has not begun, what waits for its time, what runs."""

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
from waooaw_celery.embedded import end, end_all
from waooaw_celery.errors import Cancelled, NotStoppable, UnknownMessage
from waooaw_celery.messages.message import DeliveryReceipt

POOLS = {"prefork": ("-P", "prefork"), "threads": ("-P", "threads")}
#: The kind of worker: its pool, and the module of its agent.
KINDS = [(pool, module) for pool in POOLS for module in ("probe", "async_probe")]


@pytest.fixture(scope="session")
def workers() -> Iterator[dict[tuple[str, str, str], tuple[str, Any]]]:
    """Agents that live as long as the session, by broker, pool and module."""
    found: dict[tuple[str, str, str], tuple[str, Any]] = {}
    yield found
    end_all(process for _, process in found.values())


Get = Callable[..., str]


@pytest.fixture
def get(broker: Broker, app: AgentApp, workers: dict[tuple[str, str, str], tuple[str, Any]]) -> Get:
    """Return the name of an agent of a pool and module, which handles one message at a time."""

    def _get(pool: str, module: str = "probe") -> str:
        key = str(broker.folder), pool, module
        if key not in workers:
            name = broker.name()
            workers[key] = name, broker.start(name, app, *POOLS[pool], module=module)
        return workers[key][0]

    return _get


@pytest.fixture
def bus(app: AgentApp) -> MessageBus:
    return MessageBus(app)


@pytest.fixture
def requests(app: AgentApp) -> RequestResponseHandler:
    return RequestResponseHandler(app)


def say(bus: MessageBus, agent: str, payload: Any, **fields: Any) -> str:
    """Send a command and return its id."""
    return bus.send(Message(from_agent="tests", to_agent=agent, payload=payload, **fields)).message_id


def begun(bus: MessageBus, agent: str, payload: Any) -> str:
    """Send a command, wait until its handler has begun, and return its id."""
    message_id = say(bus, agent, payload)
    until(lambda: bus.receipt(message_id).delivered_at is not None, "the handler to begin")
    return message_id


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for which handlers wait, so that they end when a test says so, however slow the computer is."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@contextmanager
def asking(requests: RequestResponseHandler, *args: Any, **kwargs: Any) -> Iterator[tuple[Future[Any], str]]:
    """Send a request from another thread; give its outcome to be, and its id."""
    known = {receipt.message_id for receipt in requests.app.receipts.recent()}

    def new() -> list[DeliveryReceipt]:
        return [
            receipt
            for receipt in requests.app.receipts.recent()
            if receipt.message_id not in known and receipt.handler == args[1]
        ]

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(requests.send_request, *args, **kwargs)
        until(new, "the request")
        yield future, new()[0].message_id


def events(app: AgentApp, message_id: str) -> list[tuple[str, int]]:
    """Return what the ledger says became of a message, but for SENT."""
    told = MessageAuditTrail(app.ledger).receipt(message_id).events
    return [(event.event, event.attempt) for event in told if event.event != "sent"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_message_behind_a_busy_handler_is_cancelled_at_once(
    app: AgentApp, bus: MessageBus, get: Get, gate: Path, pool: str
) -> None:
    """It has not begun, so no worker has it; it is CANCELLED now, and never handled."""
    agent = get(pool)
    busy = begun(bus, agent, {"gate": str(gate)})
    waiting = say(bus, agent, {"never": 1})
    receipt = bus.cancel(waiting, timeout=20)
    assert (receipt.status, receipt.attempts) == (MessageStatus.CANCELLED, 0)
    assert receipt.cancel_requested_at is not None
    assert bus.receipt(busy).status is MessageStatus.DELIVERED
    gate.touch()
    assert settled(app, busy) is MessageStatus.HANDLED
    later = RequestResponseHandler(app).request(agent, "seen", timeout=20)
    assert waiting not in [each["message_id"] for each in later]
    assert bus.receipt(waiting) == receipt


def test_a_message_to_an_agent_that_is_away_is_dropped_when_it_starts(
    broker: Broker, app: AgentApp, bus: MessageBus
) -> None:
    """Nobody can promise anything for it, so nothing is claimed; its worker drops the message and says so."""
    name = broker.name()
    worker = broker.start(name, app)
    end(worker)
    lost, kept = say(bus, name, {"n": 1}, ttl_seconds=None), say(bus, name, {"n": 2})
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


def test_a_worker_that_restarts_drops_what_was_cancelled_before(
    broker: Broker, app: AgentApp, bus: MessageBus, gate: Path
) -> None:
    """A worker that promised to drop a message and ended has a successor that drops it."""
    name = broker.name()
    worker = broker.start(name, app)
    busy = begun(bus, name, {"gate": str(gate)})
    cancelled = say(bus, name, {"n": 1})
    assert bus.cancel(cancelled, timeout=20).status is MessageStatus.CANCELLED
    worker.terminate()
    gate.touch()
    end(worker)
    assert bus.receipt(busy).status is MessageStatus.HANDLED
    worker = broker.start(name, app)
    try:
        assert settled(app, say(bus, name, {"n": 2})) is MessageStatus.HANDLED
        seen = RequestResponseHandler(app).request(name, "seen", timeout=20)
        assert [each["payload"] for each in seen] == [{"n": 2}]
        assert bus.receipt(cancelled).status is MessageStatus.CANCELLED
    finally:
        end(worker)


@pytest.mark.parametrize("pool", POOLS)
def test_a_message_that_waits_for_its_time_is_dropped_at_once(
    app: AgentApp, bus: MessageBus, get: Get, pool: str
) -> None:
    """One with a countdown is in the worker already, which drops it without waiting for its time."""
    agent = get(pool)
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
def test_what_runs_goes_on_unless_it_is_to_be_stopped(
    app: AgentApp, bus: MessageBus, get: Get, gate: Path, pool: str
) -> None:
    """Without ``running`` the handler comes to its end, and the receipt says HANDLED; twice is as once."""
    message_id = begun(bus, get(pool), {"gate": str(gate)})
    receipts = [bus.cancel(message_id, timeout=20) for _ in range(2)]
    assert [receipt.status for receipt in receipts] == [MessageStatus.DELIVERED] * 2
    assert receipts[0].cancel_requested_at == receipts[1].cancel_requested_at is not None
    gate.touch()
    assert settled(app, message_id) is MessageStatus.HANDLED


@pytest.mark.parametrize("pool", POOLS)
def test_a_coroutine_that_runs_is_stopped_after_it_cleaned_up(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, get: Get, pool: str, tmp_path: Path
) -> None:
    """Its ``finally`` runs, its caller gets Cancelled at once, and its worker goes on."""
    agent = get(pool, "async_probe")
    with asking(requests, agent, "wait_and_note", {"path": str(tmp_path / "note")}, timeout=30) as (answer, id_):
        until(lambda: bus.receipt(id_).delivered_at is not None, "the handler to begin")
        until(lambda: (tmp_path / "note").exists(), "the handler's first line")
        receipt = bus.cancel(id_, running=True, timeout=10)
        assert (receipt.status, receipt.attempts) == (MessageStatus.CANCELLED, 1)
        response = answer.result(15)
    assert isinstance(response.error, Cancelled)
    assert response.seconds < 20
    assert (tmp_path / "note").read_text() == "began, cleaned up"
    assert requests.request(agent, "nap", {"seconds": 0}, timeout=20) == 0


def test_a_plain_handler_that_runs_is_stopped_with_its_process(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, get: Get
) -> None:
    """In the prefork pool every handler can be stopped; it is not tried again in another process."""
    agent = get("prefork")
    with asking(requests, agent, "sleep", {"seconds": 60}, timeout=30) as (answer, message_id):
        until(lambda: bus.receipt(message_id).delivered_at is not None, "the handler to begin")
        assert bus.cancel(message_id, running=True, timeout=10).status is MessageStatus.CANCELLED
        assert isinstance(answer.result(15).error, Cancelled)
    assert requests.request(agent, "echo", {"value": 1}, timeout=20) == 1
    assert bus.receipt(message_id).attempts == 1


def test_a_plain_handler_in_a_thread_cannot_be_stopped(
    app: AgentApp, bus: MessageBus, get: Get, gate: Path
) -> None:
    """The caller is told so, and nothing is claimed: the handler comes to its end."""
    message_id = begun(bus, get("threads"), {"gate": str(gate)})
    with pytest.raises(NotStoppable, match="async def"):
        bus.cancel(message_id, running=True, timeout=20)
    assert bus.receipt(message_id).status is MessageStatus.DELIVERED
    gate.touch()
    assert settled(app, message_id) is MessageStatus.HANDLED


@pytest.mark.parametrize("pool", POOLS)
def test_the_next_attempt_of_a_cancelled_message_is_dropped(
    app: AgentApp, bus: MessageBus, get: Get, pool: str
) -> None:
    """It was begun once, and is not begun again."""
    message_id = say(bus, get(pool), {"fail_times": 5, "countdown": 10})
    until(lambda: bus.receipt(message_id).attempts == 1, "the first attempt")
    bus.cancel(message_id, timeout=20)
    assert settled(app, message_id) is MessageStatus.CANCELLED
    assert bus.receipt(message_id).attempts == 1


def test_a_cancelled_request_that_was_not_begun_is_told_to_its_caller(
    bus: MessageBus, requests: RequestResponseHandler, get: Get, gate: Path
) -> None:
    """The caller gets Cancelled now, and not at its timeout."""
    agent = get("prefork")
    begun(bus, agent, {"gate": str(gate)})
    with asking(requests, agent, "echo", {"value": 1}, timeout=30) as (answer, message_id):
        assert bus.cancel(message_id, timeout=20).status is MessageStatus.CANCELLED
        response = answer.result(15)
    assert isinstance(response.error, Cancelled)


def test_what_has_ended_stays_as_it_is(app: AgentApp, bus: MessageBus, get: Get) -> None:
    """Cancelling a handled message returns its receipt, and writes nothing down."""
    message_id = say(bus, get("prefork"), {})
    settled(app, message_id)
    before = bus.receipt(message_id)
    assert bus.cancel(message_id, running=True) == before
    assert before.cancel_requested_at is None


def test_an_unknown_message_cannot_be_cancelled(bus: MessageBus) -> None:
    """UnknownMessage is raised."""
    with pytest.raises(UnknownMessage):
        bus.cancel("never-sent")


def test_the_ledger_says_who_cancelled_what(ledger_broker: Broker, get: Get) -> None:
    """The request is an event with its name, before the end."""
    app = ledger_broker.app()
    bus = MessageBus(app)
    name = ledger_broker.name()
    app.registry.declare(name, ["command"], "nobody@nowhere", 0.001)
    message_id = say(bus, name, {})
    bus.cancel(message_id, from_agent="auditor", running=True)
    assert events(app, message_id) == [("cancel_requested", 0)]
    [*_, asked] = MessageAuditTrail(app.ledger).receipt(message_id).events
    assert asked.error == "by auditor, also when its handler runs"
    app.close()


@pytest.mark.parametrize(("pool", "module"), KINDS)
def test_the_receipt_of_a_cancelled_message_tells_what_its_worker_did(
    app: AgentApp, bus: MessageBus, get: Get, pool: str, module: str, tmp_path: Path
) -> None:
    """However a cancellation meets the beginning and the end: what is CANCELLED left no result, the rest did."""
    agent = get(pool, module)
    ids = []
    for number in range(40):
        id_ = say(bus, agent, {"touch": str(tmp_path), "sleep": 0.005})
        time.sleep(number % 10 * 0.002)  # to meet another moment each time
        bus.cancel(id_, timeout=20, running=module == "async_probe" and pool == "threads" and number % 2 == 1)
        ids.append(id_)
    ends = {id_: settled(app, id_) for id_ in ids}
    assert set(ends.values()) <= {MessageStatus.CANCELLED, MessageStatus.HANDLED}
    done = {path.name for path in tmp_path.iterdir()}
    assert {id_ for id_, status in ends.items() if status is MessageStatus.HANDLED} == done


@pytest.mark.parametrize(("pool", "module"), KINDS)
def test_the_handler_of_a_stream_that_is_closed_early_is_stopped(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, get: Get, pool: str, module: str
) -> None:
    """A generator is closed between two parts, an async one where it waits, and the receipt says CANCELLED."""
    agent = get(pool, module)
    with requests.stream(agent, "count", {"to": 1000, "pause": 0.05}, timeout=20) as stream:
        next(stream)
    assert stream.message_id is not None
    assert settled(app, stream.message_id) is MessageStatus.CANCELLED
    assert bus.receipt(stream.message_id).attempts == 1


def test_a_worker_that_was_not_told_reads_it_with_its_next_sign_of_life(
    broker: Broker, app: AgentApp, bus: MessageBus
) -> None:
    """A broadcast that is lost delays the end by one beat, and until then nothing is claimed."""
    name = broker.name()
    settings = {"worker_enable_remote_control": False, "waooaw_heartbeat_seconds": 1.0}
    worker = broker.start(name, app, "-P", "threads", module="async_probe", **settings)
    try:
        running, waiting = begun(bus, name, {"sleep": 60}), say(bus, name, {})
        for message_id in (running, waiting):
            receipt = bus.cancel(message_id, running=True, timeout=0.2)
            assert receipt.cancel_requested_at is not None
        assert settled(app, running) is MessageStatus.CANCELLED
        assert settled(app, waiting) is MessageStatus.CANCELLED
        assert [bus.receipt(id_).attempts for id_ in (running, waiting)] == [1, 0]
    finally:
        end(worker)


def test_the_reply_of_a_cancelled_request_says_so(
    app: AgentApp, bus: MessageBus, requests: RequestResponseHandler, get: Get, gate: Path
) -> None:
    """A request whose answer goes to a handler is replied to with Cancelled."""
    agent, asker = get("threads", "async_probe"), get("prefork")
    begun(bus, agent, {"gate": str(gate)})
    sent = requests.request_later(agent, "nap", {"seconds": 0}, on_reply="replied", from_agent=asker, timeout=20)
    assert bus.cancel(sent.message_id, timeout=20).status is MessageStatus.CANCELLED
    gate.touch()

    def told() -> list[Any]:
        replies = requests.request(asker, "replies", timeout=20)
        return [each for each in replies if each["message_id"] == sent.message_id]

    until(told, "the reply")
    assert told()[0]["error"] == "Cancelled"
