"""The fields of a message, their checks, and the envelope in Celery's headers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.validation import json_copy

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def message(**fields: Any) -> Message:
    return Message(**({"from_agent": "a", "to_agent": "b"} | fields))


def headers(sent: Message) -> dict[str, Any]:
    """Return the headers that a worker receives: Celery's own and the envelope."""
    return {
        "id": sent.message_id,
        "root_id": sent.conversation_id,
        "parent_id": sent.causation_id,
        ENVELOPE_HEADER: sent.to_envelope(),
    }


@given(
    payload=json_values,
    message_type=st.sampled_from(MessageType),
    priority=st.sampled_from(Priority),
    ttl=st.none() | st.floats(min_value=0.001, max_value=1e9),
)
def test_a_message_survives_its_headers(
    payload: Any, message_type: MessageType, priority: Priority, ttl: float | None
) -> None:
    """A message that is rebuilt from its headers and payload equals the one that was sent."""
    sent = message(
        payload=payload,
        message_type=message_type,
        priority=priority,
        ttl_seconds=ttl,
        correlation_id="c",
        conversation_id="r",
        causation_id="p",
    )
    assert Message.from_headers(headers(sent), "b", sent.payload) == sent


def test_a_message_is_frozen() -> None:
    """A field cannot be set, and a later change of the given payload does not change the message."""
    given_payload = {"list": [1]}
    sent = message(payload=given_payload)
    given_payload["list"].append(2)
    assert sent.payload == {"list": [1]}
    with pytest.raises(FrozenInstanceError):
        sent.priority = Priority.LOW  # type: ignore[misc]


def test_evolve_changes_a_copy() -> None:
    """evolve() returns a checked copy and leaves the original unchanged."""
    first = message()
    second = first.evolve(to_agent="c")
    assert (first.to_agent, second.to_agent, second.message_id) == ("b", "c", first.message_id)
    with pytest.raises(InvalidMessage, match="to_agent"):
        first.evolve(to_agent="C C")


def test_expiry_counts_from_sending() -> None:
    """expires_at is ttl_seconds after sent_at, or None without a time to live."""
    sent_at = datetime(2026, 1, 1, tzinfo=UTC)
    assert message(sent_at=sent_at, ttl_seconds=90).expires_at == sent_at + timedelta(seconds=90)
    assert message(ttl_seconds=None).expires_at is None


@pytest.mark.parametrize("name", ["a", "worker-1", "0", "x" * 63, "a_b-c"])
def test_valid_agent_names_are_accepted(name: str) -> None:
    """A name is 1 to 63 lower-case letters, digits, _ and -."""
    assert message(to_agent=name).to_agent == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a.b", "a b", "x" * 64, "ä", "a\n", None, 7, "celery", "waooaw"])
def test_invalid_agent_names_are_refused(name: Any) -> None:
    """The error for an invalid or reserved name names the field."""
    with pytest.raises(InvalidMessage, match="to_agent"):
        message(to_agent=name)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"a": {"b": [1, timedelta(1)]}}, r"payload\.a\.b\[1\] is a timedelta, which cannot be sent"),
        ({"a": {1, 2}}, r"payload\.a is a set"),
        ({"a": float("nan")}, r"payload\.a is nan, which JSON does not have"),
        ([float("inf")], r"payload\[0\] is inf"),
        ({1: "a"}, r"payload has the key 1: the keys of a JSON object must be strings"),
        ({"x": bytearray(b"bytes")}, r"payload\.x is a bytearray"),
        ({"x": {"__type__": 1, "__value__": 2}}, r"payload\.x has both keys '__type__' and '__value__'"),
        (object(), "payload is an object"),
    ],
)
def test_a_payload_that_cannot_be_sent_is_refused(payload: Any, error: str) -> None:
    """The error gives the path of the invalid part."""
    with pytest.raises(InvalidMessage, match=error):
        message(payload=payload)


def test_a_payload_that_is_nested_too_deep_is_refused() -> None:
    """A hundred thousand nested lists raise InvalidMessage, not RecursionError."""
    payload: Any = []
    for _ in range(100_000):
        payload = [payload]
    with pytest.raises(InvalidMessage, match="nested deeper than 64"):
        message(payload=payload)


@given(json_values)
def test_a_copy_of_json_is_equal(value: Any) -> None:
    """json_copy() returns an equal value for any JSON value."""
    assert json_copy(value, "payload") == value


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "60", 1e12])
def test_a_time_to_live_must_be_positive_seconds(ttl: Any) -> None:
    """Zero, negative, infinite and non-numeric values are refused."""
    with pytest.raises(InvalidMessage, match="ttl_seconds"):
        message(ttl_seconds=ttl)


@pytest.mark.parametrize("identifier", ["", "a b", "id\nforged", "x" * 129, 5])
def test_ids_are_printable(identifier: Any) -> None:
    """An id that could forge a log line is refused."""
    with pytest.raises(InvalidMessage, match="message_id"):
        message(message_id=identifier)


def test_a_naive_time_is_refused() -> None:
    """sent_at without a time zone is refused."""
    with pytest.raises(InvalidMessage, match="aware"):
        message(sent_at=datetime(2026, 1, 1))


@pytest.mark.parametrize("value", ["urgent", "URGENT", Priority.URGENT])
def test_a_priority_is_given_by_name(value: Any) -> None:
    """The name may be in upper or lower case."""
    assert message(priority=value).priority is Priority.URGENT


@pytest.mark.parametrize("value", [0, 9, "soon", None])
def test_a_number_is_refused_as_priority(value: Any) -> None:
    """Numbers are refused, because 0 is most urgent on Redis and least urgent on RabbitMQ."""
    with pytest.raises(InvalidMessage, match="URGENT, HIGH, NORMAL, LOW"):
        message(priority=value)


def test_a_message_without_an_envelope_gets_defaults() -> None:
    """The sender is ``unknown``, and the ids are Celery's."""
    received = Message.from_headers({"id": "t1", "root_id": None, "parent_id": None}, "b", {"x": 1})
    assert (received.from_agent, received.to_agent) == ("unknown", "b")
    assert (received.message_id, received.correlation_id, received.conversation_id) == ("t1", "t1", "t1")


def test_a_newer_envelope_is_refused() -> None:
    """The error of a worker that is older than the sender names the side to upgrade."""
    with pytest.raises(InvalidMessage, match="upgrade waooaw_celery on the worker first"):
        Message.from_headers({"id": "t1", ENVELOPE_HEADER: {"version": 99}}, "b", {})


def test_seven_statuses_are_final() -> None:
    """HANDLED, FAILED, EXPIRED, DEAD, CANCELLED, PUBLISHED and ANSWERED are final; the others are not."""
    assert {status for status in MessageStatus if status.final} == {
        MessageStatus.HANDLED,
        MessageStatus.FAILED,
        MessageStatus.EXPIRED,
        MessageStatus.DEAD,
        MessageStatus.CANCELLED,
        MessageStatus.PUBLISHED,
        MessageStatus.ANSWERED,
    }
