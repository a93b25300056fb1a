"""Runs `jsonschema` with bounds on time and depth, because schemas and payloads are untrusted.

Each keyword is `jsonschema`'s own, and first checks the deadline. The keywords whose own time has no bound are
replaced: those with regular expressions, unique items, division, and formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal, localcontext
from functools import cache
from itertools import islice
from typing import Any

from jsonschema import FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, extend, validator_for
from referencing.jsonschema import EMPTY_REGISTRY

from waooaw_celery.messages.topics.regular_expressions import linear_pattern

#: Longest time that the validation of one event may take, in seconds.
MAX_SECONDS = 5.0
#: Longest string that is checked against a ``format``, in characters. Dates and addresses are far shorter.
MAX_FORMAT = 10_000
#: Number of violations after which the search for more ends.
MAX_VIOLATIONS = 100
#: Precision of the division of Decimals, in digits. A longer quotient does not count as a multiple.
_DIGITS = 1000
#: Keywords that refer to another part of the schema, and may form a circle.
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
#: Keywords whose values are data, not schemas.
_VALUES = ("const", "enum", "default", "examples")

Keyword = Callable[[Any, Any, Any, Any], Any]


class ValidationTimeout(Exception):
    """The validation takes longer than it may."""


class UnsafeSchema(ValueError):
    """A part of a schema cannot be validated in bounded time; the error names it."""


class EndlessReference(Exception):
    """A reference in a schema leads back to itself, so that the validation would never end."""


class ValidationRun:
    """The deadline of one validation, and the references that it follows."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._followed: set[tuple[int, int]] = set()

    def go_on(self) -> None:
        """Check the deadline.

        Raises:
            ValidationTimeout: the deadline has passed.
        """
        if time.monotonic() > self._ends_at:
            raise ValidationTimeout(f"it cannot be validated within {self._seconds:g} s")

    @contextmanager
    def follow(self, schema: Any, instance: Any) -> Iterator[None]:
        """Note a reference as followed during the block.

        Raises:
            EndlessReference: the validation already follows this reference for the same value.
        """
        here = id(schema), id(instance)
        if here in self._followed:
            raise EndlessReference
        self._followed.add(here)
        try:
            yield
        finally:
            self._followed.discard(here)


_run: ContextVar[ValidationRun] = ContextVar("waooaw_schema_run")


def make_validator(schema: Any) -> Validator:
    """Return a validator of a schema whose time is bounded.

    Raises:
        UnsafeSchema: a part of the schema cannot be validated in bounded time.
        UnsafePattern: a regular expression is invalid, or cannot be searched in linear time.
    """
    kind = validator_for(schema, default=Draft202012Validator)
    _check_parts(schema)
    if isinstance(schema, Mapping):
        # At each reference, jsonschema would look up its own unbounded validator class for $schema.
        schema = {name: value for name, value in schema.items() if name != "$schema"}
    # With an empty registry, a $ref to another document is an error, not a request over the network.
    made: Validator = _bounded(kind)(schema, registry=EMPTY_REGISTRY, format_checker=FormatChecker())
    return made


def violations(validator: Validator, payload: Any, seconds: float = MAX_SECONDS) -> list[ValidationError]:
    """Return the violations of a schema by a payload, the most relevant first; none if the payload is valid.

    The search ends after ``MAX_VIOLATIONS``. Of the alternatives of an ``anyOf``, the nearest one is told.

    Args:
        validator: as ``make_validator`` returns it.
        payload: plain JSON, which may contain Decimals.
        seconds: longest time that it may take, in seconds.

    Raises:
        ValidationTimeout: it takes longer.
        EndlessReference: a reference in the schema leads back to itself.
        UnsafePattern: a regular expression in the schema cannot be searched in linear time.
    """
    token = _run.set(ValidationRun(seconds))
    try:
        found = list(islice(validator.iter_errors(payload), MAX_VIOLATIONS))
    finally:
        _run.reset(token)
    most_relevant = best_match(found)
    # With one error, best_match selects among the alternatives of that error.
    told: list[ValidationError] = [best_match([error]) for error in found]
    return sorted(told, key=lambda error: error is not most_relevant)


def _check_parts(schema: Any) -> None:
    pending, names = [schema], set[str]()
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            names.update(part)
            if part is not schema and isinstance(part.get("$schema"), str):
                raise UnsafeSchema("$schema is allowed at the root of the schema only")
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    if {"unevaluatedProperties", "patternProperties"} <= names:
        # For these two together, jsonschema searches the patterns with Python's engine, which backtracks.
        raise UnsafeSchema(
            "unevaluatedProperties is not supported together with patternProperties: name the properties"
        )
    for pattern in _patterns(schema):
        linear_pattern(pattern)


def _patterns(schema: Any) -> Iterator[str]:
    """Yield the regular expressions of a schema, except those in data that a reference reads as a schema."""
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("pattern"), str):
                yield part["pattern"]
            if isinstance(part.get("patternProperties"), Mapping):
                yield from part["patternProperties"]
            pending += [value for name, value in part.items() if name not in _VALUES]
        elif isinstance(part, list):
            pending += part


@cache
def _bounded(kind: Any) -> Any:
    keywords: dict[str, Keyword] = {
        name: _with_deadline(name, _REPLACED.get(name) or keyword) for name, keyword in kind.VALIDATORS.items()
    }
    return extend(kind, validators=keywords)  # type: ignore[no-untyped-call]


def _with_deadline(name: str, keyword: Keyword) -> Keyword:
    """Return a keyword that first checks the deadline."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        run = _run.get()
        run.go_on()
        if name in _REFERENCES:
            with run.follow(schema, instance):
                yield from keyword(validator, value, instance, schema) or ()
        else:
            yield from keyword(validator, value, instance, schema) or ()

    return check


# --- keywords that replace jsonschema's


def _search(pattern: str, text: str) -> bool:
    return linear_pattern(pattern).search(text, _run.get().go_on)


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _search(pattern, instance):
        yield ValidationError(f"{instance!r:.200} does not match {pattern!r:.200}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, part in patterns.items():
            for name, value in instance.items():
                if _search(pattern, name):
                    yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = [
        name for name in instance if name not in known and not any(_search(pattern, name) for pattern in patterns)
    ]
    if validator.is_type(allowed, "object"):
        for name in others:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and others:
        shown = ", ".join(repr(name)[:80] for name in sorted(others)[:5])
        yield ValidationError(f"Additional properties are not allowed ({shown} unexpected)")


def _unique_items(validator: Any, required: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if required and validator.is_type(instance, "array"):
        seen = set()
        for item in map(_hashable, instance):
            _run.get().go_on()
            if item in seen:
                yield ValidationError(f"{instance!r:.200} has non-unique elements")
                return
            seen.add(item)


def _hashable(value: Any) -> Any:
    """Return a hashable form of a JSON value; two of them are equal if JSON Schema calls the values equal."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, tuple(map(_hashable, value))
    if isinstance(value, dict):
        return dict, frozenset((name, _hashable(item)) for name, item in value.items())
    return value


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, Decimal) and not isinstance(divisor, Decimal):
        yield from Draft202012Validator.VALIDATORS["multipleOf"](validator, divisor, instance, schema) or ()
    elif validator.is_type(instance, "number"):
        with localcontext(prec=_DIGITS):  # a longer quotient raises InvalidOperation
            if Decimal(str(instance)) % Decimal(str(divisor)):
                yield ValidationError(f"{instance} is not a multiple of {divisor}")


def _format(validator: Any, name: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and len(instance) > MAX_FORMAT:
        yield ValidationError(f"a string of {len(instance)} characters is not a {name!r:.80}")
    else:
        yield from Draft202012Validator.VALIDATORS["format"](validator, name, instance, schema) or ()


_REPLACED: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    "multipleOf": _multiple_of,
    "divisibleBy": _multiple_of,
    "format": _format,
}
