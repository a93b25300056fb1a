"""A plain Celery application in place of an AgentApp is refused, and the error says what to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from waooaw_celery import (
    Agent,
    EventBus,
    Message,
    MessageBus,
    MessageStatus,
    RateLimiter,
    RequestResponseHandler,
    aio,
    create_app,
)
from waooaw_celery.agents.client import AgentClient
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail

TAKES_APP: dict[str, Callable[[Any], object]] = {
    "Agent": lambda app: Agent("worker-1", app),
    "AgentClient": lambda app: AgentClient("worker-1", app),
    "MessageBus": MessageBus,
    "EventBus": EventBus,
    "RequestResponseHandler": RequestResponseHandler,
    "aio MessageBus": aio.MessageBus,
    "aio EventBus": aio.EventBus,
    "aio RequestResponseHandler": aio.RequestResponseHandler,
}
TAKES_NO_APP: dict[str, tuple[Callable[[Any], object], str]] = {
    "RateLimiter": (RateLimiter, "limiter"),
    "MessageAuditTrail": (MessageAuditTrail, "ledger"),
    "aio RateLimiter": (aio.RateLimiter, "limiter"),
    "aio MessageAuditTrail": (aio.MessageAuditTrail, "ledger"),
}


@pytest.mark.parametrize("make", TAKES_APP.values(), ids=TAKES_APP)
@pytest.mark.parametrize("given", ["celery", None, "redis://h"])
def test_anything_but_an_agent_app_is_refused(make: Callable[[Any], object], given: str | None) -> None:
    """The error names what was passed, and create_app. An AgentApp is accepted."""
    app = Celery("shop", set_as_current=False) if given == "celery" else given
    shown = "the plain Celery application 'shop'" if given == "celery" else repr(given)
    with pytest.raises(
        ConfigurationError, match=rf"needs an application of waooaw_celery, not {shown}: .*create_app"
    ):
        make(app)
    with closing(create_app(broker_url="redis://nowhere.invalid")) as ours:
        make(ours)


@pytest.mark.parametrize(("make", "instead"), TAKES_NO_APP.values(), ids=TAKES_NO_APP)
def test_error_names_the_attribute_to_pass_instead(make: Callable[[Any], object], instead: str) -> None:
    """For a plain application the error names create_app, for an AgentApp the attribute to pass."""
    with pytest.raises(ConfigurationError, match="create_app"):
        make(Celery("shop", set_as_current=False))
    ours = create_app(broker_url="redis://nowhere.invalid")
    with pytest.raises(ConfigurationError, match=rf"takes no application: use app\.{instead}"):
        make(ours)
    ours.close()


def test_memory_broker_needs_a_ledger_or_a_store(tmp_path: Path) -> None:
    """Each error suggests a ledger in SQLite, and with one the message is sent and its receipt is stored."""
    settings: dict[str, Any] = {"broker_url": "memory://", "waooaw_sender": "tests"}
    with closing(create_app("x", **settings)) as app:
        with pytest.raises(ConfigurationError, match=r"waooaw_database_url, such as sqlite:///waooaw\.db"):
            app.check()
        message = Message(from_agent="tests", to_agent="worker-1")
        with pytest.raises(ConfigurationError, match=r"waooaw_database_url, such as sqlite:///waooaw\.db"):
            MessageBus(app).send(message)
    limited = create_app("x", **settings, waooaw_rate_limit="1/second")
    with pytest.raises(ConfigurationError, match="waooaw_rate_limit_storage = 'memory'"):
        limited.limiter  # noqa: B018 - it is created on first access
    limited.close()
    settings |= {
        "waooaw_allow_unordered": True,
        "waooaw_database_url": f"sqlite:///{tmp_path / 'waooaw.db'}",
        "waooaw_spool_folder": str(tmp_path),
    }
    with closing(create_app("x", **settings)) as app:
        schema.upgrade(app.database)
        app.check()
        Agent("worker-1", app)
        app.registry.declare("worker-1", ["command"], "worker-1@here", 60)
        sent = MessageBus(app).send(Message(from_agent="tests", to_agent="worker-1"))
        assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.SENT
