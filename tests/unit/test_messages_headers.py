"""The message that Celery's arguments and headers stand for, in a `.delay` and in a retry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from waooaw_celery import Message, MessageType, Priority
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.headers import (
    check_delay,
    message_of_delay,
    message_of_retry,
    parse_datetime,
    payload_of,
    with_conversation_ids,
)
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.queues import HandlerName

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
#: A time zone that is two hours ahead of UTC.
ZONE = timezone(timedelta(hours=2))
COMMAND, METHOD = HandlerName("b", "command"), HandlerName("b", "add")


def delayed(target: HandlerName, *args: Any, default_ttl: float | None = 300.0, **options: Any) -> Message:
    """Return the message of a `.delay` with these arguments and options."""
    kwargs = options.pop("kwargs", None)
    return message_of_delay(target, args, kwargs, options, sender="a", default_ttl=default_ttl, zone=ZONE, now=NOW)


def test_a_delay_to_a_handler_of_messages_carries_its_payload() -> None:
    """Its only argument is the payload; the type is that of the handler."""
    message = delayed(COMMAND, {"n": 1})
    assert (message.from_agent, message.to_agent, message.payload) == ("a", "b", {"n": 1})
    assert message.message_type is MessageType.COMMAND
    assert message.priority is Priority.NORMAL
    assert message.ttl_seconds == 300.0


def test_a_delay_to_a_method_carries_its_parameters() -> None:
    """Positional ones are told apart from those by name."""
    assert delayed(METHOD, kwargs={"n": 1}).payload == {"n": 1}
    assert delayed(METHOD, 1, kwargs={"m": 2}).payload == {"args": [1], "kwargs": {"m": 2}}
    assert delayed(METHOD).payload == {}
    assert delayed(METHOD).message_type is MessageType.QUERY


@pytest.mark.parametrize(("args", "kwargs"), [((), None), ((1, 2), None), ((1,), {"n": 1}), ((), {"n": 1})])
def test_a_handler_of_messages_takes_one_argument(args: tuple[Any, ...], kwargs: Any) -> None:
    """The error shows the call that is right."""
    with pytest.raises(InvalidMessage, match=r"b\.command.*delay"):
        delayed(COMMAND, *args, kwargs=kwargs)


def test_an_event_is_not_sent_by_delay() -> None:
    """The error names the way to publish one."""
    with pytest.raises(InvalidMessage, match="EventBus"):
        delayed(HandlerName("b", "event.billing"), {})


def test_ids_and_priority_of_the_options_are_those_of_the_message() -> None:
    """Without them the message has an id of its own, and no cause."""
    message = delayed(COMMAND, {}, task_id="t", root_id="r", parent_id="p", priority="high")
    assert (message.message_id, message.conversation_id, message.causation_id) == ("t", "r", "p")
    assert message.priority is Priority.HIGH
    plain = delayed(COMMAND, {})
    assert plain.message_id not in ("t", "")
    assert (plain.conversation_id, plain.causation_id) == (None, None)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"expires": 60}, 60),
        ({"expires": 1.5}, 1.5),
        ({"expires": timedelta(minutes=2)}, 120),
        ({"expires": NOW + timedelta(seconds=30)}, 30),
        ({"expires": "2026-03-01T14:01:00"}, 60),  # in the application's time zone
        ({"countdown": 40}, 340),
        ({"eta": NOW + timedelta(seconds=50)}, 350),
        ({"eta": NOW - timedelta(seconds=50)}, 300),
        ({"eta": NOW + timedelta(seconds=50), "countdown": 7}, 350),
        ({"countdown": -5}, 300),
        ({"countdown": 40, "expires": 60}, 60),
    ],
)
def test_expiry_is_counted_from_now(options: dict[str, Any], seconds: float) -> None:
    """The default counts from the time at which the message may first be handled."""
    assert delayed(COMMAND, {}, **options).ttl_seconds == seconds


def test_a_message_never_expires_where_the_default_says_so() -> None:
    """Also one with a countdown."""
    assert delayed(COMMAND, {}, default_ttl=None).ttl_seconds is None
    assert delayed(COMMAND, {}, default_ttl=None, countdown=5).ttl_seconds is None


def test_a_retry_is_the_same_message() -> None:
    """It has the id, the ids of the conversation and the envelope of the first attempt."""
    first = Message(from_agent="a", to_agent="b", priority=Priority.HIGH, ttl_seconds=7)
    options = {
        "task_id": first.message_id,
        "root_id": "r",
        "parent_id": "p",
        "headers": {ENVELOPE_HEADER: first.to_envelope()},
    }
    again = message_of_retry(COMMAND, ({"n": 2},), None, options)
    assert (again.message_id, again.conversation_id, again.causation_id) == (first.message_id, "r", "p")
    assert (again.from_agent, again.priority, again.ttl_seconds) == ("a", Priority.HIGH, 7)
    assert (again.sent_at, again.payload) == (first.sent_at, {"n": 2})


def test_a_retry_of_a_foreign_task_has_no_envelope() -> None:
    """It is handled like a message of an unknown sender."""
    again = message_of_retry(METHOD, None, None, {"task_id": "t"})
    assert (again.message_id, again.from_agent, again.payload) == ("t", "unknown", {})


@pytest.mark.parametrize(
    ("handler", "args", "kwargs", "payload"),
    [
        ("command", ({"n": 1},), {}, {"n": 1}),
        ("command", (), {"n": 1}, {"n": 1}),
        ("command", (1,), {"n": 1}, {"args": [1], "kwargs": {"n": 1}}),
        ("command", (1, 2), {}, {"args": [1, 2], "kwargs": {}}),
        ("add", (1,), {}, {"args": [1], "kwargs": {}}),
        ("add", (), {}, {}),
    ],
)
def test_arguments_become_a_payload(handler: str, args: Any, kwargs: Any, payload: Any) -> None:
    """Only a handler of messages takes its single argument for the payload."""
    assert payload_of(handler, args, kwargs) == payload


CAUSE = Message(from_agent="z", to_agent="a", message_id="cause", correlation_id="job", conversation_id="talk")


def test_a_message_of_a_handler_belongs_to_its_conversation() -> None:
    """It keeps the correlation id of its cause. A request has an id of its own, because its answer has it too."""
    sent = with_conversation_ids(COMMAND, Message(from_agent="a", to_agent="b"), CAUSE, None, NOW)
    assert (sent.correlation_id, sent.conversation_id, sent.causation_id) == ("job", "talk", "cause")
    request = with_conversation_ids(METHOD, Message(from_agent="a", to_agent="b"), CAUSE, None, NOW)
    assert (request.correlation_id, request.conversation_id) == (request.message_id, "talk")


def test_a_message_outside_of_handlers_starts_a_conversation() -> None:
    """Its ids are its own; the time and the retention are filled in."""
    sent = with_conversation_ids(
        COMMAND, Message(from_agent="a", to_agent="b"), None, RetentionPolicy.DAYS_30, NOW
    )
    assert (sent.correlation_id, sent.conversation_id) == (sent.message_id, sent.message_id)
    assert (sent.causation_id, sent.retention, sent.sent_at) == (None, RetentionPolicy.DAYS_30, NOW)


def test_ids_that_the_sender_chose_stay() -> None:
    """Also inside of a handler."""
    chosen = Message(from_agent="a", to_agent="b", correlation_id="x", conversation_id="y", causation_id="z")
    sent = with_conversation_ids(COMMAND, chosen, CAUSE, None, NOW)
    assert (sent.correlation_id, sent.conversation_id, sent.causation_id) == ("x", "y", "z")


@pytest.mark.parametrize(
    ("options", "run_seconds", "is_late"),
    [
        ({}, 5000.0, False),
        ({"countdown": 60}, 39.9, False),
        ({"countdown": 60}, 40.0, True),
        ({"countdown": 0.5}, 99.5, True),
        ({"eta": NOW + timedelta(seconds=100)}, 0.0, True),
        ({"eta": NOW + timedelta(seconds=99)}, 0.0, False),
        ({"eta": "2026-03-01T14:01:40"}, 0.0, True),  # in the application's time zone
        ({"eta": NOW - timedelta(days=1)}, 500.0, False),
        ({"countdown": -1}, 500.0, False),
    ],
)
def test_a_message_that_would_be_redelivered_before_its_end_is_refused(
    options: dict[str, Any], run_seconds: float, is_late: bool
) -> None:
    """The wait and the longest run must be shorter than the visibility timeout, here 100 s."""
    if is_late:
        with pytest.raises(InvalidMessage, match="redelivered after 100 s"):
            check_delay(options, run_seconds, 100.0, ZONE, NOW)
    else:
        check_delay(options, run_seconds, 100.0, ZONE, NOW)


def test_times_are_read_as_celery_reads_them() -> None:
    """Seconds and timedeltas count from now; a time without a zone is the application's."""
    assert parse_datetime(None, ZONE) is None
    assert parse_datetime("2026-03-01T12:00:00", ZONE) == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert parse_datetime("2026-03-01T12:00:00+00:00", ZONE) == NOW
    assert parse_datetime(datetime(2026, 3, 1, 14), ZONE) == NOW
    assert parse_datetime(NOW, ZONE) is NOW
    for value in (30, 30.0, timedelta(seconds=30)):
        at = parse_datetime(value, ZONE)
        assert at is not None
        assert abs((at - datetime.now(UTC)).total_seconds() - 30) < 20


@pytest.mark.parametrize(("value", "reason"), [("soon", "ISO 8601"), (True, "must be seconds"), ([1], "must be")])
def test_what_is_no_time_is_refused(value: Any, reason: str) -> None:
    """The error shows the value."""
    with pytest.raises(InvalidMessage, match=reason):
        parse_datetime(value, ZONE)
