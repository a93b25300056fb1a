"""Requests that handlers send: circles are refused, deadlines are passed on, and replies can be messages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, MessageType
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RemoteError, RequestError, UnknownMethod
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.testing.embedded import end_all


@pytest.fixture(scope="module", params=["prefork", "async on prefork", "async on threads"])
def agents(ledger_broker: Broker, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Names of three agents of one kind."""
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


def request_error(app: AgentApp, agent: str, params: dict[str, object]) -> RemoteError:
    """Return the error of a request that an agent could not send, which came at once."""
    response = Requests(app).send_request(agent, "ask", params, timeout=20)  # type: ignore[arg-type]
    assert isinstance(response.error, RemoteError)
    assert response.seconds < 8
    return response.error


def chained_request(*agents: str) -> dict[str, object]:
    """Return the parameters of a request to the first agent, which asks the second, and so on."""
    if len(agents) == 1:
        return {"to_agent": agents[0], "method": "seen"}
    return {"to_agent": agents[0], "method": "ask", "params": chained_request(*agents[1:])}


def test_a_handler_requests_another_agent(app: AgentApp, agents: list[str]) -> None:
    """A chain of two requests is answered, although Celery forbids a task to wait for a result."""
    a, b, c = agents
    assert Requests(app).request(a, "ask", chained_request(b, c), timeout=20) == []  # type: ignore[arg-type]


def test_a_request_to_oneself_is_refused_at_once(app: AgentApp, agents: list[str]) -> None:
    """The handler gets CircularRequest, long before the timeout."""
    error = request_error(app, agents[0], chained_request(agents[0]))
    assert error.type == "CircularRequest"
    assert f"{agents[0]} waits for {agents[0]}" in error.message


def test_a_circle_of_three_is_refused_at_once(app: AgentApp, agents: list[str]) -> None:
    """The agent that would close the circle gets CircularRequest, and the others get its error."""
    a, b, c = agents
    error = request_error(app, a, chained_request(b, c, a))
    assert "CircularRequest" in error.message
    assert f"{a} waits for {b} waits for {c} waits for {a}" in error.message


def test_circles_are_found_after_a_retry_and_a_replacement(
    app: AgentApp, probe: str, other: str, start: Callable[..., str]
) -> None:
    """The second attempt of a request, and the task that replaces it, may not ask a waiting agent either."""
    a, b, c = probe, other, start()
    error = request_error(
        app, a, {"to_agent": b, "method": "ask_in_a_second_attempt", "params": chained_request(a)}
    )
    assert "CircularRequest" in error.message
    replaced = {"to_agent": c, "method": "ask", "params": chained_request(a)}
    error = request_error(app, a, {"to_agent": b, "method": "let_another_answer", "params": replaced})
    assert "CircularRequest" in error.message


def test_the_deadline_of_the_caller_limits_inner_requests(app: AgentApp, agents: list[str]) -> None:
    """An inner request with a long timeout ends when the outer caller stops waiting, before it is answered."""
    a, b, _ = agents
    long_request = {"to_agent": b, "method": "nap", "timeout": 60, "params": {"seconds": 8}}
    started_at = time.monotonic()
    response = Requests(app).send_request(a, "ask", long_request, timeout=3)
    assert isinstance(response.error, RequestError)
    assert time.monotonic() - started_at < 8
    until(lambda: MessageBus(app).receipt(response.message_id).status.final, "the end of the outer request", 15)
    # At the same moment, the inner request times out and the outer handler is stopped: either may be first.
    error = MessageBus(app).receipt(response.message_id).error or ""
    found = re.search(r"within ([\d.]+) s", error)
    assert "no longer waits" in error if found is None else 0 < float(found[1]) < 3
    thread = MessageAuditTrail(app.ledger).conversation(response.message_id)
    outer, inner = [each for each in thread if each.receipt.message_type is MessageType.QUERY]
    assert inner.receipt.to_agent == b
    assert inner.expires_at is not None
    assert outer.expires_at is not None
    assert inner.expires_at <= outer.expires_at + timedelta(seconds=1)


def test_a_message_has_no_waiting_caller(app: AgentApp, agents: list[str]) -> None:
    """The handler of a message may ask its sender, and the message's expiry does not limit the request."""
    a, b, _ = agents
    bus = MessageBus(app)
    sent = bus.send(Message(from_agent=b, to_agent=a, payload={"sleep": 1.2, "then_ask": b}, ttl_seconds=1))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED


def test_the_list_of_waiting_agents_cannot_be_forged(app: AgentApp, probe: str, other: str) -> None:
    """A reply-to header that a caller sets itself is ignored."""
    asked = app.signature(f"{probe}.ask", kwargs={"to_agent": other, "method": "process"})
    assert asked.apply_async(headers={REPLY_TO_HEADER: {"waiting": [other]}}).get(timeout=20) > 0


def replies(app: AgentApp, agent: str, message_id: str) -> list[Any]:
    """Return the replies to one request that an agent has received."""
    return [
        each for each in Requests(app).request(agent, "replies", timeout=20) if each["message_id"] == message_id
    ]


def reply(app: AgentApp, agent: str, message_id: str) -> Any:
    """Wait for the reply to a request, and return it."""
    until(lambda: replies(app, agent, message_id), f"the reply to {message_id}")
    [only] = replies(app, agent, message_id)
    return only


def test_a_reply_is_a_message_and_nobody_waits(app: AgentApp, agents: list[str]) -> None:
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
def test_every_outcome_is_replied(
    app: AgentApp, probe: str, other: str, method: str, params: dict[str, Any], error: str, text: str
) -> None:
    """An exception, a time limit, a lost process and a result that cannot be encoded are replies too."""
    asked = Requests(app).request(
        probe, "ask_for_reply", {"to_agent": other, "method": method, "params": params}, timeout=20
    )
    answer = reply(app, probe, asked)
    assert (answer["error"], text in answer["text"]) == (error, True)


def test_an_expired_request_is_replied(app: AgentApp, probe: str, other: str) -> None:
    """The worker that drops it sends the reply."""
    bus = MessageBus(app)
    work = bus.send(Message(from_agent="tests", to_agent=other, payload={"sleep": 3}))
    until(lambda: bus.receipt(work.message_id).delivered_at, "the handler to start")
    asked = Requests(app).request(probe, "ask_for_reply", {"to_agent": other, "method": "seen", "timeout": 1})
    assert reply(app, probe, asked)["error"] == "Expired"


def test_a_handler_of_replies_must_exist(app: AgentApp, probe: str) -> None:
    """A name that the asking agent does not have is refused before anything is sent."""
    with pytest.raises(UnknownMethod, match="no_such_handler"):
        Requests(app).request_later(probe, "seen", from_agent=probe, on_reply="no_such_handler")
