"""In every pool, an error that is no Exception fails its message and never ends the worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.embedded import end
from waooaw_celery.errors import RemoteError
from waooaw_celery.ledger.trail import MessageAuditTrail

POOLS = ("solo", "threads", "prefork", "gevent")
#: How a handler may be written.
FORMS = ("plain", "coroutine", "generator", "async_generator")
KINDS = (
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
class Pooled:
    """An agent's worker with two slots, or one in the solo pool."""

    name: str
    process: subprocess.Popen[bytes]
    app: AgentApp
    requests: RequestResponseHandler

    def assert_well(self) -> None:
        """Each slot handles messages: more of them than there are slots are answered."""
        for number in range(3):
            assert self.requests.request(self.name, "echo", {"value": number}, timeout=SECONDS) == number
        assert self.process.poll() is None


@pytest.fixture(scope="module", params=POOLS)
def pooled(request: pytest.FixtureRequest, ledger_broker: Broker) -> Iterator[Pooled]:
    """One worker in each pool, for all tests of this file."""
    app, name = ledger_broker.app(), ledger_broker.name()
    options = ("-P", request.param) if request.param == "solo" else ("-P", request.param, "-c", "2")
    process = ledger_broker.start(name, app, *options, module="pool_probe")
    yield Pooled(name, process, app, RequestResponseHandler(app))
    end(process)
    app.close()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_exception_fails_its_message_only(pooled: Pooled, form: str) -> None:
    """The caller is told its name, the ledger has one end, and the worker goes on in the same process."""
    before = {pooled.requests.request(pooled.name, "process", timeout=SECONDS) for _ in range(3)}
    for kind in KINDS:
        response = pooled.requests.send_request(pooled.name, form, {"kind": kind}, timeout=SECONDS)
        assert isinstance(response.error, RemoteError), (kind, response.error)
        assert response.error.type == "HandlerExited", kind
        assert kind in response.error.message or response.error.message.endswith("cancelled from within"), kind
        assert settled(pooled.app, response.message_id) is MessageStatus.FAILED
        events = MessageAuditTrail(pooled.app.ledger).receipt(response.message_id).events
        assert [event.event for event in events] == ["sent", "delivered", "failed"], kind
    pooled.assert_well()
    after = {pooled.requests.request(pooled.name, "process", timeout=SECONDS) for _ in range(3)}
    assert before | after == before or len(before | after) <= 2, "a process of the pool was ended"


def test_what_is_no_exception_makes_a_dead_letter(pooled: Pooled) -> None:
    """A message without a waiting caller is kept as a dead letter, one for each, whatever was raised."""
    for kind in KINDS:
        message = Message(from_agent="tests", to_agent=pooled.name, payload={"throw": kind})
        MessageBus(pooled.app).send(message)
        assert settled(pooled.app, message.message_id) is MessageStatus.FAILED
        assert kind in (MessageBus(pooled.app).receipt(message.message_id).error or "")
        kept = [each for each in pooled.app.dead_letters.list(agent=pooled.name) if kind in each.reason]
        assert [each.message_id for each in kept] == [message.message_id]
    pooled.assert_well()


HOOKED = ("fails_then_panic", "fails_then_refuse", "succeeds_then_panic", "succeeds_then_refuse")


def test_what_a_hook_raises_ends_its_message(pooled: Pooled) -> None:
    """A message whose ``on_failure`` or ``on_success`` raises has one end, and is acknowledged."""
    calls = [pooled.app.signature(f"{pooled.name}.{name}").delay().id for name in HOOKED * 2]
    for message_id, name in zip(calls, HOOKED * 2, strict=True):
        status = settled(pooled.app, message_id)
        assert status in (MessageStatus.FAILED, MessageStatus.HANDLED), name
    pooled.assert_well()
    with pooled.app.connection_for_read() as connection, connection.channel() as channel:
        noted, client = channel.keys.noted[0], channel.client

        def held() -> list[str]:
            said = b"".join(client.hvals(noted))
            return [each for each in calls if each.encode() in said]

        until(lambda: not held(), "the acknowledgements")


@pytest.mark.parametrize("pooled", ["gevent"], indirect=True)
def test_what_ends_greenlets_is_told_apart(pooled: Pooled) -> None:
    """A handler's own ``GreenletExit`` and ``Timeout`` are its failures; those of the pool are not."""
    for kind in ("GreenletExit", "Timeout"):
        response = pooled.requests.send_request(pooled.name, "plain", {"kind": kind}, timeout=SECONDS)
        assert isinstance(response.error, RemoteError)
        assert (response.error.type, kind in response.error.message) == ("HandlerExited", True)
        assert settled(pooled.app, response.message_id) is MessageStatus.FAILED
    response = pooled.requests.send_request(pooled.name, "hang", timeout=SECONDS)
    assert isinstance(response.error, RemoteError)
    assert response.error.type == "TimeLimitExceeded"
    revoked = pooled.app.signature(f"{pooled.name}.nap").delay().id
    bus = MessageBus(pooled.app)
    until(lambda: bus.receipt(revoked).status is MessageStatus.DELIVERED, "its beginning")
    pooled.app.control.revoke(revoked, terminate=True)
    assert settled(pooled.app, revoked) is MessageStatus.FAILED
    assert bus.receipt(revoked).error == "revoked by an operator"
    pooled.assert_well()


@pytest.mark.parametrize("pooled", ["prefork"], indirect=True)
def test_a_process_that_is_told_to_end_is_no_failure_of_its_handler(pooled: Pooled) -> None:
    """An operator who revokes a message ends the process that handles it, and the ledger says so."""
    bus = MessageBus(pooled.app)
    revoked = pooled.app.signature(f"{pooled.name}.nap").delay().id
    until(lambda: bus.receipt(revoked).status is MessageStatus.DELIVERED, "its beginning")
    pooled.app.control.revoke(revoked, terminate=True)
    assert settled(pooled.app, revoked) is MessageStatus.FAILED
    assert bus.receipt(revoked).error == "revoked by an operator"
    pooled.assert_well()


@pytest.mark.parametrize("pooled", ["prefork"], indirect=True)
def test_a_caller_is_told_at_once_that_a_process_is_gone(pooled: Pooled) -> None:
    """When ``os._exit`` or SIGKILL takes a process away, whoever waits for the answer hears of it in a moment."""
    waited = []
    for kill in (False, True) * 5:
        response = pooled.requests.send_request(pooled.name, "leave", {"kill": kill}, timeout=SECONDS)
        assert isinstance(response.error, RemoteError)
        assert response.error.type == "WorkerLostError"
        waited.append(response.seconds)
        assert settled(pooled.app, response.message_id) is MessageStatus.FAILED
    # Most of them: this computer may be busy, and a new process takes a second to begin.
    assert sorted(waited)[len(waited) // 2] < 1.5, waited
    pooled.assert_well()
