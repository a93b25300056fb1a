"""A message whose handler raises ``Reject(requeue=True)`` is handled again after a pause, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import Any

import pytest
from proxy import proxied
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, RemoteError
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.testing.embedded import end

pytestmark = pytest.mark.usefixtures("dead_letters_alone")

#: How often a handler may requeue a message here. The pauses are 1 s and 2 s.
LIMIT = 2
EXCEEDED = f"the handler requeued the message {LIMIT + 1} times: not mine"
UNLIMITED_ATTEMPTS = 1000

POOLS = [
    *(("ledger", pool) for pool in ("prefork", "solo", "threads", "gevent")),
    *(pytest.param(("rabbitmq", pool), marks=pytest.mark.rabbitmq) for pool in ("prefork", "solo")),
]


@pytest.fixture(scope="module", params=POOLS, ids="-".join)
def agent(request: pytest.FixtureRequest) -> Iterator[tuple[AgentApp, str]]:
    """Return an application, and the name of an agent whose worker runs in one pool, on one broker."""
    kind, pool = request.param
    broker: Broker = request.getfixturevalue(f"{kind}_broker")
    app, name = broker.app(), broker.name()
    options = ["-P", pool, *(() if pool == "solo" else ("-c", "6"))]
    process = broker.start(name, app, *options, module="requeue_probe", waooaw_requeue_limit=LIMIT)
    yield app, name
    end(process)
    app.close()


def send(app: AgentApp, name: str, message_type: MessageType, times: int, **fields: Any) -> str:
    """Send a message whose handler requeues it so many times, and return its id."""
    message = Message(from_agent="a", to_agent=name, payload=times, message_type=message_type, **fields)
    return MessageBus(app).send(message).message_id


def test_a_requeued_message_is_handled_after_pauses_and_then_fails(agent: tuple[AgentApp, str]) -> None:
    """In each kind of handler, the pauses are 1 s and 2 s. Then the message is HANDLED or FAILED."""
    app, name = agent
    bus, requests = MessageBus(app), Requests(app)
    types = [MessageType.COMMAND, MessageType.QUERY, *([MessageType.ACK] if app.settings.database_url else [])]
    with ThreadPoolExecutor(6) as threads:
        failing_answers = [
            threads.submit(requests.request, name, method, {"times": UNLIMITED_ATTEMPTS}, timeout=60)
            for method in ("plain", "parts", "async_parts")
        ]
        passing_answer = threads.submit(requests.request, name, "plain", {"times": LIMIT}, timeout=60)
        failing = [send(app, name, each, UNLIMITED_ATTEMPTS) for each in types]
        passing = [send(app, name, each, LIMIT) for each in types]
        for each in (*failing, *passing):
            until(lambda each=each: bus.receipt(each).status.final, "the end", 60)  # type: ignore[misc]
        for answer in failing_answers:
            with pytest.raises(RemoteError, match=f"RequeueLimitExceeded: {EXCEEDED}"):
                answer.result(60)
        assert passing_answer.result(60) == "answer"
    for each in failing:
        receipt = bus.receipt(each)
        assert (receipt.status, receipt.attempts) == (MessageStatus.FAILED, LIMIT + 1)
        assert receipt.error == f"RequeueLimitExceeded: {EXCEEDED}"
        assert receipt.delivered_at is not None
        assert receipt.finished_at is not None
        assert (receipt.finished_at - receipt.delivered_at).total_seconds() >= 3
    for each in passing:
        assert (bus.receipt(each).status, bus.receipt(each).attempts) == (MessageStatus.HANDLED, LIMIT + 1)
    letters = {letter.message_id: letter.reason for letter in app.dead_letters.list(agent=name)}
    assert letters == dict.fromkeys(failing, f"RequeueLimitExceeded: {EXCEEDED}")


def test_a_message_that_would_expire_fails_at_once(agent: tuple[AgentApp, str]) -> None:
    """A message that expires before its next attempt is not requeued."""
    app, name = agent
    bus = MessageBus(app)
    sent = send(app, name, MessageType.COMMAND, UNLIMITED_ATTEMPTS, ttl_seconds=2.5)
    until(lambda: bus.receipt(sent).status.final, "the end")
    receipt = bus.receipt(sent)
    assert receipt.status is MessageStatus.FAILED
    assert receipt.attempts == 2
    assert receipt.error == "RequeueLimitExceeded: the handler requeued the message 2 times: not mine"


@pytest.mark.slow
def test_returns_during_an_outage_are_paused_and_not_counted(ledger_broker: Broker) -> None:
    """While no attempt can be published, the message is delivered once a second, beyond the limit."""
    app, name = ledger_broker.app(), ledger_broker.name()
    bus, requests = MessageBus(app), Requests(app)
    options: dict[str, Any] = {"module": "requeue_probe", "waooaw_requeue_limit": 1}

    def times() -> Any:
        return requests.request(name, "times", {"message_id": sent})

    with closing(app), ExitStack() as worker:
        with proxied(ledger_broker.url) as proxy:
            celery = ("-P", "threads", "--without-heartbeat")
            worker.enter_context(ledger_broker.running(name, app, *celery, broker_write_url=proxy.url, **options))
            assert requests.request(name, "plain", {"times": 0}) == "answer"
        # Now the proxy refuses the worker's connections for publishing. It consumes over another URL.
        sent = send(app, name, MessageType.COMMAND, 1)
        until(lambda: len(times()) >= 4, "the fourth attempt", 60)
        started_at = times()
        assert all(later - earlier > 0.9 for earlier, later in pairwise(started_at))
        assert not bus.receipt(sent).status.final
        worker.close()
        worker.enter_context(ledger_broker.running(name, app, "-P", "threads", **options))
        until(lambda: bus.receipt(sent).status.final, "the end")
        assert bus.receipt(sent).status is MessageStatus.HANDLED
        assert app.dead_letters.list(agent=name) == []
