"""The validation of an event ends in bounded time, and raises only SchemaViolation or InvalidSchema."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from waooaw_celery.errors import InvalidSchema, SchemaViolation
from waooaw_celery.messages.topics import schema_validation as checking
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.regular_expressions import LinearPattern, UnsafePattern
from waooaw_celery.messages.topics.schema_validation import make_validator, violations
from waooaw_celery.messages.topics.schemas import SchemaRegistry, TopicSchema

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
EVIL = ("(a+)+$", "^(a|a)*$", "(a|aa)+$", "(.*a){20}$", "^(([a-z])+.)+[A-Z]([a-z])+$", r"\d*\d*\d*\d*x")


def made(schema: Any) -> TopicSchema:
    """Return a schema as another process would register it, unchecked."""
    return TopicSchema(topic="a.b", version="1", schema=schema)


@pytest.fixture
def in_time() -> Iterator[Callable[[float], None]]:
    """Return a function that fails the test if it has run longer than the given seconds."""
    began = time.monotonic()

    def check(seconds: float) -> None:
        assert time.monotonic() - began < seconds

    return check  # type: ignore[return-value]


@pytest.mark.parametrize("dialect", [None, DRAFT_7, DRAFT_2019, DRAFT_2020])
@pytest.mark.parametrize("pattern", EVIL)
@pytest.mark.parametrize(
    "where", ["pattern", "patternProperties", "additionalProperties", "propertyNames", "$ref"]
)
def test_a_backtracking_pattern_is_searched_in_linear_time(
    where: str, pattern: str, dialect: str | None, in_time: Callable[[float], None]
) -> None:
    """A hundred thousand letters are searched quickly, with each keyword and each draft."""
    text = "a" * 100_000 + "!"
    schema: dict[str, Any] = {
        "pattern": {"properties": {"x": {"pattern": pattern}}},
        "patternProperties": {"patternProperties": {pattern: False}},
        "additionalProperties": {"patternProperties": {pattern: True}, "additionalProperties": False},
        "propertyNames": {"propertyNames": {"pattern": pattern}},
        "$ref": {"properties": {"x": {"$ref": "#/definitions/x"}}, "definitions": {"x": {"pattern": pattern}}},
    }[where]
    schema |= {} if dialect is None else {"$schema": dialect}
    registered = SchemaRegistry().register("a.b", schema)
    if where == "patternProperties":
        registered.validate({text: 1})
    else:
        with pytest.raises(SchemaViolation):
            registered.validate({"x": text} if where in ("pattern", "$ref") else {text: 1})
    in_time(20)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?=a)b", "(?<!a)b", "(?>a+)b", "a++b", "(?m)^a", "(", "((a{99}){99})"]
)
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_a_pattern_without_linear_search_is_refused_when_registered(keyword: str, pattern: str) -> None:
    """The error names the pattern. A schema that another process registered is refused at validation."""
    schema = {"properties": {"x": {keyword: pattern if keyword == "pattern" else {pattern: {}}}}}
    with pytest.raises(InvalidSchema, match=r"the schema of a\.b in version 1"):
        SchemaRegistry().register("a.b", schema)
    with pytest.raises(InvalidSchema, match=re.escape(repr(pattern)[:20])):
        made(schema).validate({"x": "a"})


DOUBLING: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
EXPLODING = {
    "allOf that doubles": {"$ref": "#/$defs/d0", "$defs": {**DOUBLING, "d60": {}}},
    "anyOf that doubles": {
        "$ref": "#/$defs/d0",
        "$defs": {
            **{f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)},
            "d60": False,
        },
    },
    "unevaluatedProperties that doubles": {
        "unevaluatedProperties": False,
        "$ref": "#/$defs/d0",
        "$defs": {**DOUBLING, "d60": {}},
    },
}


@pytest.mark.parametrize("schema", EXPLODING.values(), ids=EXPLODING)
@pytest.mark.parametrize("dialect", [None, DRAFT_2020])
def test_an_exploding_schema_times_out(
    schema: dict[str, Any], dialect: str | None, monkeypatch: pytest.MonkeyPatch, in_time: Callable[[float], None]
) -> None:
    """References that double at each step end at the time limit of the validation."""
    monkeypatch.setattr(checking.violations, "__defaults__", (0.3,))
    schema = schema | ({} if dialect is None else {"$schema": dialect})
    with pytest.raises(InvalidSchema, match=r"it cannot be validated within 0\.3 s"):
        SchemaRegistry().register("a.b", schema)
    with pytest.raises(SchemaViolation, match=r"it cannot be validated within 0\.3 s"):
        made(schema).validate({"x": 1})
    in_time(20)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#", "$schema": DRAFT_2020},
        {"$ref": "#", "$schema": DRAFT_7},
        {"$recursiveRef": "#", "$schema": DRAFT_2019},
        {"$dynamicRef": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"not": {"$ref": "#"}}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
    ids=str,
)
def test_a_schema_that_refers_to_itself_without_end_is_refused(schema: dict[str, Any]) -> None:
    """It is refused when it is registered, and when another process has registered it."""
    with pytest.raises(InvalidSchema, match=r"endless \$ref to itself"):
        SchemaRegistry().register("a.b", schema)
    with pytest.raises(InvalidSchema, match=r"endless \$ref to itself"):
        made(schema).validate({})


def test_a_recursive_schema_is_allowed() -> None:
    """A tree is validated as deep as a payload may be; a deeper one is a violation."""
    tree = SchemaRegistry().register("a.b", {"type": "object", "properties": {"child": {"$ref": "#"}}})

    def nested(depth: int, end: Any) -> Any:
        return {"child": nested(depth - 1, end)} if depth else end

    tree.validate(nested(60, {}))
    with pytest.raises(SchemaViolation, match=r"\$(\.child){60}: 1 is not of type"):
        tree.validate(nested(60, 1))
    with pytest.raises(SchemaViolation, match="it is nested too deeply"):
        tree.validate(nested(300, {}))


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ({"multipleOf": 0.1}, Decimal("0.3"), True),
        ({"multipleOf": 0.1}, Decimal("0.35"), False),
        ({"multipleOf": 2}, Decimal("4.0"), True),
        ({"multipleOf": 0.01}, Decimal("1E+999999"), False),
        ({"maximum": 1}, Decimal("NaN"), False),
        ({"maximum": 1}, Decimal("sNaN"), False),
        ({"multipleOf": 3}, Decimal("Infinity"), False),
        ({"type": "integer"}, Decimal(2), False),
        ({"enum": [1, 2]}, Decimal("sNaN"), False),
        ({"uniqueItems": True}, [Decimal("sNaN")], False),
        ({"uniqueItems": True}, [Decimal(1), 1], False),
        ({"multipleOf": 1e-300}, 10**300, False),
        ({"format": "date"}, "2026-01-01" * 10_000, False),
        ({"format": "regex"}, "(" * 5000, False),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}, {"a": True}, [True], None], True),
        ({"uniqueItems": True}, [{"a": [1, {}]}, {"a": [1.0, {}]}], False),
    ],
    ids=str,
)
def test_unusual_values_are_valid_or_a_violation(schema: dict[str, Any], value: Any, fits: bool) -> None:
    """Decimals, NaN, huge numbers and long strings raise no other error."""
    registered = SchemaRegistry().register("a.b", {"properties": {"x": schema}})
    if fits:
        registered.validate({"x": value})
    else:
        with pytest.raises(SchemaViolation):
            registered.validate({"x": value})


def test_unique_items_take_linear_time(in_time: Callable[[float], None]) -> None:
    """Mappings cannot be sorted, so they are compared by hash."""
    schema = SchemaRegistry().register("a.b", {"uniqueItems": True})
    schema.validate([{"n": number} for number in range(50_000)])
    in_time(10)


@pytest.mark.parametrize(
    "schema",
    [
        {"unevaluatedProperties": False, "patternProperties": {"^a": {}}},
        {"properties": {"x": {"$schema": DRAFT_7, "pattern": "a"}}},
        {"$schema": 5},
        {"type": 5},
        {"pattern": 5},
        {"properties": []},
    ],
    ids=str,
)
def test_a_schema_without_a_time_bound_is_refused(schema: dict[str, Any]) -> None:
    """An invalid schema is refused as well."""
    with pytest.raises(InvalidSchema):
        SchemaRegistry().register("a.b", schema)
    for payload in ({"x": "b"}, "text"):
        with suppress(InvalidSchema, SchemaViolation):
            made(schema).validate(payload)


_SCHEMAS = st.recursive(
    st.sampled_from(
        [
            *({}, True, False, {"type": "object"}, {"type": ["string", "null"]}, {"const": 1}, {"enum": ["a", 2]}),
            *({"pattern": "^a+b?$"}, {"maxLength": 2}, {"minimum": 1}, {"multipleOf": 2}, {"uniqueItems": True}),
            *({"format": "date"}, {"required": ["a"]}, {"maxProperties": 1}, {"minItems": 1}),
        ]
    ),
    lambda inner: (
        st.fixed_dictionaries({"properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2)})
        | st.fixed_dictionaries(
            {"patternProperties": st.dictionaries(st.sampled_from(["^a", "b|c", "."]), inner, max_size=2)},
            optional={"additionalProperties": inner, "properties": st.just({"b": True})},
        )
        | st.fixed_dictionaries({"items": inner}, optional={"contains": inner})
        | st.fixed_dictionaries({}, optional={"not": inner, "if": inner, "then": inner, "propertyNames": inner})
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"oneOf": parts})
    ),
    max_leaves=6,
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "a", "aab", "b", "2026-01-01", 1.0, 2.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(schema=_SCHEMAS, value=_VALUES)
def test_bounded_validation_agrees_with_jsonschema(schema: Any, value: Any) -> None:
    """For any schema and value, both give the same answer."""
    plain = Draft202012Validator(schema, format_checker=FormatChecker())
    assert (not violations(make_validator(schema), value)) == plain.is_valid(value)


_ATOMS = [
    "a",
    "b",
    ".",
    r"\w",
    r"\d",
    r"\s",
    "[ab]",
    "[^a]",
    "[a-c1]",
    r"\.",
    "é",
    "^",
    "$",
    r"\b",
    r"\B",
    r"\A",
    r"\Z",
]
_PATTERNS = st.recursive(
    st.sampled_from(_ATOMS),
    lambda inner: (
        st.lists(inner, max_size=3).map("".join)
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})")
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "*?", "+?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        )
        | inner.map(lambda part: f"(?i:{part})")
    ),
    max_leaves=6,
)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(pattern=_PATTERNS, text=st.text("aAbBc1é. \n_", max_size=8))
def test_linear_search_agrees_with_python(pattern: str, text: str) -> None:
    """For any pattern and text, both engines give the same answer."""
    assume(text or r"\B" not in pattern)  # which Python finds in an empty text from 3.14 on
    assert LinearPattern(pattern).search(text) == bool(re.search(pattern, text))


def test_the_error_of_a_refused_pattern_names_it() -> None:
    """It has the pattern, and what to leave out."""
    with pytest.raises(UnsafePattern, match=r"the pattern '\(\?=a\)' uses assert, which cannot be .*: remove it"):
        LinearPattern("(?=a)")


def test_a_filter_does_not_raise_for_unusual_values() -> None:
    """It handles an index of thousands of digits, and a Decimal that is NaN."""
    odd = {"items": [1], "x": Decimal("NaN"), "y": Decimal("sNaN")}
    assert not Filter.of({"items." + "9" * 5000: 1}).fits(odd)
    for name in ("gt", "lte"):
        assert not Filter.of({"x": {name: 1}}).fits(odd)
        assert not Filter.of({"y": {name: 1}}).fits(odd)
    assert not Filter.of({"y": {"eq": 1}}).fits(odd)
    assert not Filter.of({"y": [1, 2]}).fits(odd)
    assert Filter.of({"y": {"ne": 1}}).fits(odd)
