"""The rules for the parts of a message: tags, values that JSON does not have, sizes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import KEPT_FOREVER, Priority, RetentionPolicy
from waooaw_celery.messages.validation import (
    MAX_BITS,
    MAX_DEPTH,
    LocalTime,
    check_agent_name,
    check_id,
    check_tags,
    check_ttl,
    json_copy,
    mapping,
    restored,
    tagged,
    untagged,
)


class Colour(Enum):
    """An enum whose value is sent."""

    RED = "red"


class Level(IntEnum):
    """An enum that is an int."""

    HIGH = 3


@dataclass
class Point:
    """A dataclass whose fields are sent."""

    x: int
    inner: Any = None


class Model(BaseModel):
    """A pydantic model whose fields are sent."""

    name: str


#: Values that JSON does not have, and that every format restores.
TAGGED = [
    datetime(2026, 3, 1, 12, tzinfo=UTC),
    date(2026, 3, 1),
    time(12, 30),
    UUID(int=7),
    Decimal("1.50"),
    b"\x00\xff",
]


@pytest.mark.parametrize(
    ("value", "copy"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ((1, (2,)), [1, [2]]),
        (Point(1, Point(2)), {"x": 1, "inner": {"x": 2, "inner": None}}),
        (Model(name="n"), {"name": "n"}),
        ([Model(name="n")], [{"name": "n"}]),
        ({"a": Colour.RED}, {"a": "red"}),
        (2**MAX_BITS - 1, 2**MAX_BITS - 1),
        *((value, value) for value in TAGGED),
    ],
)
def test_a_copy_has_only_types_that_a_message_can_carry(value: Any, copy: Any) -> None:
    """The receiver does not have the sender's classes."""
    found = json_copy(value, "payload")
    assert found == copy
    assert type(found) is type(copy)


def test_a_copy_shares_no_container_with_the_original() -> None:
    """Changing the payload after the send changes nothing."""
    original: Any = {"a": [{"b": [1]}]}
    copy = json_copy(original, "payload")
    original["a"][0]["b"].append(2)
    assert copy == {"a": [{"b": [1]}]}


@pytest.mark.parametrize("value", [2**MAX_BITS, -(2**MAX_BITS)])
def test_an_integer_that_python_would_not_parse_is_refused(value: int) -> None:
    """The error says what to do."""
    with pytest.raises(InvalidMessage, match=f"more than {MAX_BITS} bits"):
        json_copy(value, "payload")


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "mappings"])
def test_nesting_is_limited(nest: Any) -> None:
    """The deepest allowed value passes, and one level more does not."""
    value: Any = 1.5
    for _ in range(MAX_DEPTH - 1):
        value = nest(value)
    assert json_copy([value], "payload") == [value]
    with pytest.raises(InvalidMessage, match=f"deeper than {MAX_DEPTH} levels"):
        json_copy([[value, []]], "payload")


def test_one_of_the_keys_of_a_tagged_value_may_be_used() -> None:
    """Only both together would be taken for a tagged value."""
    for value in ({"__type__": 1}, {"__value__": 1}, {"__type__": 1, "x": 2}):
        assert json_copy(value, "payload") == value


def test_a_class_is_no_value() -> None:
    """Neither a dataclass itself nor a model itself."""
    for value in (Point, Model):
        with pytest.raises(InvalidMessage, match="cannot be sent"):
            json_copy(value, "payload")


@pytest.mark.parametrize("value", TAGGED)
def test_a_tagged_value_is_restored(value: Any) -> None:
    """It is written as Kombu's JSON writes it."""
    written = tagged(value)
    assert set(written) == {"__type__", "__value__"}
    assert untagged(written) == value
    assert mapping(list(written.items())) == value
    assert restored({"a": [written, 1]}) == {"a": [value, 1]}


def test_values_of_the_senders_classes_are_written_by_their_content() -> None:
    """An enum by its value, an integer that is too large as text, a dataclass by its fields."""
    assert tagged(Colour.RED) == "red"
    assert tagged(2**70) == {"__type__": "int", "__value__": str(2**70)}
    assert untagged(tagged(2**70)) == 2**70
    assert tagged(Point(1)) == {"x": 1, "inner": None}
    assert tagged(Model(name="n")) == {"name": "n"}
    with pytest.raises(TypeError):
        tagged(object())


@pytest.mark.parametrize("found", [{"__type__": "int", "__value__": 5}, {"__type__": "date", "__value__": "x"}])
def test_a_damaged_tagged_value_is_refused_or_left(found: dict[str, Any]) -> None:
    """A decoder refuses it; a value that the ledger stored stays as it is."""
    with pytest.raises((TypeError, ValueError)):
        untagged(found)
    assert restored(found) == found


@pytest.mark.parametrize("found", [{"a": 1, "b": 2}, {"__type__": "int"}, {"__type__": "int", "b": 1}, {}])
def test_an_ordinary_mapping_is_no_tagged_value(found: dict[str, Any]) -> None:
    """It has other keys."""
    assert untagged(found) is found
    assert mapping(list(found.items())) == found


def test_a_key_may_occur_once() -> None:
    """Two readers could otherwise see two values."""
    with pytest.raises(ValueError, match="a key twice"):
        mapping([("a", 1), ("a", 2)])


def test_tags_are_sorted_and_distinct() -> None:
    """Any iterable of valid tags is accepted."""
    assert check_tags(["ocr", "a.b:c_d-1", "ocr"]) == ("a.b:c_d-1", "ocr")
    assert check_tags(()) == ()


@pytest.mark.parametrize("tags", ["ocr", 5, ["OCR"], ["ok", ""], [7], ["x" * 64], ["-a"]])
def test_invalid_tags_are_refused(tags: Any) -> None:
    """One text is not taken for a list of letters."""
    with pytest.raises(InvalidMessage, match="capabilit"):
        check_tags(tags)


@pytest.mark.parametrize("value", ["x" * 128, "A.b_c:d-9"])
def test_valid_ids_are_accepted(value: str) -> None:
    """Letters, digits and four signs, up to 128 characters."""
    assert check_id(value, "message_id") == value


@pytest.mark.parametrize("seconds", [None, 0.001, 1, 3.1e9])
def test_valid_times_to_live_are_accepted(seconds: Any) -> None:
    """None means that the message never expires."""
    check_ttl(seconds)


def test_a_local_time_is_aware_and_now() -> None:
    """It is a datetime of its own type, so that the store can correct it."""
    read = LocalTime.read()
    assert isinstance(read, LocalTime)
    assert read.tzinfo is UTC
    assert abs((read - datetime.now(UTC)).total_seconds()) < 60


def test_values_are_read_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never imported it cannot have one of its models."""
    monkeypatch.delitem(sys.modules, "pydantic")
    assert json_copy(Point(1), "payload") == {"x": 1, "inner": None}


@pytest.mark.parametrize(
    ("policy", "days"),
    [(RetentionPolicy.DAYS_30, 30), (RetentionPolicy.DAYS_90, 90), (RetentionPolicy.DAYS_365, 365)],
)
def test_retention_counts_from_sending(policy: RetentionPolicy, days: int) -> None:
    """A message may be purged after that time."""
    sent_at = datetime(2026, 3, 1, tzinfo=UTC)
    assert policy.until(sent_at) - sent_at == timedelta(days=days)
    assert RetentionPolicy.FOREVER.until(sent_at) == KEPT_FOREVER == datetime(9999, 12, 31, tzinfo=UTC)


def test_each_priority_has_a_rank() -> None:
    """The most urgent has the lowest."""
    assert [each.rank for each in Priority] == [0, 3, 6, 9]
    assert [Priority.of_rank(each.rank) for each in Priority] == list(Priority)


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("WowVision", "wowvision"),
        ("order service/2", "order-service-2"),
        ("_hidden_", "hidden"),
        ("Ünal", "nal"),
        ("x" * 70, "x" * 63),
    ],
)
def test_a_refused_name_is_answered_with_one_that_would_do(name: str, proposed: str) -> None:
    """The proposal is the nearest valid name."""
    with pytest.raises(InvalidMessage, match=f"{proposed!r} would do$"):
        check_agent_name(name)
    assert check_agent_name(proposed) == proposed


@pytest.mark.parametrize("name", ["", "---", "Celery", 7, None])
def test_no_name_is_proposed_where_none_is_near(name: object) -> None:
    """Nothing valid is left of it, or it would be reserved."""
    with pytest.raises(InvalidMessage) as caught:
        check_agent_name(name)
    assert "would do" not in str(caught.value)
