"""A caller sends a request again: within its timeout, each time as a message of its own, and not at two places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Broker

from waooaw_celery import AgentApp, MessageType, RemoteError, RequestResponseHandler, RetryPolicy, aio
from waooaw_celery.agents import BrokerUnavailable, InvalidArguments, MessageAuditTrail, RequestTimeout
from waooaw_celery.testing.embedded import end_all

THRICE = RetryPolicy(attempts=3, first_delay=0.05, factor=1, jitter=False)


@pytest.fixture(scope="module")
def app(ledgered_broker: Broker) -> Iterator[AgentApp]:
    """An application that sends in the name of ``tests``."""
    app = ledgered_broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def agents(ledgered_broker: Broker, app: AgentApp) -> Iterator[list[str]]:
    """Names of two agents."""
    names = [ledgered_broker.name() for _ in range(2)]
    processes = [ledgered_broker.start(name, app, module="request_retry_probe") for name in names]
    yield names
    end_all(processes)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The file in which each attempt of a handler is counted."""
    return tmp_path / "marks"


@pytest.mark.slow
def test_a_request_without_an_answer_is_sent_again(app: AgentApp, agents: list[str], marks: Path) -> None:
    """The first attempt is stopped at its share of the timeout; the ledger has both, in one conversation."""
    began = time.monotonic()
    params = {"marks": str(marks), "bad": 1, "how": "hang"}
    response = RequestResponseHandler(app).send_request(agents[0], "flaky", params, timeout=12, retry=1)
    assert (response.result, response.error) == (2, None)
    assert 5.5 < response.seconds <= time.monotonic() - began < 12
    trail = MessageAuditTrail(app.ledger)
    second = trail.receipt(response.message_id).receipt
    assert second.correlation_id not in (None, response.message_id)
    found = trail.query(correlation_id=second.correlation_id).records  # with the answers
    attempts = [each for each in found if each.receipt.message_type is MessageType.QUERY]
    assert len({each.receipt.message_id for each in attempts}) == 2
    assert {each.conversation_id for each in attempts} == {second.correlation_id}


def test_a_coroutine_sends_again_too(app: AgentApp, agents: list[str], marks: Path) -> None:
    """``aio`` has the same parameter; a policy that names RemoteError also covers a method that failed."""
    params = {"marks": str(marks), "bad": 2, "how": "fail"}
    requests = aio.RequestResponseHandler(app)
    assert asyncio.run(requests.request(agents[0], "flaky", params, timeout=20, retry=THRICE)) == 3


def test_a_number_leaves_the_failure_of_a_method_alone(app: AgentApp, agents: list[str], marks: Path) -> None:
    """``retry=5`` is for requests without an answer; and wrong arguments are never sent again."""
    requests = RequestResponseHandler(app)
    with pytest.raises(RemoteError, match="lost"):
        requests.request(agents[0], "flaky", {"marks": str(marks), "bad": 9, "how": "fail"}, timeout=20, retry=5)
    assert len(marks.read_text()) == 1
    with pytest.raises(InvalidArguments):
        requests.request(agents[0], "flaky", {"wrong": 1}, timeout=20, retry=THRICE)


@pytest.mark.slow
def test_the_timeout_is_the_limit_of_all_attempts(app: AgentApp, agents: list[str], marks: Path) -> None:
    """A method that never answers is requested twice, and the error arrives in time."""
    began = time.monotonic()
    params = {"marks": str(marks), "bad": 99, "how": "hang"}
    with pytest.raises(RequestTimeout) as raised:
        RequestResponseHandler(app).request(agents[0], "flaky", params, timeout=6, retry=1)
    assert time.monotonic() - began < 7
    assert len(marks.read_text()) == 2
    assert "was sent 2 times" in raised.value.__notes__[0]


def test_a_handler_is_not_tried_again_for_what_its_request_has_retried(
    app: AgentApp, agents: list[str], marks: Path, tmp_path: Path
) -> None:
    """A handler with three attempts, which sends a request three times, runs once."""
    own = tmp_path / "own"
    params = {"then": agents[1], "own": str(own), "marks": str(marks)}
    with pytest.raises(RemoteError) as raised:
        RequestResponseHandler(app).request(agents[0], "outer", params, timeout=30, retry=THRICE)
    assert (len(own.read_text()), len(marks.read_text())) == (1, 3)
    assert raised.value.retried_out


@pytest.mark.slow
def test_a_coroutine_that_is_cancelled_in_a_pause_sends_nothing_more(
    app: AgentApp, agents: list[str], marks: Path
) -> None:
    """Nobody waits any more, so no further attempt is made."""

    async def cancelled() -> None:
        params = {"marks": str(marks), "bad": 99, "how": "fail"}
        patient = RetryPolicy(attempts=3, first_delay=3.0, jitter=False)
        request = aio.RequestResponseHandler(app).request(agents[0], "flaky", params, timeout=60, retry=patient)
        await asyncio.wait_for(request, 2.0)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    requests = RequestResponseHandler(app)
    assert requests.request(agents[0], "flaky", {"marks": str(marks), "bad": 0, "how": ""}, timeout=20) == 2


def test_a_broker_that_is_away_is_tried_again(ledger_broker: Broker) -> None:
    """The request is published three times, and the error says so."""
    app = ledger_broker.app(broker_url="redis://localhost:1/0", waooaw_agents="somebody")
    with pytest.raises(BrokerUnavailable) as raised:
        RequestResponseHandler(app).request("somebody", "work", timeout=20, retry=THRICE)
    assert any("was sent 3 times" in note for note in raised.value.__notes__)
    app.close()
