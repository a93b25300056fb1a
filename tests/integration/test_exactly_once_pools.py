"""Handlers with ``once=True`` in all pools: more handlers than connections, and connections that are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import Broker, settled

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.testing.embedded import end_all

#: Worker options: more concurrent handlers than database connections.
POOLS = {"threads": ("-P", "threads", "-c", "20"), "gevent": ("-P", "gevent", "-c", "20"), "prefork": ("-c", "2")}

pytestmark = pytest.mark.usefixtures("count_effects")


@pytest.fixture
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture
def start(broker: Broker, app: AgentApp, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start an agent with ``once=True`` handlers, and return its name."""
    processes: list[Any] = []

    def _start(*options: str) -> str:
        name = broker.name()
        env = {"KILL_AFTER_COMMIT": str(tmp_path / "never")}
        processes.append(broker.start(name, app, *options, module="exactly_once_probe", env=env))
        return name

    yield _start
    end_all(processes)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_more_handlers_than_connections_send_in_their_transactions(
    pool: str, app: AgentApp, start: Callable[..., str], count_effects: Callable[[str], int]
) -> None:
    """Each handler has one effect and sends one message, while the worker answers other requests."""
    name, receiver, bus = start(*POOLS[pool]), start(), MessageBus(app)
    other = Message(from_agent="tests", to_agent=receiver, payload={"label": str(uuid4())})
    bus.send(other)
    label = str(uuid4())
    work = {"label": label, "send_to": receiver, "nap": 0.02 if pool == "prefork" else 1}
    ids = [bus.send(Message(from_agent="tests", to_agent=name, payload=work)).message_id for _ in range(30)]
    with ThreadPoolExecutor(4) as threads:
        requests = RequestResponseHandler(app)
        answers = [
            threads.submit(requests.request, name, "status", {"message_id": other.message_id}, timeout=60)
            for _ in range(4)
        ]
        assert {MessageStatus(answer.result()) for answer in answers} <= set(MessageStatus)
    assert {settled(app, id_) for id_ in ids} == {MessageStatus.HANDLED}
    assert count_effects(label) == 30
    trail = MessageAuditTrail(app.ledger)
    assert not [event for id_ in ids for event in trail.receipt(id_).events if event.event == MessageEvent.RETRIED]
    caused = "SELECT message_id FROM waooaw_messages WHERE causation_id = ANY(:ids)"
    with app.database.begin("read the messages that they sent") as connection:
        sent = connection.scalars(text(caused), {"ids": ids}).all()
    assert len(sent) == 30
    assert all(settled(app, id_).final for id_ in sent)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_handler_that_loses_its_connection_is_retried(
    pool: str, app: AgentApp, start: Callable[..., str], count_effects: Callable[[str], int], tmp_path: Path
) -> None:
    """The database closes the connection: the attempt has no effect, and the message is retried."""
    name, label = start(*POOLS[pool]), str(uuid4())
    work = {"label": label, "cut": str(tmp_path / "cut")}
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=name, payload=work))
    assert settled(app, sent.message_id) is MessageStatus.HANDLED
    assert MessageBus(app).receipt(sent.message_id).attempts == 2
    assert count_effects(label) == 1


@pytest.mark.parametrize("more", [{}, {"send": True}])
def test_a_statement_that_the_database_refuses_is_not_retried(
    more: dict[str, Any], app: AgentApp, start: Callable[..., str], count_effects: Callable[[str], int]
) -> None:
    """The message is FAILED, also if the session then refuses to send."""
    name, label = start(), str(uuid4())
    work = {"label": label, "refused": True} | ({"send_to": name} if more else {})
    sent = MessageBus(app).send(Message(from_agent="tests", to_agent=name, payload=work))
    assert settled(app, sent.message_id) is MessageStatus.FAILED
    assert MessageBus(app).receipt(sent.message_id).attempts == 1
    assert count_effects(label) == 0
