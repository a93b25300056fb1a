"""Paused and limited senders, in Redis and in the ledger, as other processes see them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support import Broker, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, RateLimitExceeded, RequestResponseHandler, aio
from waooaw_celery.errors import SenderPaused
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import agent_queue, queue_depth


@pytest.fixture(params=["redis", "sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The URL of each kind of ledger, and None for receipts in Redis."""
    if request.param == "redis":
        return None
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def apps(valkey_broker: Broker, database_url: str | None) -> Iterator[tuple[AgentApp, AgentApp]]:
    """The applications of an operator and of a sender, which share only servers, without a rate limit."""
    agents = [valkey_broker.name(), f"sender-{uuid4().hex[:8]}"]
    settings = {"waooaw_database_url": database_url, "waooaw_agents": agents, "waooaw_sender": agents[1]}
    operator, sender = valkey_broker.app(**settings), valkey_broker.app(**settings)
    if database_url is not None:
        schema.upgrade(operator.database)
    yield operator, sender
    sender.close()
    operator.close()


def send(app: AgentApp) -> Message:
    """Send a message from the second of the application's agents to the first."""
    to_agent, from_agent = app.settings.agents
    message = Message(from_agent=from_agent, to_agent=to_agent)
    MessageBus(app).send(message)
    return message


def is_refused(app: AgentApp, error: type[Exception]) -> bool:
    try:
        send(app)
    except error:
        return True
    return False


def waiting(app: AgentApp) -> int:
    with app.connection_for_write() as connection:
        return queue_depth(connection, agent_queue(app.settings.agents[0])).total


def test_a_pause_holds_in_every_process_within_a_second(apps: tuple[AgentApp, AgentApp]) -> None:
    """Each way to send raises who paused the sender; after the resume, it sends again."""
    operator, app = apps
    to_agent, sender = app.settings.agents
    send(app)
    began = time.monotonic()
    operator.restrictions.pause(sender, by="ada", reason="it sends in a circle")
    until(lambda: is_refused(app, SenderPaused), "the pause")
    assert time.monotonic() - began < 3
    before = waiting(app)
    message = Message(from_agent=sender, to_agent=to_agent)
    with pytest.raises(SenderPaused, match=r"ada paused it at .*it sends in a circle"):
        MessageBus(app).send_many([message])
    with pytest.raises(SenderPaused):
        app.send_task(f"{to_agent}.command", [{}])
    with pytest.raises(SenderPaused):
        RequestResponseHandler(app).request(to_agent, "echo", {"value": 1}, from_agent=sender)
    with pytest.raises(SenderPaused):
        EventBus(app).publish("task.created", {}, from_agent=sender)
    with pytest.raises(SenderPaused):
        asyncio.run(aio.MessageBus(app).send(message, wait=5))
    assert waiting(app) == before
    [pause] = [each for each in operator.restrictions.pauses() if each.agent == sender]
    assert (pause.by, pause.reason) == ("ada", "it sends in a circle")
    assert operator.restrictions.resume(sender)
    until(lambda: not is_refused(app, SenderPaused), "the resume")
    assert not operator.restrictions.resume(sender)


def test_a_quota_set_by_command_counts_in_processes_without_a_rate_limit(apps: tuple[AgentApp, AgentApp]) -> None:
    """It counts within a second, and no longer once it is removed."""
    operator, app = apps
    sender = app.settings.agents[1]
    for _ in range(3):
        send(app)
    assert "limiter" not in vars(app.components)
    operator.limiter.set_quota(sender, "2/hour")
    until(lambda: is_refused(app, RateLimitExceeded), "the limit")
    assert operator.limiter.status(sender)[0].used == 2
    operator.limiter.set_quota(sender, None)
    until(lambda: not is_refused(app, RateLimitExceeded), "the end of the limit")
    assert operator.limiter.quotas().get(sender) is None
