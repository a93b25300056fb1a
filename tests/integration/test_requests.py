"""Requests between real processes, on every broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import chord, group
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import (
    ConfigurationError,
    InvalidMessage,
    RemoteError,
    RequestTimeout,
    UnknownAgent,
    UnknownMethod,
)
from waooaw_celery.store.connection import connect, store_url

#: Seconds that a busy computer may add to a timeout.
LATE_SECONDS = 5.0


@contextmanager
def busy(app: AgentApp, agent: str, folder: Path) -> Iterator[Callable[[], bool]]:
    """Keep an agent busy during the block, at most for a minute; yield a function that tells whether it is."""
    bus, gate = MessageBus(app), folder / "gate"
    work = Message(from_agent="tests", to_agent=agent, payload={"gate": str(gate)})
    bus.send(work)
    try:
        until(lambda: bus.receipt(work.message_id).delivered_at, "the work to begin")
        yield lambda: not bus.receipt(work.message_id).status.final
    finally:
        gate.touch()


def test_a_request_returns_the_result(app: AgentApp, probe: str) -> None:
    """A request returns what the method returned."""
    assert Requests(app).request(probe, "echo", {"value": {"a": [1, None, "ü"]}}) == {"a": [1, None, "ü"]}


def test_an_answer_is_deleted_after_it_was_read(app: AgentApp, probe: str, broker: Broker) -> None:
    """The result backend stores nothing of an answered request."""
    response = Requests(app).send_request(probe, "echo", {"value": 1})
    with connect(store_url(None, broker.redis_url)) as client:
        key = f"celery-task-meta-{response.message_id}"
        until(lambda: not client.exists(key), "forgetting")


def test_the_correlation_id_of_a_request_is_its_message_id(app: AgentApp, probe: str) -> None:
    """The agent receives the id of the request as correlation id, and the caller as sender."""
    response = Requests(app).send_request(probe, "whoami", from_agent="dashboard", priority=Priority.HIGH)
    assert response.ok
    assert response.result["message_id"] == response.result["correlation_id"] == response.message_id
    assert (response.result["from"], response.result["priority"]) == ("dashboard", "HIGH")
    assert response.result["type"] == "query"


def test_an_exception_of_the_method_is_a_remote_error(app: AgentApp, probe: str) -> None:
    """It has the exception's class, text and traceback."""
    with pytest.raises(RemoteError) as caught:
        Requests(app).request(probe, "fail", {"text": "no such invoice"})
    assert (caught.value.agent, caught.value.type, caught.value.message) == (
        probe,
        "ValueError",
        "no such invoice",
    )
    assert "in fail" in (caught.value.traceback or "")


@pytest.mark.parametrize(
    ("method", "type_", "text"),
    [
        ("leave", "HandlerExited", "called sys.exit(3)"),
        ("hang", "TimeLimitExceeded", "1"),
        ("fail_oddly", "Odd", "7"),
    ],
)
def test_other_ends_of_a_method_reach_the_caller(
    app: AgentApp, other: str, method: str, type_: str, text: str
) -> None:
    """So do sys.exit(), a hard time limit, and an exception that cannot be rebuilt; the receipt is FAILED."""
    response = Requests(app).send_request(other, method, timeout=20)
    assert isinstance(response.error, RemoteError)
    assert (response.error.type, text in response.error.message) == (type_, True)
    assert settled(app, response.message_id) is MessageStatus.FAILED
    assert Requests(app).request(other, "echo", {"value": 1}, timeout=20) == 1


def test_send_request_returns_the_error_instead_of_raising_it(app: AgentApp, probe: str) -> None:
    """The Response has the error of the method."""
    response = Requests(app).send_request(probe, "fail", {"text": "broken"})
    assert not response.ok
    assert isinstance(response.error, RemoteError)


def test_a_result_that_cannot_be_encoded_is_a_remote_error(app: AgentApp, probe: str) -> None:
    """A method that returns a set fails, and its caller gets the error before the timeout."""
    with pytest.raises(RemoteError, match="InvalidMessage: the result is a set"):
        Requests(app).request(probe, "answer_with_a_set", timeout=20)


@pytest.mark.parametrize("timeout", [0.3, 1.2])
def test_the_timeout_holds(app: AgentApp, other: str, timeout: float, tmp_path: Path) -> None:
    """A request to a busy agent ends with its timeout, while the agent is busy, and is not begun after it."""
    with busy(app, other, tmp_path) as is_busy:
        began = time.monotonic()
        response = Requests(app).send_request(other, "echo", {"value": 1}, timeout=timeout)
        assert isinstance(response.error, RequestTimeout)
        assert timeout <= time.monotonic() - began < timeout + LATE_SECONDS
        assert is_busy()
    assert Requests(app).request(other, "echo", {"value": 2}) == 2
    assert MessageBus(app).receipt(response.message_id).status is MessageStatus.EXPIRED


def test_several_agents_are_requested_at_once(app: AgentApp, probe: str, other: str, tmp_path: Path) -> None:
    """Each has its own answer, error or timeout. The second request is not sent after the first one's timeout."""
    timeout, bus = 3.0, MessageBus(app)
    with busy(app, other, tmp_path) as is_busy:
        answers = Requests(app).broadcast_request([other, probe], "echo", {"value": 5}, timeout=timeout)
        assert is_busy()
    assert answers[probe].result == 5
    assert isinstance(answers[other].error, RequestTimeout)
    first, second = (bus.receipt(answers[name].message_id).sent_at for name in (other, probe))
    assert (second - first).total_seconds() < timeout


def test_a_handler_may_request_another_agent(app: AgentApp, probe: str, other: str) -> None:
    """The request has the handler's agent as sender, and belongs to the conversation of the outer request."""
    outer = Requests(app).send_request(other, "ask", {"to_agent": probe, "method": "whoami"})
    assert outer.error is None
    assert outer.result["from"] == other
    assert outer.result["conversation_id"] == outer.result["causation_id"] == outer.message_id


def test_delay_of_a_method_works_as_in_celery(app: AgentApp, probe: str) -> None:
    """``.delay`` of a method that is known by name only returns its result through ``get``."""
    assert app.signature(f"{probe}.echo", kwargs={"value": 3}).delay().get(timeout=20) == 3


def test_canvas_works_across_agents(app: AgentApp, probe: str) -> None:
    """Chain, group and chord of methods by name return their results, with their priorities."""
    echo = app.signature(f"{probe}.echo", args=("x",))
    again = app.signature(f"{probe}.echo").set(priority=Priority.HIGH)
    assert (echo | again).delay().get(timeout=20) == "x"
    assert group(echo, echo, app=app).delay().get(timeout=20) == ["x", "x"]
    assert chord([echo, echo], again, app=app).delay().get(timeout=20) == ["x", "x"]


def test_an_unknown_method_is_refused_at_once(app: AgentApp, probe: str) -> None:
    """The request raises in the caller, and the error lists the methods of the agent."""
    began = time.monotonic()
    with pytest.raises(UnknownMethod, match=r"it has: answer_with_a_set, (\w+, )*echo, "):
        Requests(app).request(probe, "no_such_method", timeout=30)
    assert time.monotonic() - began < 5


def test_an_unknown_agent_is_refused_at_once(app: AgentApp, probe: str) -> None:
    """If one of several agents is unknown, no request is sent."""
    with pytest.raises(UnknownAgent, match="nobody"):
        Requests(app).broadcast_request([probe, "nobody"], "echo", {"value": 1})


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"timeout": 0}, "timeout must be a positive number"),
        ({"timeout": float("nan")}, "timeout must be a positive number"),
        ({"params": {"value": object()}}, r"params\.value is an object"),
        ({"method": "no.method"}, "method must be the name"),
        ({"method": "command"}, "method must be the name"),
        ({"to_agent": "Not A Name"}, "to_agent must be 1 to 63 characters"),
    ],
)
def test_invalid_arguments_are_refused(app: AgentApp, probe: str, arguments: dict[str, object], what: str) -> None:
    """Each raises InvalidMessage and says what is wrong."""
    call: dict[str, object] = {"to_agent": probe, "method": "echo", "params": {"value": 1}} | arguments
    with pytest.raises(InvalidMessage, match=what):
        Requests(app).request(**call)  # type: ignore[arg-type]


def test_requests_need_a_result_backend(broker: Broker, probe: str) -> None:
    """Without one, a request raises and names the missing setting."""
    app = broker.app(result_backend="disabled://", waooaw_redis_url=broker.redis_url)
    with pytest.raises(ConfigurationError, match="set result_backend"):
        Requests(app).request(probe, "echo", {"value": 1})
