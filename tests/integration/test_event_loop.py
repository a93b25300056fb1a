"""Agents with ``async def`` handlers, in real workers on prefork, threads and gevent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
from waooaw_celery.errors import RemoteError
from waooaw_celery.testing.embedded import end_all

POOLS = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "threads": ("-P", "threads", "-c", "200"),
    "gevent": ("-P", "gevent", "-c", "50"),
}


@pytest.fixture(scope="module")
def agents(ledger_broker: Broker) -> Iterator[dict[str, str]]:
    """Names of such agents, by the pool of their worker."""
    app = ledger_broker.app()
    names = {pool: ledger_broker.name() for pool in POOLS}
    workers = [ledger_broker.start(names[pool], app, *POOLS[pool], module="async_probe") for pool in POOLS]
    yield names
    end_all(workers)
    app.close()


@pytest.fixture(params=POOLS)
def agent(request: pytest.FixtureRequest, agents: dict[str, str]) -> str:
    return agents[str(request.param)]


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    return ledger_broker


@pytest.fixture
def requests(app: AgentApp) -> RequestResponseHandler:
    return RequestResponseHandler(app)


def test_two_hundred_handlers_wait_at_once_in_one_process(
    app: AgentApp, agents: dict[str, str], requests: RequestResponseHandler
) -> None:
    """Two hundred handlers that sleep for a second take a few seconds together in one process."""
    name, bus = agents["threads"], MessageBus(app)
    requests.request(name, "nap", {"seconds": 0})
    started_at = time.monotonic()
    sent = bus.send_many(Message(from_agent="tests", to_agent=name, payload={"sleep": 1}) for _ in range(200))
    assert {settled(app, receipt.message_id) for receipt in sent} == {MessageStatus.HANDLED}
    receipts = [bus.receipt(receipt.message_id) for receipt in sent]
    first_end = min(receipt.finished_at for receipt in receipts if receipt.finished_at)
    assert sum(1 for each in receipts if each.delivered_at and each.delivered_at < first_end) > 50
    assert time.monotonic() - started_at < 60


def test_the_current_message_follows_tasks_and_threads(agent: str, requests: RequestResponseHandler) -> None:
    """current_message() is that of the coroutine, also in its tasks and in asyncio.to_thread."""
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: requests.send_request(agent, "whoami"), range(10)))
    for answer in answers:
        told = answer.result
        assert [told["here"], told["in a task"], told["in a thread"]] == [answer.message_id] * 3


def test_a_process_has_one_event_loop(agent: str, requests: RequestResponseHandler) -> None:
    """All handlers of a process run on one event loop, in one thread."""
    told = [requests.request(agent, "whoami") for _ in range(6)]
    assert {each["thread"] for each in told} == {"waooaw-handlers"}
    loops = {(each["process"], each["loop"]) for each in told}
    assert len(loops) == len({each["process"] for each in told})


def test_a_blocking_request_is_refused(agent: str, probe: str, requests: RequestResponseHandler) -> None:
    """A blocking request in an async def handler raises BlockingCall, which says what to await."""
    error = requests.send_request(agent, "ask_and_block", {"to_agent": probe, "method": "seen"}).error
    assert isinstance(error, RemoteError)
    assert (error.type, "await agent.aio.request" in error.message) == ("BlockingCall", True)


def test_blocking_at_a_rate_limit_is_refused(agent: str, probe: str, requests: RequestResponseHandler) -> None:
    """A send that would wait at a rate limit raises BlockingCall at once in an async def handler."""
    error = requests.send_request(agent, "send_and_block", {"to_agent": probe}).error
    assert isinstance(error, RemoteError)
    assert (error.type, "await agent.aio.send" in error.message) == ("BlockingCall", True)


def test_errors_of_a_coroutine_reach_the_caller(agent: str, requests: RequestResponseHandler) -> None:
    """An exception, sys.exit() and a CancelledError are errors of the handler; the worker continues."""
    calls = {"fail": {"text": "no such invoice"}, "leave": {}, "cancel_itself": {}}
    errors = {name: requests.send_request(agent, name, params).error for name, params in calls.items()}
    told = {name: error for name, error in errors.items() if isinstance(error, RemoteError)}
    assert (told["fail"].type, told["fail"].message) == ("ValueError", "no such invoice")
    assert told["leave"].type == told["cancel_itself"].type == "HandlerExited"
    assert "sys.exit(3)" in told["leave"].message
    assert "in fail" in (told["fail"].traceback or "")


def test_a_background_task_that_exits_does_not_end_the_loop(
    broker: Broker, agent: str, requests: RequestResponseHandler
) -> None:
    """The SystemExit of a background task is logged, and handlers run on."""
    for number in range(3):
        requests.request(agent, "leave_behind", {"what": f"gone-{number}"})
    assert requests.request(agent, "nap", {"seconds": 0.01}) == 0.01
    log, warning = broker.folder / f"{agent}.log", "a background task of a handler raised SystemExit"
    until(lambda: log.read_text().count(warning) >= 3, "three log lines")


def test_the_soft_limit_cancels_the_coroutine(agent: str, requests: RequestResponseHandler) -> None:
    """The caller gets SoftTimeLimitExceeded after the coroutine cleaned up, also in pools without time limits."""
    answer = requests.send_request(agent, "hang", timeout=20)
    assert isinstance(answer.error, RemoteError)
    assert answer.error.type == "SoftTimeLimitExceeded"
    assert answer.seconds < 10
    until(lambda: "cleaned up" in requests.request(agent, "seen"), "the handler's clean-up")


def test_a_cancelled_coroutine_may_still_answer(agent: str, requests: RequestResponseHandler) -> None:
    """A coroutine that catches the cancellation at its soft limit can still return a result."""
    assert requests.request(agent, "answer_when_told_to_stop", timeout=20) == "stopped in time"


def test_the_hard_limit_holds_on_every_pool(agent: str, requests: RequestResponseHandler) -> None:
    """A coroutine that runs too long fails with TimeLimitExceeded."""
    answer = requests.send_request(agent, "hang_hard", timeout=20)
    assert isinstance(answer.error, RemoteError)
    assert answer.error.type == "TimeLimitExceeded"


def test_retries_work_as_in_plain_handlers(app: AgentApp, agent: str) -> None:
    """autoretry_for and self.retry() publish the message again, and its attempts are counted."""
    bus = MessageBus(app)
    for do in ({"fail_times": 2}, {"retry_times": 2}):
        sent = bus.send(Message(from_agent="tests", to_agent=agent, payload=do))
        assert settled(app, sent.message_id) is MessageStatus.HANDLED
        assert bus.receipt(sent.message_id).attempts == 3


def test_a_thread_of_a_coroutine_sends_as_its_agent(app: AgentApp, agent: str, probe: str) -> None:
    """A message of asyncio.to_thread(agent.send, ...) belongs to the conversation of the handled message."""
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=agent, payload={"forward_to": probe}))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED
    thread = MessageAuditTrail(app.ledger).conversation(sent.message_id)
    assert [(each.receipt.from_agent, each.causation_id) for each in thread][1:] == [(agent, sent.message_id)]


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_waits_for_coroutines(app: AgentApp, broker: Broker, pool: str) -> None:
    """After SIGTERM, a running handler comes to its end before the worker exits."""
    name = broker.name()
    bus = MessageBus(app)
    with broker.running(name, app, *POOLS[pool], module="async_probe"):
        sent = bus.send(Message(from_agent="tests", to_agent=name, payload={"sleep": 2}))
        until(lambda: bus.receipt(sent.message_id).status is MessageStatus.DELIVERED, "the handler to begin")
    assert bus.receipt(sent.message_id).status is MessageStatus.HANDLED
