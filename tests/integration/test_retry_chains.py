"""In a chain of requests, only the innermost agent tries again: retries do not multiply."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Broker, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, aio
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RemoteError
from waooaw_celery.testing.embedded import end_all

#: The kinds of methods.
KINDS = ("plain", "coroutine", "generator", "async_generator")


@pytest.fixture(scope="module")
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture(scope="module")
def app(broker: Broker) -> Iterator[AgentApp]:
    """An application that sends in the name of ``tests``."""
    app = broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def agents(broker: Broker, app: AgentApp) -> Iterator[list[str]]:
    """Names of four agents whose methods are tried three times."""
    names = [broker.name() for _ in range(4)]
    processes = [broker.start(name, app, module="chain_probe") for name in names]
    yield names
    end_all(processes)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The file in which each attempt of a handler is counted."""
    return tmp_path / "marks"


@pytest.fixture
def run(app: AgentApp, agents: list[str], marks: Path) -> Callable[..., tuple[RemoteError, list[int]]]:
    """Return a function that requests a chain, and returns its error and the attempts of each agent."""

    def request(method: str, length: int = 3, how: str = "") -> tuple[RemoteError, list[int]]:
        chain = agents[:length]
        params = {"then": chain[1:], "marks": str(marks), "how": how}
        with pytest.raises(RemoteError) as raised:
            Requests(app).request(chain[0], method, params, timeout=60)
        return raised.value, attempts(marks, chain)

    return request


def attempts(marks: Path, chain: list[str]) -> list[int]:
    """Return how often each agent of a chain was tried."""
    counts = Counter(marks.read_text().split())
    return [counts[name] for name in chain]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_innermost_of_three_agents_tries_again(
    run: Callable[..., tuple[RemoteError, list[int]]], agents: list[str], kind: str
) -> None:
    """The last agent is tried three times, and both others once; the first caller is told."""
    error, counts = run(kind)
    assert counts == [1, 1, 3]
    assert error.retried_out
    assert (error.type, error.message) == (
        "RemoteError",
        f"{agents[1]} raised RemoteError: {agents[2]} raised ConnectionError: lost",
    )


def test_only_the_innermost_of_four_agents_tries_again(run: Callable[..., tuple[RemoteError, list[int]]]) -> None:
    """A longer chain makes no more attempts."""
    assert run("plain", 4)[1] == [1, 1, 1, 3]


def test_the_coroutines_of_the_callers_are_told(app: AgentApp, agents: list[str], marks: Path) -> None:
    """A program that awaits its request, or its stream, gets the same error."""

    async def ask() -> list[Any]:
        requests = aio.RequestResponseHandler(app)
        params = {"then": agents[1:2], "marks": str(marks)}
        response = await requests.send_request(agents[0], "coroutine", params, timeout=60)
        with pytest.raises(RemoteError) as raised:
            async for _ in requests.stream(agents[0], "async_generator", params, timeout=60):
                pass
        return [response.error, raised.value]

    assert all(error.retried_out for error in asyncio.run(ask()))
    assert attempts(marks, agents[:2]) == [2, 6]


def test_a_command_at_the_head_of_a_chain_fails_at_once(app: AgentApp, agents: list[str], marks: Path) -> None:
    """It has no caller. It is a dead letter with the error of the request."""
    message = Message(from_agent="tests", to_agent=agents[0], payload={"then": agents[1:3], "marks": str(marks)})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    assert attempts(marks, agents[:3]) == [1, 1, 3]
    assert "ConnectionError: lost" in (MessageBus(app).receipt(message.message_id).error or "")


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize("how", ["from error", "in except", "group"])
def test_an_own_error_that_has_the_remote_one_behind_it_is_not_retried(
    run: Callable[..., tuple[RemoteError, list[int]]], kind: str, how: str
) -> None:
    """The traceback of such an error shows the RemoteError."""
    error, counts = run(kind, how=how)
    assert counts == [1, 1, 3]
    assert how == "group" or error.type == "ValueError"


def test_an_own_error_from_none_is_retried(run: Callable[..., tuple[RemoteError, list[int]]]) -> None:
    """``raise ... from None`` says that the error is the handler's own; its caller does not repeat it."""
    assert run("plain", how="from none")[1] == [1, 3, 9]


def test_an_agent_that_tries_once_leaves_the_retries_to_its_caller(
    run: Callable[..., tuple[RemoteError, list[int]]],
) -> None:
    """The innermost agent that has retries makes them."""
    assert run("ask_fail_once")[1] == [1, 3, 3]


def test_a_timeout_is_retried_as_before(run: Callable[..., tuple[RemoteError, list[int]]]) -> None:
    """An agent that did not answer in time has not said that it was tried often enough."""
    error, counts = run("plain", 2, how="nap")
    assert (counts[0], error.type, error.retried_out) == (3, "RequestTimeout", True)


@pytest.mark.parametrize("how", ["unpicklable", "exit"])
def test_errors_that_travel_differently_are_told_too(
    run: Callable[..., tuple[RemoteError, list[int]]], how: str
) -> None:
    """An error that cannot be pickled, and the death of the process, of which Celery sends no traceback."""
    assert run("plain", how=how)[1] == [1, 1, 3]


def test_celerys_own_retries_stop_too(run: Callable[..., tuple[RemoteError, list[int]]]) -> None:
    """Handlers with ``autoretry_for``."""
    assert run("by_celery")[1] == [1, 1, 3]


def test_a_process_retries_no_more_requests_than_its_budget(app: AgentApp, broker: Broker, tmp_path: Path) -> None:
    """With ``waooaw_retry_budget`` 0, of 250 requests that fail, 100 are tried again in ten seconds."""
    name, marks = broker.name(), tmp_path / "marks"
    options = ("-P", "threads", "-c", "20")
    process = broker.start(name, app, *options, module="chain_probe", waooaw_retry_budget=0)

    async def ask() -> list[Any]:
        requests = aio.RequestResponseHandler(app)
        params = {"marks": str(marks)}
        calls = [requests.send_request(name, "flop", params, timeout=60) for _ in range(250)]
        return [response.error for response in await asyncio.gather(*calls)]

    try:
        errors = asyncio.run(ask())
    finally:
        end_all([process])
    assert all(isinstance(error, RemoteError) and error.retried_out for error in errors)
    # A computer that needs more than ten seconds tries a hundred more.
    assert 350 <= len(marks.read_text().split()) <= 450


def test_a_spent_budget_holds_for_a_chain_of_four_agents(
    app: AgentApp, broker: Broker, agents: list[str], marks: Path, tmp_path: Path
) -> None:
    """The last agent has spent its budget: its error is retried out at once, and nobody above tries again."""
    name, spent = broker.name(), tmp_path / "spent"
    process = broker.start(name, app, "-P", "threads", "-c", "20", module="chain_probe", waooaw_retry_budget=0)
    chain = [*agents[:3], name]

    async def spend() -> None:
        requests = aio.RequestResponseHandler(app)
        calls = [requests.send_request(name, "flop", {"marks": str(spent)}, timeout=60) for _ in range(120)]
        await asyncio.gather(*calls)

    try:
        for _ in range(3):  # a computer that needs more than ten seconds for it has a new budget
            asyncio.run(spend())
            marks.unlink(missing_ok=True)
            params = {"then": chain[1:], "marks": str(marks)}
            with pytest.raises(RemoteError) as raised:
                Requests(app).request(chain[0], "plain", params, timeout=60)
            assert raised.value.retried_out
            counts = attempts(marks, chain)
            assert counts[:3] == [1, 1, 1]
            if counts[3] == 1:
                break
        assert counts[3] == 1
    finally:
        end_all([process])
