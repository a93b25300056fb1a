"""Messages of A2A as calls, results as parts, and errors with the protocol's codes."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from a2a.types import Message, Part
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    MethodNotFoundError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from waooaw_celery.edges.a2a.messages import arguments_of, choose_operation, input_of
from waooaw_celery.edges.a2a.protocol_errors import protocol_error
from waooaw_celery.edges.a2a.values import data_of, part_of, parts_of, value_of
from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.errors import (
    BrokerUnavailable,
    InvalidArguments,
    InvalidMessage,
    NotPermitted,
    NotStoppable,
    RateLimitExceeded,
    UnknownAgent,
    UnknownMessage,
    UnknownMethod,
    WaooawError,
)


def operation(method: str = "answer", **properties: Any) -> Operation:
    return Operation(
        agent="a",
        method=method,
        is_workflow=False,
        description="",
        parameters={"type": "object", "properties": properties},
        result=None,
        part=None,
    )


def message(*contents: Any, **metadata: Any) -> Message:
    parts = [Part(text=each) if isinstance(each, str) else data(each) for each in contents]
    made = Message(message_id="1", parts=parts)
    made.metadata.update(metadata)
    return made


def data(value: Any) -> Part:
    return Part(data=ParseDict(value, Value()))


TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer"}


def test_the_metadata_names_the_skill() -> None:
    """By either spelling; an agent with one skill needs no name; otherwise the error lists the skills."""
    one, two = operation("one"), operation("two")
    assert choose_operation(message("x", skill_id="two"), [one, two]) is two
    assert choose_operation(message("x", skillId="one"), [one, two]) is one
    assert choose_operation(message("x"), [one]) is one
    for given, operations in ((message("x"), [one, two]), (message("x", skill_id="three"), [one, two])):
        with pytest.raises(InvalidParamsError, match="the skills are one, two"):
            choose_operation(given, operations)
    with pytest.raises(InvalidParamsError, match="none that you may call"):
        choose_operation(message("x"), [])


@pytest.mark.parametrize(
    ("parts", "properties", "expected"),
    [
        ([{"n": 4}], {"n": NUMBER}, {"n": 4}),
        (["hi"], {"q": TEXT, "n": NUMBER}, {"q": "hi"}),
        (["hi", "there"], {"q": TEXT}, {"q": "hi\nthere"}),
        (["hi", {"style": "short"}], {"prompt": TEXT, "style": TEXT}, {"prompt": "hi", "style": "short"}),
        (["hi"], {"prompt": TEXT, "style": TEXT}, {"prompt": "hi"}),
        (["hi"], {"anything": {}}, {"anything": "hi"}),
        ([{"a": 1}, {"b": 2}], {}, {"a": 1, "b": 2}),
    ],
)
def test_parts_are_arguments(parts: list[Any], properties: dict[str, Any], expected: dict[str, Any]) -> None:
    """Data gives arguments by name, and text the one parameter for text."""
    found = arguments_of(message(*parts), operation(**properties))
    assert found == expected
    assert all(type(found[name]) is type(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("parts", "properties", "kind", "says"),
    [
        (["hi"], {"n": NUMBER}, InvalidParamsError, "no parameter for the text .* the parameters are n"),
        (["hi"], {"one": TEXT, "two": TEXT}, InvalidParamsError, "no parameter for the text"),
        ([[1]], {}, InvalidParamsError, "must be an object"),
        ([{"a": 1}, {"a": 2}], {}, InvalidParamsError, "two data parts give the argument 'a'"),
        ([{"a": float(2**53)}], {}, InvalidMessage, "too large"),
    ],
)
def test_parts_that_are_no_arguments_are_refused(
    parts: list[Any], properties: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """The error says what is wrong, and what to send."""
    with pytest.raises(kind, match=says):
        arguments_of(message(*parts), operation(**properties))


def test_a_number_that_is_none_is_refused() -> None:
    """NaN passes the protocol's parser, and no JSON has it."""
    with pytest.raises(InvalidMessage, match="NaN"):
        data_of(Part(data=Value(number_value=float("nan"))))


@pytest.mark.parametrize("part", [Part(url="https://x.example/a.png"), Part(raw=b"x")])
def test_files_are_refused(part: Part) -> None:
    """For a call, and for the input of a workflow; an empty part too."""
    for use in (lambda given: arguments_of(given, operation()), input_of):
        with pytest.raises(ContentTypeNotSupportedError, match="takes no files"):
            use(Message(message_id="1", parts=[part]))
        with pytest.raises(InvalidParamsError, match="is empty"):
            use(Message(message_id="1", parts=[Part()]))


def test_the_input_of_a_workflow_is_one_value() -> None:
    """The data as it is, or the text."""
    assert input_of(message("yes")) == "yes"
    assert input_of(message([1, 2])) == [1, 2]
    with pytest.raises(InvalidParamsError, match="one value"):
        input_of(message("yes", {"a": 1}))


def test_a_result_is_a_part() -> None:
    """A text is text, a list of texts one part each, and the rest data; a large number is JSON as text."""
    assert part_of("hi").text == "hi"
    assert [each.text for each in parts_of(["a", "b"])] == ["a", "b"]
    assert parts_of(None) == []
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert data_of(part_of({"n": 1, "at": when, "cost": Decimal("1.5")})) == {
        "n": 1,
        "at": when.isoformat(),
        "cost": "1.5",
    }
    large = part_of({"n": 2**60})
    assert (large.text, large.media_type) == ('{"n": 1152921504606846976}', "application/json")


def test_the_parts_of_an_answer_are_a_value() -> None:
    """One part gives its value, texts give one text, a file its address or its bytes."""
    assert value_of([]) is None
    assert value_of([data({"n": 1})]) == {"n": 1}
    assert value_of([Part(text="a"), Part(text="b")]) == "ab"
    assert value_of([Part(text="a"), data(1)]) == ["a", 1]
    file = value_of([Part(raw=b"abc", filename="a.txt")])
    assert file == {"base64": "YWJj", "name": "a.txt", "media_type": None}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (UnknownMessage("x"), TaskNotFoundError),
        (NotStoppable("x"), TaskNotCancelableError),
        (NotPermitted("x"), UnsupportedOperationError),
        (InvalidArguments("x"), InvalidParamsError),
        (UnknownMethod("x"), InvalidParamsError),
        (UnknownAgent("x"), MethodNotFoundError),
        (RateLimitExceeded("a", "1/s", 2.5), InternalError),
        (WaooawError("x"), InternalError),
    ],
)
def test_our_errors_are_those_of_the_protocol(ours: WaooawError, theirs: type[A2AError]) -> None:
    """With our sentence, and our class in the data."""
    error = protocol_error(ours)
    assert (type(error), str(error)) == (theirs, str(ours))
    assert (error.data or {})["error"] == type(ours).__name__


def test_a_client_learns_when_to_try_again_and_nothing_of_our_servers() -> None:
    """The data says when; the URL of a server that is away stays in the log."""
    assert (protocol_error(RateLimitExceeded("a", "1/s", 2.5)).data or {})["retryAfter"] == "2.500"
    away = protocol_error(BrokerUnavailable("redis://inner:6379 does not answer"))
    assert "inner" not in str(away)
    assert "try again" in str(away)
