"""In every pool, an error that is no ``Exception`` fails its message and never ends the worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.testing.embedded import end

POOLS = ("solo", "threads", "prefork", "gevent")
#: The kinds of handler functions.
HANDLER_KINDS = ("plain", "coroutine", "generator", "async_generator")
ERRORS = (
    "Panic",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
    "CancelledError",
    "WorkerShutdown",
    "WorkerTerminate",
)
SECONDS = 40.0


@dataclass
class PoolWorker:
    """An agent's worker with two slots, or with one in the solo pool."""

    name: str
    process: subprocess.Popen[bytes]
    app: AgentApp
    requests: RequestResponseHandler

    def assert_healthy(self) -> None:
        """Check that each slot handles messages: more requests than slots are answered."""
        for number in range(3):
            assert self.requests.request(self.name, "echo", {"value": number}, timeout=SECONDS) == number
        assert self.process.poll() is None


@pytest.fixture(scope="module", params=POOLS)
def worker(request: pytest.FixtureRequest, ledger_broker: Broker) -> Iterator[PoolWorker]:
    """One worker in each pool, for all tests of this file."""
    app, name = ledger_broker.app(), ledger_broker.name()
    options = ("-P", request.param) if request.param == "solo" else ("-P", request.param, "-c", "2")
    process = ledger_broker.start(name, app, *options, module="pool_probe")
    yield PoolWorker(name, process, app, RequestResponseHandler(app))
    end(process)
    app.close()


def test_the_memory_of_a_worker_is_frozen_when_it_is_ready(worker: PoolWorker) -> None:
    """Python searches for garbage only in what its messages leave."""
    assert worker.requests.request(worker.name, "searched", timeout=SECONDS) is False


@pytest.mark.parametrize("form", HANDLER_KINDS)
def test_an_error_that_is_no_exception_fails_only_its_message(worker: PoolWorker, form: str) -> None:
    """The caller gets its name, the ledger has one final event, and the worker continues in the same process."""
    before = {worker.requests.request(worker.name, "process", timeout=SECONDS) for _ in range(3)}
    for kind in ERRORS:
        response = worker.requests.send_request(worker.name, form, {"kind": kind}, timeout=SECONDS)
        assert isinstance(response.error, RemoteError), (kind, response.error)
        assert response.error.type == "HandlerExited", kind
        assert kind in response.error.message or response.error.message.endswith("cancelled its coroutine"), kind
        assert settled(worker.app, response.message_id) is MessageStatus.FAILED
        events = MessageAuditTrail(worker.app.ledger).receipt(response.message_id).events
        assert [event.event for event in events] == ["sent", "delivered", "failed"], kind
    worker.assert_healthy()
    after = {worker.requests.request(worker.name, "process", timeout=SECONDS) for _ in range(3)}
    assert before | after == before or len(before | after) <= 2, "a process of the pool was ended"


def test_an_error_that_is_no_exception_makes_a_dead_letter(worker: PoolWorker) -> None:
    """Each message without a caller becomes one dead letter, whatever was raised."""
    for kind in ERRORS:
        message = Message(from_agent="tests", to_agent=worker.name, payload={"throw": kind})
        MessageBus(worker.app).send(message)
        assert settled(worker.app, message.message_id) is MessageStatus.FAILED
        assert kind in (MessageBus(worker.app).receipt(message.message_id).error or "")
        kept = [each for each in worker.app.dead_letters.list(agent=worker.name) if kind in each.reason]
        assert [each.message_id for each in kept] == [message.message_id]
    worker.assert_healthy()


HANDLERS_WITH_HOOK = ("fails_then_panic", "fails_then_refuse", "succeeds_then_panic", "succeeds_then_refuse")


def test_an_error_of_a_hook_ends_its_message(worker: PoolWorker) -> None:
    """A message whose ``on_failure`` or ``on_success`` raises is ended once and acknowledged."""
    calls = [worker.app.signature(f"{worker.name}.{name}").delay().id for name in HANDLERS_WITH_HOOK * 2]
    for message_id, name in zip(calls, HANDLERS_WITH_HOOK * 2, strict=True):
        status = settled(worker.app, message_id)
        assert status in (MessageStatus.FAILED, MessageStatus.HANDLED), name
    worker.assert_healthy()
    with worker.app.connection_for_read() as connection, connection.channel() as channel:
        noted, client = channel.keys.noted[0], channel.client

        def unacknowledged() -> list[str]:
            items = b"".join(client.hvals(noted))
            return [each for each in calls if each.encode() in items]

        until(lambda: not unacknowledged(), "the acknowledgements")


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["gevent"], indirect=True)
def test_errors_that_end_greenlets_are_told_apart(worker: PoolWorker) -> None:
    """``GreenletExit`` and ``Timeout`` of a handler are its failures; those of the pool are not."""
    for kind in ("GreenletExit", "Timeout"):
        response = worker.requests.send_request(worker.name, "plain", {"kind": kind}, timeout=SECONDS)
        assert isinstance(response.error, RemoteError)
        assert (response.error.type, kind in response.error.message) == ("HandlerExited", True)
        assert settled(worker.app, response.message_id) is MessageStatus.FAILED
    response = worker.requests.send_request(worker.name, "hang", timeout=SECONDS)
    assert isinstance(response.error, RemoteError)
    assert response.error.type == "TimeLimitExceeded"
    revoked = worker.app.signature(f"{worker.name}.nap").delay().id
    bus = MessageBus(worker.app)
    until(lambda: bus.receipt(revoked).status is MessageStatus.DELIVERED, "the handler to start")
    worker.app.control.revoke(revoked, terminate=True)
    assert settled(worker.app, revoked) is MessageStatus.FAILED
    assert bus.receipt(revoked).error == "revoked by an operator"
    worker.assert_healthy()


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_a_terminated_process_is_reported_as_revoked(worker: PoolWorker) -> None:
    """Revoking a message ends the process that handles it, and the ledger says that an operator revoked it."""
    bus = MessageBus(worker.app)
    revoked = worker.app.signature(f"{worker.name}.nap").delay().id
    until(lambda: bus.receipt(revoked).status is MessageStatus.DELIVERED, "the handler to start")
    worker.app.control.revoke(revoked, terminate=True)
    assert settled(worker.app, revoked) is MessageStatus.FAILED
    assert bus.receipt(revoked).error == "revoked by an operator"
    worker.assert_healthy()


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_a_lost_process_is_reported_to_the_caller_at_once(worker: PoolWorker) -> None:
    """After ``os._exit`` or SIGKILL, the caller gets the error within about a second."""
    waited = []
    for kill in (False, True) * 5:
        # Ten failures within half a minute would open the circuit breaker of the agent.
        response = worker.requests.send_request(
            worker.name, "leave", {"kill": kill}, timeout=SECONDS, breaker=False
        )
        assert isinstance(response.error, RemoteError)
        assert response.error.type == "WorkerLostError"
        waited.append(response.seconds)
        assert settled(worker.app, response.message_id) is MessageStatus.FAILED
    # The median, because the computer may be busy, and a new process takes a second to start.
    assert sorted(waited)[len(waited) // 2] < 1.5, waited
    worker.assert_healthy()
