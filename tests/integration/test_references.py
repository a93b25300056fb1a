"""Large payloads travel by reference: on both brokers, in both ledgers, in a folder, and through every kind of send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, RequestResponseHandler
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.queues import agent_queue

LARGE = {"text": "".join(chr(97 + number * number % 23) for number in range(60_000)), "number": 2.5}
ABOVE = 2_000


@pytest.fixture(params=["database", "folder"])
def store(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> str | None:
    """The setting ``waooaw_reference_store``: None, for the ledger's database, or the URL of a folder."""
    if request.param == "folder":
        return f"file://{tmp_path / 'payloads'}"
    if broker.database_url is None:
        pytest.skip("without a ledger there is no database")
    return None


@pytest.fixture
def sender(broker: Broker, store: str | None) -> Iterator[AgentApp]:
    """An application that sends large payloads by reference."""
    with closing(broker.app(waooaw_reference_above=ABOVE, waooaw_reference_store=store)) as app:
        yield app


@pytest.fixture
def reader(broker: Broker, app: AgentApp, store: str | None) -> Iterator[str]:
    """An agent whose worker loads payloads from the store."""
    name = broker.name()
    with broker.running(name, app, waooaw_reference_store=store):
        yield name


def seen(app: AgentApp, agent: str) -> list[dict[str, Any]]:
    """Return the messages that the agent has handled."""
    result: list[dict[str, Any]] = RequestResponseHandler(app).request(agent, "seen", timeout=20)
    return result


def test_a_handler_gets_a_large_payload(sender: AgentApp, reader: str) -> None:
    """A message, a request and a ``.delay`` whose payloads are large arrive as if they had travelled."""
    bus = MessageBus(sender)
    receipt = bus.send(Message(from_agent="tests", to_agent=reader, payload=LARGE))
    assert settled(sender, receipt.message_id) is MessageStatus.HANDLED
    assert RequestResponseHandler(sender).request(reader, "echo", {"value": LARGE}, timeout=20) == LARGE
    sender.signature(f"{reader}.command", args=(LARGE,)).delay()
    until(lambda: len(seen(sender, reader)) == 2, "the .delay")
    assert [each["payload"] for each in seen(sender, reader)] == [LARGE, LARGE]
