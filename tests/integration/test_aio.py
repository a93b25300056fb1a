"""The awaited classes, on one event loop, with the ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageStatus, MessageType, aio
from waooaw_celery.errors import RemoteError, UnknownAgent, UnknownMessage
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import end
from waooaw_celery.worker.execution import threads as offload

T = TypeVar("T")


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    return ledger_broker


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_the_platforms_own_example_runs(app: AgentApp, probe: str) -> None:
    """The example of the platform's document works; a message that is logged twice is in the ledger once."""
    message_bus = aio.MessageBus(app)
    audit_trail = aio.MessageAuditTrail(app.ledger)
    request_handler = aio.RequestResponseHandler(app)
    message = Message(
        from_agent="orchestrator", to_agent=probe, message_type=MessageType.COMMAND, payload={"task_id": "123"}
    )

    async def example() -> tuple[bool, Any]:
        await message_bus.send_message(message)
        logged = await audit_trail.log_message(message)
        response = await request_handler.send_request(from_agent="dashboard", to_agent=probe, method="whoami")
        return logged, response

    logged, response = run(example())
    assert not logged
    assert (response.result["from"], response.ok) == ("dashboard", True)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert len(run(audit_trail.conversation(message.message_id))) == 1
    assert run(audit_trail.receipt(message.message_id)).payload == {"task_id": "123"}


def test_calls_run_concurrently(app: AgentApp, probe: str, other: str) -> None:
    """Two requests of half a second each are awaited together, and the event loop goes on meanwhile."""
    requests = aio.RequestResponseHandler(app)
    ticks = 0

    async def both() -> float:
        nonlocal ticks
        began = time.monotonic()
        asked = [
            asyncio.create_task(requests.request(name, "sleep", {"seconds": 0.5}, timeout=20))
            for name in (probe, other)
        ]
        while not all(task.done() for task in asked):
            ticks += 1
            await asyncio.sleep(0.02)
        await asyncio.gather(*asked)
        return time.monotonic() - began

    seconds = run(both())
    assert ticks > 10
    assert 0.5 <= seconds < 10


@pytest.fixture
def napper(app: AgentApp, broker: Broker) -> Iterator[str]:
    """Name of an agent that handles two hundred requests at once."""
    name = broker.name()
    worker = broker.start(name, app, "-P", "threads", "-c", "200", module="async_probe")
    yield name
    end(worker)


def subscriptions(app: AgentApp) -> list[str]:
    """Return the channels of the result backend that have subscribers."""
    with connect(store_url(None, app.conf.result_backend)) as client:
        return [str(name) for name in client.pubsub_channels("celery-task-meta-*")]


def test_a_thousand_requests_are_awaited_without_a_thread_each(app: AgentApp, napper: str) -> None:
    """One thread collects all answers, a small pool sends, and no subscription is left."""
    requests = aio.RequestResponseHandler(app)
    seen = 0

    async def ask() -> Any:
        nonlocal seen
        answer = await requests.request(napper, "nap", {"seconds": 0.2}, timeout=60)
        seen = max(seen, threading.active_count())
        return answer

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(ask() for _ in range(1000)))

    before, others = threading.active_count(), set(threading.enumerate())
    assert asyncio.run(asyncio.wait_for(all_of_them(), 100)) == [0.2] * 1000
    assert seen <= before + offload.MAX_CALLS + 3
    new = [thread.name for thread in set(threading.enumerate()) - others]
    assert new.count("waooaw-results") <= 1  # an earlier test may have started it
    until(lambda: not subscriptions(app), "the end of all subscriptions")


@pytest.mark.slow
def test_a_cancelled_request_is_no_longer_awaited(app: AgentApp, napper: str) -> None:
    """Its subscription ends, whether the request was sent or not, and other requests are answered."""
    requests = aio.RequestResponseHandler(app)

    async def give_up(after: float) -> None:
        asked = asyncio.create_task(requests.request(napper, "nap", {"seconds": 5}, timeout=60))
        await asyncio.sleep(after)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    async def several() -> Any:
        await asyncio.gather(*(give_up(after) for after in (0, 0.001, 0.01, 0.5)))
        return await requests.request(napper, "nap", {"seconds": 0}, timeout=20)

    assert run(several()) == 0
    until(lambda: len(app.result_collector) == 0 and not subscriptions(app), "the end of all subscriptions")


def test_errors_are_raised_where_they_are_awaited(app: AgentApp, probe: str) -> None:
    """Errors of the caller and of the other agent are raised alike."""
    with pytest.raises(RemoteError, match="ValueError: no"):
        run(aio.RequestResponseHandler(app).request(probe, "fail", {"text": "no"}, timeout=20))
    with pytest.raises(UnknownAgent):
        run(aio.MessageBus(app).send(Message(from_agent="tests", to_agent="nobody-at-all")))


def test_messages_of_another_transport_can_be_logged(app: AgentApp) -> None:
    """log_message and update_status record a message that this package did not carry."""
    trail = aio.MessageAuditTrail(app.ledger)
    message = Message(from_agent="tests", to_agent="by-mail", payload={"letter": 1})

    async def life() -> list[MessageStatus]:
        assert await trail.log_message(message)
        assert not await trail.log_message(message)
        statuses = [
            (await trail.update_status(message.message_id, status)).status
            for status in (
                MessageStatus.PENDING,
                MessageStatus.SENT,
                MessageStatus.DELIVERED,
                MessageStatus.DELIVERED,
                MessageStatus.SENT,
            )
        ]
        failed = await trail.update_status(message.message_id, MessageStatus.FAILED, "returned to sender")
        again = await trail.update_status(message.message_id, MessageStatus.HANDLED)
        assert failed == again
        assert failed.error == "returned to sender"
        return [*statuses, again.status]

    assert run(life()) == ["pending", "sent", "delivered", "delivered", "delivered", "failed"]
    record = run(trail.receipt(message.message_id))
    assert [(event.event, event.attempt) for event in record.events] == [
        ("sent", 0),
        ("logged", 0),
        ("delivered", 1),
        ("failed", 1),
    ]
    with pytest.raises(UnknownMessage):
        run(trail.update_status("unknown", MessageStatus.HANDLED))
