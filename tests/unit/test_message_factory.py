"""How a message becomes complete: its retention and its sender."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery import Message, RetentionPolicy
from waooaw_celery.app.publishing.message_factory import MessageFactory
from waooaw_celery.errors import UnknownSender
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.store.reference_clock import ReferenceClock

TARGET = HandlerName("b", "command")


def factory(
    database_url: str | None = None, sender: str | None = None, agents: tuple[str, ...] = (), in_task: bool = False
) -> MessageFactory:
    """Return the factory of an application with these settings."""
    app: Any = SimpleNamespace(
        settings=SimpleNamespace(
            database_url=database_url, retention=RetentionPolicy.DAYS_90, sender=sender, ttl_seconds=None
        ),
        ledger_id=None,
        reference_clock=ReferenceClock(),
        agents=dict.fromkeys(agents),
        identities={},
        current_worker_task=object() if in_task else None,
    )
    return MessageFactory(app)


@pytest.mark.parametrize(
    ("database_url", "own", "expected"),
    [
        ("sqlite://", None, RetentionPolicy.DAYS_90),
        ("sqlite://", RetentionPolicy.FOREVER, RetentionPolicy.FOREVER),
        (None, None, None),
        (None, RetentionPolicy.FOREVER, None),
    ],
)
def test_a_message_has_a_retention_only_with_a_ledger(
    database_url: str | None, own: RetentionPolicy | None, expected: RetentionPolicy | None
) -> None:
    """The message's own retention is used before the application's."""
    message = Message(from_agent="a", to_agent="b", retention=own)
    assert factory(database_url).complete(TARGET, message).retention is expected


def test_the_configured_sender_is_used_before_the_only_agent() -> None:
    """Without that setting, the only agent is the sender of messages to other agents."""
    assert factory(sender="shop", agents=("a",)).sender_of(TARGET) == "shop"
    assert factory(agents=("a",)).sender_of(TARGET) == "a"


def test_a_sender_is_never_guessed() -> None:
    """No agent or several agents are no sender. An agent sends to itself only from a task."""
    for made in (factory(), factory(agents=("a", "c")), factory(agents=("b",))):
        with pytest.raises(UnknownSender, match=r"the sender of the message to b\.command"):
            made.sender_of(TARGET)
    assert factory(agents=("b",), in_task=True).sender_of(TARGET) == "b"
    with pytest.raises(UnknownSender):
        factory(agents=("a", "c"), in_task=True).sender_of(TARGET)
