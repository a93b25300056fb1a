"""A message that ends its worker each time on RabbitMQ, which keeps no delivery count, becomes a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RemoteError, RequestResponseHandler
from waooaw_celery.testing.embedded import end_all

pytestmark = [pytest.mark.rabbitmq, pytest.mark.usefixtures("dead_letters_alone")]

#: How often a message is redelivered.
LIMIT = 1
#: Ends its worker, a single process, at once.
POISON = {"kill": True}

Start = Callable[[str], Popen[bytes]]


@pytest.fixture(params=["strict", "batched", None], ids=str)
def mode(request: pytest.FixtureRequest) -> str | None:
    """The ledger's mode; None: there is no ledger, and Redis stores the receipts."""
    mode: str | None = request.param
    return mode


@pytest.fixture
def broker(mode: str | None, amqp_url: str, ledger_broker: Broker, tmp_path: Path) -> Iterator[Broker]:
    database_url = None if mode is None else ledger_broker.database_url
    broker = Broker(amqp_url, ledger_broker.redis_url, tmp_path, database_url)
    yield broker
    broker.clean()


@pytest.fixture
def start(mode: str | None, broker: Broker, app: AgentApp) -> Iterator[Start]:
    """Start a worker with a single process."""
    processes: list[Popen[bytes]] = []

    def _start(name: str) -> Popen[bytes]:
        settings: dict[str, Any] = {"broker_transport_options": {"delivery_limit": LIMIT}}
        settings |= {} if mode is None else {"waooaw_audit_mode": mode}
        processes.append(broker.start(name, app, "-P", "solo", node=f"{name}-{len(processes)}", **settings))
        return processes[-1]

    yield _start
    end_all(processes)


@pytest.mark.slow
def test_message_that_ends_its_workers_becomes_a_dead_letter(
    mode: str | None, broker: Broker, app: AgentApp, start: Start
) -> None:
    """It is started LIMIT + 1 times. The messages around it are handled, and the next worker lives."""
    name, bus, ended = broker.name(), MessageBus(app), 0
    worker = start(name)

    def send(payload: Any) -> str:
        return bus.send(Message(from_agent="tests", to_agent=name, payload=payload)).message_id

    # First and alone: a batched ledger may lose what a worker records just before it is killed.
    assert settled(app, send({})) is MessageStatus.HANDLED
    poison, after = send(POISON), send({})
    while not bus.receipt(poison).status.final:
        until(lambda it=worker: it.poll() is not None or bus.receipt(poison).status.final, "an end")  # type: ignore[misc]
        if worker.poll() is not None:
            ended, worker = ended + 1, start(name)
    assert bus.receipt(poison).status is MessageStatus.DEAD
    # A batched ledger may lose the first start.
    assert ended in ((LIMIT + 1, LIMIT + 2) if mode == "batched" else (LIMIT + 1,))
    assert settled(app, after) is MessageStatus.HANDLED
    receipt = bus.receipt(poison)
    assert receipt.attempts == LIMIT + 1
    assert receipt.error == f"DeliveryLimitExceeded: its worker died {LIMIT + 1} times"
    [dead_letter] = app.dead_letters.list(agent=name)
    assert (dead_letter.message_id, dead_letter.reason) == (poison, receipt.error)
    assert worker.poll() is None


@pytest.mark.parametrize("mode", ["strict"], indirect=True)
def test_request_that_ends_its_workers_is_answered(broker: Broker, app: AgentApp, start: Start) -> None:
    """The request is answered with an error, and there is no dead letter."""
    name = broker.name()
    worker = start(name)
    requests = RequestResponseHandler(app)
    with ThreadPoolExecutor(1) as waiting:
        asked = waiting.submit(requests.request, name, "kill", timeout=60)
        for _ in range(LIMIT + 1):
            until(lambda worker=worker: worker.poll() is not None, "the end of the worker")  # type: ignore[misc]
            worker = start(name)
        with pytest.raises(RemoteError, match=f"its worker died {LIMIT + 1} times"):
            asked.result(timeout=60)
    assert not app.dead_letters.list(agent=name)
