"""Topics and patterns, payload filters, schemas, and event attributes."""

from __future__ import annotations

import json
import re
import socket
import warnings
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waooaw_celery.errors import ConfigurationError, InvalidMessage, SchemaConflict, SchemaViolation
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern, check_topic, matches
from waooaw_celery.messages.topics.schemas import SchemaCheck, SchemaRegistry, select_schema

#: Few words, so that they meet often.
WORDS = st.sampled_from(["a", "b", "task", "A", "a-b", "0"])
TOPICS = st.lists(WORDS, min_size=1, max_size=7).map(".".join)
PATTERNS = st.lists(st.one_of(WORDS, st.sampled_from(["*", "#"])), min_size=1, max_size=7).map(".".join)


def as_expression(pattern: str) -> str:
    """Return an equivalent regular expression for topics in which each word has a dot before it."""
    parts = {"*": r"\.[^.]+", "#": r"(?:\.[^.]+)*"}
    return "".join(parts.get(word, rf"\.{re.escape(word)}") for word in pattern.split("."))


@given(PATTERNS, TOPICS)
def test_matches_agrees_with_a_regular_expression(pattern: str, topic: str) -> None:
    """For any pattern and topic, both give the same answer."""
    assert matches(check_pattern(pattern), check_topic(topic)) == bool(
        re.fullmatch(as_expression(pattern), f".{topic}")
    )


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        ("task.*", "task.created", True),
        ("task.*", "task", False),
        ("task.*", "task.created.twice", False),
        ("task.#", "task", True),
        ("task.#", "task.created.twice", True),
        ("#", "anything.at.all", True),
        ("*.created", "task.created", True),
        ("#.created.#", "created", True),
        ("task.created", "Task.created", False),
    ],
)
def test_wildcards_follow_amqp(pattern: str, topic: str, fits: bool) -> None:
    """``*`` matches exactly one word, ``#`` zero or more; case matters."""
    assert matches(pattern, topic) is fits


def test_a_malicious_pattern_is_matched_quickly() -> None:
    """A hundred wildcards against a hundred words need no backtracking."""
    assert not matches(".".join(["#", "a"] * 50), ".".join(["a"] * 100 + ["b"]))


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        ("task.*", r"has the wildcard '\*'"),
        ("#", "has the wildcard '#'"),
        ("", "1 to 255 characters"),
        ("a" * 256, "1 to 255 characters"),
        (7, "1 to 255 characters"),
        ("task..created", "empty word"),
        (".task", "empty word"),
        ("task.cre ated", "letters, digits"),
        ("aufgabe.größe", "letters, digits"),
        ("task\n", "letters, digits"),
    ],
)
def test_an_invalid_topic_is_refused(topic: Any, error: str) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(InvalidMessage, match=error):
        check_topic(topic)


@pytest.mark.parametrize(
    ("pattern", "error"), [("task.cre*", "or are"), ("", "1 to 255"), ("a..#", "empty word"), (None, "1 to 255")]
)
def test_an_invalid_pattern_is_refused(pattern: Any, error: str) -> None:
    """A wildcard must be a word of its own."""
    with pytest.raises(InvalidMessage, match=error):
        check_pattern(pattern)


PAYLOAD = {
    "state": "paid",
    "n": 5,
    "flag": True,
    "none": None,
    "order": {"total": 120.5},
    "items": [{"kind": "x"}],
}


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        ({"state": "paid"}, True),
        ({"state": ["sent", "paid"]}, True),
        ({"state": {"ne": "paid"}}, False),
        ({"state": {"prefix": "pa"}, "n": 5}, True),
        ({"state": {"prefix": "pa"}, "n": 6}, False),
        ({"order.total": {"gte": 100, "lt": 200}}, True),
        ({"order.total": {"gt": 120.5}}, False),
        ({"order.total": {"lte": 120.5}}, True),
        ({"items.0.kind": "x"}, True),
        ({"items.1.kind": "x"}, False),
        ({"none": None}, True),
        ({"missing": None}, False),
        ({"missing": {"exists": False}}, True),
        ({"none": {"exists": True}}, True),
        ({"missing": {"ne": 1}}, False),
        ({"n": True}, False),
        ({"flag": 1}, False),
        ({"flag": True}, True),
        ({"n": {"in": [4, 5.0]}}, True),
        ({"state": {"gt": 1}}, False),
        ({"flag": {"gt": 0}}, False),
        ({"order": {"eq": {"total": 120.5}}}, True),
    ],
)
def test_a_filter_selects_by_payload(where: dict[str, Any], fits: bool) -> None:
    """All conditions must hold; types are JSON's, and values of different types do not compare."""
    assert Filter.of(where).fits(PAYLOAD) is fits


def test_other_types_are_compared_as_text_or_number() -> None:
    """A datetime is compared as ISO 8601 text, a UUID as text, and a Decimal exactly as a number."""
    at, id_ = datetime(2026, 1, 2, tzinfo=UTC), UUID(int=7)
    payload = {"at": at, "id": id_, "total": Decimal("0.1"), "raw": b"\x00", "many": [at]}
    where = {"at": {"gte": "2026-01-01"}, "id": id_, "total": {"gt": 0.05, "lt": Decimal("0.2")}, "many.0": at}
    assert Filter.of(where).fits(payload)
    assert not Filter.of({"total": {"gt": 0.2}}).fits(payload)
    json.dumps(Filter.of(where).where)
    properties = {"at": {"format": "date-time", "type": "string"}, "total": {"type": "number", "maximum": 1}}
    schema = SchemaRegistry().register("a.b", {"properties": properties})
    schema.validate(payload)
    with pytest.raises(SchemaViolation, match=r"\$\.total"):
        schema.validate({"total": Decimal(2)})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_a_filter_never_raises(payload: Any) -> None:
    """For any payload, a filter returns True or False."""
    where = {"a.0.b": {"gt": 1, "prefix": "x"}, "0": [1, "a"], "b": {"lte": "m", "exists": True}}
    assert Filter.of(where).fits(payload) in (True, False)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ({}, "a filter must be a mapping"),
        ("state=paid", "a filter must be a mapping"),
        ({"a": {"equals": 1}}, r"unknown condition 'equals' \(known: eq, ne"),
        ({"a..b": 1}, "empty part"),
        ({"a": {"in": 1}}, "'in' takes a list"),
        ({"a": {"gt": [1]}}, "takes a number or a string"),
        ({"a": {"exists": 1}}, "true or false"),
        ({"a": {"prefix": 1}}, "takes a string"),
        ({"a": {}}, "no condition"),
        ({"a": {1}}, "set, which cannot be sent"),
    ],
)
def test_an_invalid_filter_is_refused(where: Any, error: str) -> None:
    """It is refused when it is created, not when the first event arrives."""
    with pytest.raises(InvalidMessage, match=error):
        Filter.of(where)


def test_a_schema_violation_names_the_path() -> None:
    """The error has the topic, the version and the path, and can be pickled."""
    order = {"type": "object", "properties": {"total": {"type": "number", "minimum": 0}}, "required": ["total"]}
    schema = SchemaRegistry().register("task.paid", {"properties": {"orders": {"items": order}}}, version="2.1")
    schema.validate({"orders": [{"total": 1}]})
    with pytest.raises(SchemaViolation, match=r"task.paid in version 2.1 at \$\.orders\[1\]\.total: -1") as broken:
        schema.validate({"orders": [{"total": 1}, {"total": -1}]})
    error = broken.value
    assert (error.topic, error.version, error.path) == ("task.paid", "2.1", "$.orders[1].total")
    again = error.__reduce__()
    assert str(again[0](*again[1])) == str(error)


def test_the_newest_version_is_the_default() -> None:
    """It is the one registered last. An unknown version is refused with a list of the known ones."""
    schemas = SchemaRegistry()
    schemas.register("a.b", {"required": ["x"]}, version="1")
    newest = schemas.register("a.b", {"required": ["y"]}, version="2", check=SchemaCheck.RECEIPT)
    assert select_schema(schemas.all(), "a.b", None) is newest
    assert select_schema(schemas.all(), "a.c", None) is None
    with pytest.raises(InvalidMessage, match=r"no schema in version '3' \(known: 1, 2\)"):
        select_schema(schemas.all(), "a.b", "3")


def test_an_invalid_schema_is_refused_when_registered() -> None:
    """So are an invalid topic or version, and a different schema for the same version."""
    schemas = SchemaRegistry()
    with pytest.raises(ConfigurationError, match=r"the schema of a\.b in version 1 is not a JSON Schema"):
        schemas.register("a.b", {"type": "thing"})
    with pytest.raises(InvalidMessage, match="wildcard"):
        schemas.register("a.*", {})
    with pytest.raises(InvalidMessage, match="version"):
        schemas.register("a.b", {}, version="one two")
    schemas.register("a.b", {"required": ["x"]})
    schemas.register("a.b", {"required": ["x"]})
    with pytest.raises(SchemaConflict, match=r"a\.b already has another schema in version 1 in this application"):
        schemas.register("a.b", {"required": ["y"]})
    with pytest.raises(ConfigurationError, match="already registered with check=PUBLISH"):
        schemas.register("a.b", {"required": ["x"]}, check=SchemaCheck.RECEIPT)


def test_the_text_of_a_schema_decides() -> None:
    """The order of keys makes no difference, but 1 and true, which are equal in Python, do."""
    schemas = SchemaRegistry()
    schemas.register("a.b", {"const": 1, "title": "x"})
    schemas.register("a.b", {"title": "x", "const": 1})
    with pytest.raises(SchemaConflict):
        schemas.register("a.b", {"const": True, "title": "x"})


def test_a_schema_is_never_fetched() -> None:
    """A reference to another document is an error, and its server gets no request."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        schema = SchemaRegistry().register("a.c", {"$ref": f"http://127.0.0.1:{port}/schema.json"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ConfigurationError, match="never fetched"):
                schema.validate({})
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


def attributes(**fields: Any) -> EventAttributes:
    given = {"id": "e1", "topic": "task.created", "source": "boss", "time": datetime(2026, 1, 2, tzinfo=UTC)}
    return EventAttributes(**(given | fields))


def test_event_attributes_have_cloudevents_names() -> None:
    """Empty attributes are left out, and the others are restored from the envelope."""
    event = attributes()
    assert event.to_envelope() == {
        "specversion": "1.0",
        "id": "e1",
        "source": "boss",
        "type": "task.created",
        "time": "2026-01-02T00:00:00+00:00",
    }
    for each in (event, attributes(subject="s", schema_version="2", replay=True)):
        assert EventAttributes.from_envelope(each.to_envelope()) == each
    assert EventAttributes.from_envelope(None) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"id": "a b"},
        {"topic": "a.*"},
        {"source": ""},
        {"source": "a\x00b"},
        {"subject": "x" * 501},
        {"time": datetime(2026, 1, 2)},
        {"replay": "yes"},
    ],
)
def test_invalid_event_attributes_are_refused(fields: dict[str, Any]) -> None:
    """Each attribute has its own rule."""
    with pytest.raises(InvalidMessage):
        attributes(**fields)


@pytest.mark.parametrize("damaged", ["x", {}, {"id": "e"}, {**attributes().to_envelope(), "time": "soon"}, [1]])
def test_damaged_event_attributes_are_refused(damaged: Any) -> None:
    """Any damaged value raises one kind of error."""
    with pytest.raises(InvalidMessage, match="damaged"):
        EventAttributes.from_envelope(damaged)
