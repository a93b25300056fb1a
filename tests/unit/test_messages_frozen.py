"""Frozen dataclasses whose objects are made at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from waooaw_celery import Message
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.receipt import DeliveryReceipt, receipt_of


def test_wrong_fields_are_named() -> None:
    """A field that does not exist, or that is missing, raises the TypeError of a dataclass."""
    with pytest.raises(TypeError, match="colour"):
        Message(from_agent="a", to_agent="b", colour=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="to_agent"):
        Message(from_agent="a")  # type: ignore[call-arg]


def test_a_message_cannot_be_changed() -> None:
    """Setting a field of a message raises, and a copy with other fields leaves the message alone."""
    message = Message(from_agent="a", to_agent="b", payload=[1])
    with pytest.raises(AttributeError):
        message.payload = [2]  # type: ignore[misc]
    assert message.filled_in(payload=[2]).payload == [2]
    assert message.payload == [1]


def test_a_receipt_has_all_fields() -> None:
    """The receipt of a message equals one that names each field."""
    now = datetime.now(UTC)
    message = Message(from_agent="a", to_agent="b", correlation_id="c", sent_at=now)
    assert receipt_of(message, "command") == DeliveryReceipt(
        message_id=message.message_id,
        from_agent="a",
        to_agent="b",
        handler="command",
        message_type=message.message_type,
        priority=message.priority,
        status=MessageStatus.SENT,
        attempts=0,
        sent_at=now,
        delivered_at=None,
        finished_at=None,
        correlation_id="c",
        error=None,
    )
    assert vars(receipt_of(message, "command")).keys() == DeliveryReceipt.__dataclass_fields__.keys()
