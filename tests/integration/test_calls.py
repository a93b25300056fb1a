"""Requests that handlers make: who waits for whom, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.embedded import end_all
from waooaw_celery.errors import RemoteError, RequestError, UnknownMethod
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER


@pytest.fixture(scope="module", params=["prefork", "async on prefork", "async on threads"])
def agents(ledger_broker: Broker, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Names of three agents of a kind."""
    app = ledger_broker.app()
    names, kind = [ledger_broker.name() for _ in range(3)], str(request.param)
    options = ("-P", "threads", "-c", "20") if "threads" in kind else ()
    module = "async_probe" if "async" in kind else "probe"
    workers = [ledger_broker.start(name, app, *options, module=module) for name in names]
    yield names
    end_all(workers)
    app.close()


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    return ledger_broker


def refused(app: AgentApp, agent: str, params: dict[str, object]) -> RemoteError:
    """Return the error of a request that an agent could not make, which came at once."""
    response = Requests(app).send_request(agent, "ask", params, timeout=20)  # type: ignore[arg-type]
    assert isinstance(response.error, RemoteError)
    assert response.seconds < 8
    return response.error


def asking(*agents: str) -> dict[str, object]:
    """Return the parameters with which one agent asks the first, that one the second, and so on."""
    if len(agents) == 1:
        return {"to_agent": agents[0], "method": "seen"}
    return {"to_agent": agents[0], "method": "ask", "params": asking(*agents[1:])}


def test_a_handler_asks_another_agent(app: AgentApp, agents: list[str]) -> None:
    """Two links of a chain are answered through Celery's workers, which forbid to wait for a result."""
    a, b, c = agents
    assert Requests(app).request(a, "ask", asking(b, c), timeout=20) == []  # type: ignore[arg-type]


def test_an_agent_that_asks_itself_is_told_at_once(app: AgentApp, agents: list[str]) -> None:
    """The shortest circle raises CircularRequest in the handler, long before the timeout."""
    error = refused(app, agents[0], asking(agents[0]))
    assert error.type == "CircularRequest"
    assert f"{agents[0]} waits for {agents[0]}" in error.message


def test_a_circle_of_three_is_told_at_once(app: AgentApp, agents: list[str]) -> None:
    """The agent that would close the circle gets CircularRequest, and the others its error."""
    a, b, c = agents
    error = refused(app, a, asking(b, c, a))
    assert "CircularRequest" in error.message
    assert f"{a} waits for {b} waits for {c} waits for {a}" in error.message


def test_who_waits_is_known_after_a_retry_and_after_a_replacement(
    app: AgentApp, probe: str, other: str, start: Callable[..., str]
) -> None:
    """A second attempt of a request, and a task that takes its place, may not ask the one who waits either."""
    a, b, c = probe, other, start()
    error = refused(app, a, {"to_agent": b, "method": "ask_in_a_second_attempt", "params": asking(a)})
    assert "CircularRequest" in error.message
    replaced = {"to_agent": c, "method": "ask", "params": asking(a)}
    error = refused(app, a, {"to_agent": b, "method": "let_another_answer", "params": replaced})
    assert "CircularRequest" in error.message


def test_the_time_of_the_caller_bounds_what_its_agent_asks(app: AgentApp, agents: list[str]) -> None:
    """An inner request with a long timeout ends when the outer caller stops waiting."""
    a, b, _ = agents
    sleeper = {"to_agent": b, "method": "nap", "timeout": 60, "params": {"seconds": 8}}
    began = time.monotonic()
    response = Requests(app).send_request(a, "ask", sleeper, timeout=3)
    assert isinstance(response.error, RequestError)
    assert time.monotonic() - began < 3.5
    until(lambda: MessageBus(app).receipt(response.message_id).status.final, "the end of the outer request", 15)
    assert "within 2" in (MessageBus(app).receipt(response.message_id).error or "")


def test_nobody_waits_for_a_message(app: AgentApp, agents: list[str]) -> None:
    """The handler of a message may ask its sender, and the message's time to live does not bound that."""
    a, b, _ = agents
    bus = MessageBus(app)
    sent = bus.send(Message(from_agent=b, to_agent=a, payload={"sleep": 1.2, "then_ask": b}, ttl_seconds=1))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED


def test_who_waits_cannot_be_forged(app: AgentApp, probe: str, other: str) -> None:
    """A header that a caller sets itself is not the call's."""
    asked = app.signature(f"{probe}.ask", kwargs={"to_agent": other, "method": "process"})
    assert asked.apply_async(headers={REPLY_TO_HEADER: {"waiting": [other]}}).get(timeout=20) > 0


def replies(app: AgentApp, agent: str, message_id: str) -> list[Any]:
    """Return the replies to one request that an agent has got."""
    return [
        each for each in Requests(app).request(agent, "replies", timeout=20) if each["message_id"] == message_id
    ]


def reply(app: AgentApp, agent: str, message_id: str) -> Any:
    """Wait for the reply to a request, and return it."""
    until(lambda: replies(app, agent, message_id), f"the reply to {message_id}")
    [only] = replies(app, agent, message_id)
    return only


def test_a_reply_comes_as_a_message_and_nobody_waits(app: AgentApp, agents: list[str]) -> None:
    """Two agents ask each other with on_reply, which would be a circle otherwise, and each gets its answer."""
    a, b, _ = agents
    asked = Requests(app).request(a, "ask_for_reply", {"to_agent": b, "method": "nap", "params": {"seconds": 0.1}})
    assert reply(app, a, asked)["result"] == 0.1
    nested = {"to_agent": a, "method": "nap", "params": {"seconds": 0}}
    asked = Requests(app).request(a, "ask_for_reply", {"to_agent": b, "method": "ask_for_reply", "params": nested})
    inner = reply(app, a, asked)["result"]
    assert reply(app, b, inner)["result"] == 0
    thread = MessageAuditTrail(app.ledger).conversation(asked)
    [answer] = [each for each in thread if each.causation_id == asked and each.receipt.to_agent == a
                and each.receipt.message_type is MessageType.RESPONSE]  # fmt: skip
    assert (answer.receipt.from_agent, answer.receipt.correlation_id) == (b, asked)


@pytest.mark.parametrize(
    ("method", "params", "error", "text"),
    [
        ("fail", {"text": "no such invoice"}, "RemoteError", "ValueError: no such invoice"),
        ("hang", {}, "RemoteError", "TimeLimitExceeded"),
        ("kill", {}, "RemoteError", "WorkerLostError"),
        ("answer_with_a_set", {}, "RemoteError", "InvalidMessage: the result"),
        ("answer_with_too_much", {}, "RemoteError", "EncodingFailed"),
    ],
)
def test_a_reply_tells_of_every_end(
    app: AgentApp, probe: str, other: str, method: str, params: dict[str, Any], error: str, text: str
) -> None:
    """An exception, a time limit, a lost process and a result that cannot be carried are replies too."""
    asked = Requests(app).request(
        probe, "ask_for_reply", {"to_agent": other, "method": method, "params": params}, timeout=20
    )
    told = reply(app, probe, asked)
    assert (told["error"], text in told["text"]) == (error, True)


def test_a_request_that_expires_is_replied_to(app: AgentApp, probe: str, other: str) -> None:
    """The worker that drops it says so."""
    bus = MessageBus(app)
    work = bus.send(Message(from_agent="tests", to_agent=other, payload={"sleep": 3}))
    until(lambda: bus.receipt(work.message_id).delivered_at, "the work to begin")
    asked = Requests(app).request(probe, "ask_for_reply", {"to_agent": other, "method": "seen", "timeout": 1})
    assert reply(app, probe, asked)["error"] == "Expired"


def test_a_handler_of_replies_must_be_there(app: AgentApp, probe: str) -> None:
    """A name that the asking agent does not have is refused before anything is sent."""
    with pytest.raises(UnknownMethod, match="no_such_handler"):
        Requests(app).request_later(probe, "seen", from_agent=probe, on_reply="no_such_handler")
