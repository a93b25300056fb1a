"""The keys of handlers' messages: what a declaration may say, and what a message's key is."""

from __future__ import annotations

from typing import Any

import pytest

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.worker.ordering.key_policy import KeyPolicy, OnBusy


def message(payload: Any = None) -> Message:
    """Return a message with ids."""
    return Message(
        from_agent="planner",
        to_agent="worker",
        message_type=MessageType.COMMAND,
        payload=payload,
        conversation_id="conversation-1",
    )


@pytest.mark.parametrize(
    ("key", "payload", "expected"),
    [
        ("conversation_id", None, "conversation-1"),
        ("from_agent", None, "planner"),
        ("payload.customer", {"customer": "ada"}, "ada"),
        ("payload.customer.id", {"customer": {"id": 7}}, "7"),
        ("payload.customer.id", {"customer": "ada"}, None),
        ("payload.customer", None, None),
        (lambda message: f"{message.from_agent}/x", None, "planner/x"),
        (lambda _: None, None, None),
    ],
)
def test_the_key_of_a_message(key: Any, payload: Any, expected: str | None) -> None:
    """It is a field, a part of the payload, or what a function returns; None: it waits for no other."""
    assert KeyPolicy(key).key_of(message(payload)) == expected


@pytest.mark.parametrize("payload", [{"customer": ["ada"]}, {"customer": {"id": 1}}, {"customer": "x" * 1001}])
def test_a_key_that_is_no_text_or_too_long_is_refused(payload: Any) -> None:
    """The message becomes a dead letter."""
    with pytest.raises(InvalidMessage, match=r"its key payload\.customer"):
        KeyPolicy("payload.customer").key_of(message(payload))


def test_a_key_in_a_payload_that_is_not_loaded_is_refused() -> None:
    """A message by reference waits for its turn without its payload; a field of it may be the key."""
    reference = Reference(
        key=f"2027-02-28/20261130T120000-{'0' * 32}",
        size=1,
        sha256="0" * 64,
        content_type="application/json",
        content_encoding="utf-8",
    )
    large = message(None).evolve(reference=reference)
    with pytest.raises(InvalidMessage, match="stored by reference"):
        KeyPolicy("payload.customer").key_of(large)
    assert KeyPolicy("conversation_id").key_of(large) == "conversation-1"


def test_handlers_with_the_same_key_share_its_order() -> None:
    """Others do not, and the key itself cannot be read from its group."""
    ada = message({"customer": "ada", "order": "ada"})
    by_customer = KeyPolicy("payload.customer").group_of(ada)
    assert by_customer == KeyPolicy("payload.customer").group_of(ada)
    assert by_customer != KeyPolicy("payload.order").group_of(ada)
    assert by_customer is not None
    assert "ada" not in by_customer
    assert KeyPolicy("payload.customer", 3, OnBusy.DROP).group_of(ada) == by_customer.replace("1:w:", "3:d:", 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": ""}, "cannot have key=''"),
        ({"key": 5}, "cannot have key=5"),
        ({"key": "payload"}, "a path into the payload"),
        ({"key": "payload..x"}, "a path into the payload"),
        ({"key": "message_id"}, "is one of conversation_id"),
        ({"key": "from_agent", "max_running": 0}, "cannot have max_running=0"),
        ({"key": "from_agent", "max_running": True}, "cannot have max_running=True"),
        ({"key": "from_agent", "max_running": 1.5}, "cannot have max_running=1.5"),
        ({"key": "from_agent", "on_busy": "stop"}, "is one of wait, drop, cancel"),
        ({"max_running": 2}, "max_running= and no key="),
        ({"key": "from_agent", "batch": 10}, "together with batch="),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(options: dict[str, Any], text: str) -> None:
    """The error says what is possible."""
    agent = Agent("probe", create_app("tests", broker_url="memory://"))
    with pytest.raises(ConfigurationError, match=text):
        agent.on(MessageType.COMMAND, **options)(lambda message: None)
