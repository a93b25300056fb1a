"""What a publish carries beside its message, and what of it the ledger stores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from waooaw_celery import Message
from waooaw_celery.errors import CircularRequest, InvalidMessage
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.publish_options import (
    RECOVERED_HEADER,
    PublishOptions,
    due_at,
    options_of_messages,
    options_of_task,
)
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ZONE = timezone(timedelta(hours=2))
CALL = ReplyTo(waiting=("a",), stream=True)


def message(**fields: Any) -> Message:
    return Message(from_agent="a", to_agent="b", sent_at=NOW, **fields)


def of_task(handler: str = "command", args: Any = ({},), sent: Message | None = None, **options: Any) -> Any:
    """Return the publish options of a `.delay` with these options."""
    return options_of_task(handler, sent or message(), args, options, ZONE, "json")


def test_a_plain_message_has_no_options() -> None:
    """Neither as a message nor as a `.delay`: the ledger stores nothing."""
    assert options_of_messages([message()], None) == {}
    assert of_task() is None
    assert of_task(serializer="json", headers={}, args=None) is None


def test_the_options_of_messages_are_by_message() -> None:
    """A request has its reply-to, a message its own choice of format, and a retried dead letter its count."""
    plain, packed, small, again = (
        message(),
        message(serializer="msgpack"),
        message(compression="gzip"),
        message().evolve(resent=2),
    )
    found = options_of_messages([plain, packed, small, again], None)
    assert set(found) == {packed.message_id, small.message_id, again.message_id}
    assert found[packed.message_id] == PublishOptions(serializer="msgpack")
    assert found[small.message_id] == PublishOptions(compression="gzip")
    assert found[again.message_id] == PublishOptions(resent=2)
    assert options_of_messages([plain], CALL) == {plain.message_id: PublishOptions(call=CALL)}


@pytest.mark.parametrize(
    ("options", "is_unrepeatable"),
    [
        (PublishOptions(), False),
        (PublishOptions(repeatable=False), True),
        (PublishOptions(call=ReplyTo(waiting=("a",))), True),
        (PublishOptions(call=ReplyTo(on_reply="a.came")), False),
        (PublishOptions(call=ReplyTo(on_reply="a.came"), repeatable=False), True),
    ],
)
def test_a_request_whose_caller_waits_is_unrepeatable(options: PublishOptions, is_unrepeatable: bool) -> None:
    """By the time of recovery the caller waits no longer; one with on_reply never waits."""
    assert options.unrepeatable is is_unrepeatable


@pytest.mark.parametrize(
    "options",
    [
        PublishOptions(),
        PublishOptions(call=CALL),
        PublishOptions(task={"eta": "2026-03-01T12:00:00+00:00"}, headers={"x": 1}, positional=True),
        PublishOptions(serializer="msgpack", compression="gzip", resent=3),
        PublishOptions(repeatable=False),
    ],
)
def test_options_survive_the_ledger(options: PublishOptions) -> None:
    """What is stored has no empty values."""
    stored = options.to_json()
    assert all(stored.values())
    assert PublishOptions.from_json(stored) == options


def test_nothing_stored_means_no_options() -> None:
    """A plain message stores none."""
    assert PublishOptions.from_json(None) == PublishOptions()
    assert PublishOptions.from_json({}) == PublishOptions()


def test_the_parts_of_a_canvas_are_recorded_under_celerys_names() -> None:
    """A single callback is a list of one."""
    found = of_task(
        link={"task": "x"},
        link_error=[{"task": "y"}],
        chain=[{"task": "z"}],
        group_id="g",
        group_index=0,
        time_limit=5,
        soft_time_limit=None,
    )
    assert found.task == {
        "callbacks": [{"task": "x"}],
        "errbacks": [{"task": "y"}],
        "chain": [{"task": "z"}],
        "group_id": "g",
        "group_index": 0,
        "time_limit": 5,
    }


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"eta": NOW + timedelta(hours=1)}, NOW + timedelta(hours=1)),
        ({"eta": "2026-03-01T14:30:00"}, NOW + timedelta(minutes=30)),
        ({"countdown": 5}, NOW + timedelta(seconds=5)),
        ({"eta": NOW + timedelta(hours=1), "countdown": 5}, NOW + timedelta(hours=1)),
    ],
)
def test_a_message_that_is_due_later_is_recorded_with_its_time(options: dict[str, Any], due: datetime) -> None:
    """A countdown counts from the time of sending."""
    assert due_at(of_task(**options)) == due


def test_a_message_without_a_time_is_due_at_once() -> None:
    """Also one with a countdown of zero, which has no options."""
    assert due_at(PublishOptions()) is None
    assert of_task(countdown=0) is None


def test_headers_of_the_sender_are_recorded_without_those_of_the_publisher() -> None:
    """The publisher sets its own again."""
    own = {ENVELOPE_HEADER: {}, REPLY_TO_HEADER: {}, RECOVERED_HEADER: 1, "expires": "x"}
    assert of_task(headers={**own, "tenant": "t1", "traceparent": "00-1"}).headers == {"tenant": "t1"}
    assert of_task(headers=own) is None


def test_stamps_are_recorded_with_their_values() -> None:
    """Celery names the stamped headers, and stores each among the options."""
    found = of_task(stamped_headers=("tenant",), tenant="t1", other="x")
    assert found.task == {"stamped_headers": ["tenant"], "tenant": "t1"}


def test_only_a_method_is_recorded_as_positional_and_without_result() -> None:
    """A handler of messages takes one argument, and never has a result."""
    found = of_task("add", (1,), ignore_result=True)
    assert (found.positional, found.task) == (True, {"ignore_result": True})
    assert of_task("command", ({},), ignore_result=True) is None
    assert of_task("add", ()) is None
    assert of_task("add", (), ignore_result=False) is None


def test_a_format_of_the_callers_choice_is_recorded() -> None:
    """Celery's own choice is not."""
    assert of_task(serializer="msgpack", compression="gzip").task == {
        "serializer": "msgpack",
        "compression": "gzip",
    }
    chosen = of_task(sent=message(serializer="msgpack", compression="gzip"))
    assert (chosen.serializer, chosen.compression, chosen.task) == ("msgpack", "gzip", {})


@pytest.mark.parametrize("options", [{"link": {"task": object()}}, {"headers": {"x": object()}}])
def test_options_that_the_ledger_cannot_store_make_a_message_unrepeatable(options: dict[str, Any]) -> None:
    """Pickle can carry values that JSON cannot: such a message is sent, and not published again."""
    assert of_task(**options) == PublishOptions(repeatable=False)


# --- the reply-to of a request


@pytest.mark.parametrize("call", [ReplyTo(), CALL, ReplyTo(waiting=("a", "b"), on_reply="a.came")])
def test_a_reply_to_survives_its_header(call: ReplyTo) -> None:
    """The header is a JSON object; a message without one has no reply-to."""
    assert ReplyTo.from_header(call.to_header()) == call
    assert ReplyTo.from_header(None) is None
    assert ReplyTo.from_header({}) == ReplyTo()


@pytest.mark.parametrize(
    "header",
    ["a", ["a"], 5, {"waiting": "a"}, {"waiting": [1]}, {"waiting": None}, {"stream": 1}, {"on_reply": 5}],
)
def test_a_damaged_reply_to_is_refused(header: Any) -> None:
    """The error names the header."""
    with pytest.raises(InvalidMessage, match=REPLY_TO_HEADER):
        ReplyTo.from_header(header)


def test_a_circular_request_is_refused() -> None:
    """The error shows who waits for whom."""
    ReplyTo(waiting=("a", "b")).check("c")
    with pytest.raises(CircularRequest, match="a waits for b waits for a"):
        ReplyTo(waiting=("a", "b")).check("a")
