"""The JSON form of messages, receipts, records and responses: without a loss, stable, documented, and checked."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from wire_values import texts, values

from waooaw_celery import Message, MessageStatus, MessageType, Priority, RetentionPolicy, errors
from waooaw_celery.agents import (
    AuditEvent,
    AuditRecord,
    DeliveryReceipt,
    EventAttributes,
    Page,
    PayloadNotLoaded,
    QueueDepth,
    RateLimitExceeded,
    RemoteError,
    Response,
    Statistics,
)
from waooaw_celery.errors import InvalidMessage, WaooawError
from waooaw_celery.ledger.read.records import NOT_LOADED, Durations, Refusal
from waooaw_celery.messages.json_form import JsonForm

AT = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
#: The forms of all objects of this test are documented here.
PAGE = Path(__file__).parents[2] / "docs" / "json.md"

times = st.datetimes(datetime(1971, 1, 1), datetime(2900, 1, 1), timezones=st.just(UTC)) | st.datetimes(
    datetime(1971, 1, 2), datetime(2900, 1, 1), timezones=st.just(timezone(timedelta(hours=5, minutes=30)))
)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("celery", "waooaw")
)
ids = st.from_regex(r"[A-Za-z0-9._:-]{1,40}", fullmatch=True)
counts = st.integers(0, 10**12)
seconds = st.floats(0, 1e9) | st.integers(0, 10**6)
errors_of_responses = st.sampled_from(
    [
        errors.RequestTimeout,
        errors.Expired,
        errors.Cancelled,
        errors.UnknownMethod,
        errors.InvalidArguments,
        errors.BackendUnavailable,
    ]
).flatmap(lambda cls: st.builds(cls, texts)) | st.builds(RemoteError, texts, texts, texts, st.none() | texts)
events = st.builds(
    EventAttributes,
    id=ids,
    topic=st.just("task.created"),
    source=names,
    time=times,
    subject=st.none() | st.just("x"),
    schema_version=st.none() | st.just("2"),
    replay=st.booleans(),
)
plain_messages = st.builds(
    Message,
    from_agent=names,
    to_agent=names,
    message_type=st.sampled_from([kind for kind in MessageType if kind is not MessageType.EVENT]),
    payload=values,
    priority=st.sampled_from(Priority),
    ttl_seconds=st.none() | st.floats(0.001, 3e9) | st.integers(1, 10**9),
    message_id=ids,
    correlation_id=st.none() | ids,
    conversation_id=st.none() | ids,
    causation_id=st.none() | ids,
    retention=st.none() | st.sampled_from(RetentionPolicy),
    sent_at=times,
    serializer=st.none() | st.just("msgpack"),
    compression=st.none() | st.just("zstd"),
    resent=st.integers(0, 9),
    identity=st.none() | st.just("did:example:boss"),
)
messages = plain_messages | st.builds(
    lambda message, event: message.evolve(message_type=MessageType.EVENT, event=event), plain_messages, events
)


def built(cls: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return the strategy for a class; times are aware, and numbers finite."""
    strategies = {name: _BY_HINT[hint] for name, hint in get_type_hints(cls).items() if hint in _BY_HINT}
    return st.builds(cls, **{**strategies, **given})


_BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    datetime: times,
    datetime | None: st.none() | times,
    float: seconds,
    float | None: st.none() | seconds,
    tuple[datetime, str] | None: st.none() | st.tuples(times, texts),
}
records = built(
    AuditRecord,
    receipt=built(DeliveryReceipt),
    payload=values,
    events=st.lists(built(AuditEvent), max_size=3).map(tuple),
    event=st.none() | events,
)
durations = built(Durations)
objects: dict[type[JsonForm], st.SearchStrategy[Any]] = {
    Message: messages,
    EventAttributes: events,
    DeliveryReceipt: built(DeliveryReceipt),
    AuditEvent: built(AuditEvent),
    AuditRecord: records,
    Page: built(Page, records=st.lists(records, max_size=2)),
    Statistics: built(Statistics, delivery=durations, handling=durations),
    Durations: durations,
    Refusal: built(Refusal),
    Response: built(Response, result=values, error=st.none() | errors_of_responses),
    QueueDepth: built(QueueDepth),
}
each_class = pytest.mark.parametrize("cls", objects, ids=lambda cls: cls.__name__)


def comparable(made: Any) -> Any:
    """Return an object, or the fields of a response: Python compares its error by identity."""
    if not isinstance(made, Response):
        return made
    error = made.error and (type(made.error), str(made.error), vars(made.error))
    return made.agent, made.message_id, made.result, error, made.seconds


@each_class
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_is_lost(cls: type[JsonForm], data: st.DataObject) -> None:
    """Each field comes back, with its type, from the dict and from the text. Equal objects have equal texts."""
    made = data.draw(objects[cls])
    form = made.to_dict()
    assert list(form) == [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    assert json.loads(json.dumps(form, allow_nan=False)) == form, "the form has JSON values only"
    for again in (
        cls.from_dict(form),
        cls.from_json(made.to_json()),
        cls.from_json(made.to_json(indent=2).encode()),
    ):
        assert comparable(made) == comparable(again)
        assert again.to_json() == made.to_json()
        assert_same_types(getattr(made, "payload", None), getattr(again, "payload", None))
    assert made.to_json().isascii()


def assert_same_types(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same_types(*pair)
    elif isinstance(one, dict):
        for key, value in one.items():
            assert_same_types(value, other[key])


def test_the_form_of_a_message_is_stable() -> None:
    """Programs have stored it: this text must stay readable, and be written the same."""
    message = Message(
        from_agent="boss",
        to_agent="worker-1",
        message_type=MessageType.EVENT,
        payload={
            "at": AT,
            "day": AT.date(),
            "hour": AT.time(),
            "sum": Decimal("1.10"),
            "id": UUID(int=7),
            "raw": b"\xff",
            "text": b"plain",
            "big": 2**70,
            "name": "Zoë \ud800",
        },
        priority=Priority.HIGH,
        ttl_seconds=60,
        message_id="m-1",
        correlation_id="c-1",
        retention=RetentionPolicy.DAYS_365,
        sent_at=AT,
        compression="zstd",
        event=EventAttributes(id="e-1", topic="task.created", source="boss", time=AT),
    )
    text = (
        '{"from_agent": "boss", "to_agent": "worker-1", "message_type": "event", "payload": {'
        '"at": {"__type__": "datetime", "__value__": "2026-11-29T09:30:00+00:00"}, '
        '"day": {"__type__": "date", "__value__": "2026-11-29"}, '
        '"hour": {"__type__": "time", "__value__": "09:30:00"}, '
        '"sum": {"__type__": "decimal", "__value__": "1.10"}, '
        '"id": {"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000007"}}, '
        '"raw": {"__type__": "base64", "__value__": "/w=="}, '
        '"text": {"__type__": "bytes", "__value__": "plain"}, '
        '"big": 1180591620717411303424, "name": "Zo\\u00eb \\ud800"}, '
        '"priority": "HIGH", "ttl_seconds": 60, "message_id": "m-1", "correlation_id": "c-1", '
        '"conversation_id": null, "causation_id": null, "retention": "365 days", '
        '"sent_at": "2026-11-29T09:30:00+00:00", "serializer": null, "compression": "zstd", '
        '"event": {"id": "e-1", "topic": "task.created", "source": "boss", "time": "2026-11-29T09:30:00+00:00", '
        '"subject": null, "schema_version": null, "replay": false}, "ledger": null, "resent": 0, '
        '"identity": null, "capability": null, "trace": null, "reference": null}'
    )
    assert message.to_json() == text
    assert Message.from_json(text) == message


def test_what_has_a_default_may_be_left_out() -> None:
    """A program that writes a message by hand needs two names. A form with an id is not a new message."""
    short = Message.from_json('{"from_agent": "boss", "to_agent": "worker-1", "payload": [1]}')
    assert (short.payload, short.priority, short.ttl_seconds) == ([1], Priority.NORMAL, 300.0)
    assert short.has_new_id
    assert not Message.from_dict(short.to_dict()).has_new_id


MINIMAL = {"from_agent": "boss", "to_agent": "worker-1"}
RECEIPT = DeliveryReceipt(
    message_id="m-1",
    from_agent="boss",
    to_agent="worker-1",
    handler="command",
    message_type=MessageType.COMMAND,
    priority=Priority.LOW,
    status=MessageStatus.SENT,
    attempts=0,
    sent_at=AT,
    delivered_at=None,
    finished_at=None,
    correlation_id="m-1",
    error=None,
)
RECORD = AuditRecord(
    receipt=RECEIPT,
    payload={},
    payload_digest="",
    conversation_id="m-1",
    causation_id=None,
    expires_at=None,
    retain_until=AT,
    erased_at=None,
    events=(AuditEvent(event="sent", attempt=0, at=AT, worker=None, seconds=None, error=None),),
)
RESPONSE = Response(agent="a", message_id="m-1", result=None, error=errors.Expired("too late"), seconds=1)
PAGED = Page(records=[RECORD], after=(AT, "m-1"))


def changed(form: JsonForm, path: list[Any], value: Any) -> dict[str, Any]:
    """Return the form of an object with one value changed."""
    found: dict[str, Any] = form.to_dict()
    inner: Any = found
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return found


@pytest.mark.parametrize(
    ("cls", "form", "error"),
    [
        (Message, 7, "a Message must be a JSON object, not 7"),
        (Message, {"from_agent": "boss"}, "to_agent is missing: a Message needs it"),
        (Message, {**MINIMAL, "payloda": 1}, "payloda is no field of a Message: it has from_agent, "),
        (Message, {**MINIMAL, "to_agent": None}, "to_agent must be text, not None"),
        (Message, {**MINIMAL, "to_agent": "Not OK"}, "to_agent must be 1 to 63 characters"),
        (Message, {**MINIMAL, "priority": 3}, "priority must be one of URGENT, HIGH, NORMAL, LOW, not 3"),
        (Message, {**MINIMAL, "message_type": "x"}, "message_type must be one of command, query, "),
        (Message, {**MINIMAL, "ttl_seconds": True}, "ttl_seconds must be a number, not True"),
        (Message, {**MINIMAL, "ttl_seconds": float("inf")}, "ttl_seconds must be a number, not inf"),
        (Message, {**MINIMAL, "ttl_seconds": -1}, "ttl_seconds must be None .* or a positive number"),
        (Message, {**MINIMAL, "sent_at": "2026-01-01"}, "sent_at must be an ISO 8601 time with its offset"),
        (Message, {**MINIMAL, "sent_at": 5}, "sent_at must be an ISO 8601 time with its offset"),
        (Message, {**MINIMAL, "resent": 1.5}, "resent must be a whole number, not 1.5"),
        (Message, {**MINIMAL, "payload": {"a": [{1}]}}, r"payload\.a\[0\] is a set, which cannot be sent"),
        (
            Message,
            {**MINIMAL, "payload": {"a": [{"__type__": "uuid", "__value__": "?"}]}},
            r"payload\.a\[0\] has both keys",
        ),
        (Message, {**MINIMAL, "message_type": "event", "event": {"id": "e"}}, r"event\.topic is missing"),
        (
            Message,
            {
                **MINIMAL,
                "message_type": "event",
                "event": {"id": "e", "topic": "a", "source": "", "time": AT.isoformat()},
            },
            "event: source must be 1 to 500 printable characters",
        ),
        (DeliveryReceipt, changed(RECEIPT, ["status"], "lost"), "status must be one of pending, sent"),
        (AuditRecord, changed(RECORD, ["receipt", "attempts"], "1"), r"receipt\.attempts must be a whole number"),
        (AuditRecord, changed(RECORD, ["events", 0, "at"], None), r"events\[0\]\.at must be an ISO 8601 time"),
        (AuditRecord, changed(RECORD, ["events"], {}), "events must be a list, not {}"),
        (Page, changed(PAGED, ["after"], ["x"]), "after must be a list of 2 values"),
        (Page, changed(PAGED, ["after", 0], "x"), r"after\[0\] must be an ISO 8601 time"),
        (
            Page,
            changed(PAGED, ["records", 0, "receipt", "handler"], 1),
            r"records\[0\]\.receipt\.handler must be text",
        ),
        (
            QueueDepth,
            {"queue": "a", "total": 1, "by_priority": {"X": 1}},
            "the key of by_priority must be one of URG",
        ),
        (QueueDepth, {"queue": "a", "total": 1, "by_priority": {"LOW": "1"}}, r"by_priority\.LOW must be a whole"),
        (QueueDepth, {"queue": "a", "total": 1, "by_priority": [1]}, "by_priority must be a JSON object"),
        (
            Response,
            changed(RESPONSE, ["error", "type"], "ValueError"),
            r"error\.type must be the name of an error",
        ),
        (
            Response,
            changed(RESPONSE, ["error", "type"], "RateLimitExceeded"),
            r"error\.type must be the name of an",
        ),
        (Response, changed(RESPONSE, ["error", "type"], "RemoteError"), r"error\.remote must be a JSON object of"),
        (Response, changed(RESPONSE, ["error", "message"], 1), r"error\.message must be text"),
        (Response, changed(RESPONSE, ["error"], "late"), "error must be a JSON object of type, message, remote"),
    ],
)
def test_bad_input_is_refused_with_the_path_of_the_field(cls: type[JsonForm], form: Any, error: str) -> None:
    """In one sentence, on one line."""
    with pytest.raises(InvalidMessage, match=f"^{error}") as caught:
        cls.from_dict(form)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the text of a Message is not valid JSON: "),
        ("{", "the text of a Message is not valid JSON: "),
        (b"\xff", "the text of a Message is not valid JSON: "),
        (None, "the text of a Message is not valid JSON: "),
        ('{"from_agent": "a", "from_agent": "b"}', "the text .* is not valid JSON: an object has a key twice"),
        ('{"ttl_seconds": NaN}', "the text .* is not valid JSON: NaN is not valid JSON"),
        ("[" * 100_000, "a Message is nested too deeply"),
        ("[]", r"a Message must be a JSON object, not \[\]"),
        (
            '{"from_agent": "a", "to_agent": "b", "payload": ' + 80 * "[" + 80 * "]" + "}",
            "payload.*is nested deeper",
        ),
    ],
)
def test_a_text_that_is_no_message_is_refused(text: Any, error: str) -> None:
    """With InvalidMessage and nothing else, whatever the text is."""
    with pytest.raises(InvalidMessage, match=f"^{error}"):
        Message.from_json(text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(form=st.dictionaries(st.sampled_from([*RESPONSE.to_dict(), *RECORD.to_dict()]) | texts, values, max_size=8))
def test_any_dict_is_read_or_refused(form: dict[str, Any]) -> None:
    """No input raises another error than InvalidMessage."""
    for cls in objects:
        with suppress(InvalidMessage):
            cls.from_dict(form)


def test_what_json_cannot_express_is_refused() -> None:
    """A result that is a set, and an error that no response has."""
    response = Response(agent="a", message_id="m", result={1}, error=None, seconds=1)
    with pytest.raises(InvalidMessage, match="a set has no JSON form"):
        response.to_dict()
    limited = Response(agent="a", message_id="m", result=None, error=RateLimitExceeded("a", "1/day", 1), seconds=1)
    with pytest.raises(InvalidMessage, match="a RateLimitExceeded is no error of a response"):
        limited.to_json()


def test_a_record_without_its_payload_has_no_form() -> None:
    """It would otherwise look like one that was erased."""
    record = replace(RECORD, payload=NOT_LOADED)
    for made in (record, Page(records=[record], after=None)):
        with pytest.raises(PayloadNotLoaded, match="was read without its payload"):
            made.to_json()


def test_the_errors_of_a_response_come_back() -> None:
    """With their class and text; of a RemoteError, also the traceback."""
    remote = RemoteError("worker-1", "ValueError", "no", "Traceback …")
    for error in (remote, errors.RequestTimeout("late"), errors.Cancelled()):
        response = Response(agent="worker-1", message_id="m", result=None, error=error, seconds=2.5)
        found = Response.from_json(response.to_json()).error
        assert (type(found), str(found)) == (type(error), str(error))
        assert isinstance(found, WaooawError)
    found = Response.from_dict(
        Response(agent="worker-1", message_id="m", result=None, error=remote, seconds=1).to_dict()
    ).error
    assert isinstance(found, RemoteError)
    assert (found.agent, found.type, found.message, found.traceback) == (
        "worker-1",
        "ValueError",
        "no",
        "Traceback …",
    )


@each_class
def test_the_fields_are_documented(cls: type[JsonForm]) -> None:
    """The page has a table of each class, with its fields in their order."""
    text = PAGE.read_text()
    assert f"\n## {cls.__name__}\n" in text
    section = text.split(f"\n## {cls.__name__}\n")[1].split("\n## ")[0]
    documented = [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert documented == [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
