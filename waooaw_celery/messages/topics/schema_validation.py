"""What `jsonschema` checks, with a bound in time and depth: schemas and payloads are the texts of others.

Each keyword is `jsonschema`'s own, and asks first whether the check may go on. A keyword is replaced when its own
time has no bound: regular expressions, unique items, and division.
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

from waooaw_celery.messages.topics.regular_expressions import linear

#: Seconds that the check of one event may take.
MAX_SECONDS = 5.0
#: Longest text that may have a ``format``, in characters: formats are of dates, addresses and the like.
MAX_FORMAT = 10_000
#: Most violations among which the one that is told is chosen.
_MAX_ERRORS = 100
#: Digits to which a Decimal is divided; a quotient with more is no whole number that can be known.
_DIGITS = 1000
#: Keywords that lead elsewhere, perhaps back to where the check is already.
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
#: Keywords under which values stand and no schemas.
_VALUES = ("const", "enum", "default", "examples")

Keyword = Callable[[Any, Any, Any, Any], Any]


class TooLong(Exception):
    """A check takes too long."""


class UnsafeSchema(ValueError):
    """A part of a schema has no bound in time; the sentence says which."""


class Endless(Exception):
    """A reference of a schema leads back to itself, and the check would never end."""


class Run:
    """One check: when it must end, and which references it follows."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._followed: set[tuple[int, int]] = set()

    def go_on(self) -> None:
        """Ask whether the check may go on.

        Raises:
            TooLong: its time is over.
        """
        if time.monotonic() > self._ends_at:
            raise TooLong(f"it cannot be checked within {self._seconds:g} s")

    @contextmanager
    def follow(self, schema: Any, instance: Any) -> Iterator[None]:
        """Follow a reference.

        Raises:
            Endless: the check is at the same reference of the same value already.
        """
        here = id(schema), id(instance)
        if here in self._followed:
            raise Endless
        self._followed.add(here)
        try:
            yield
        finally:
            self._followed.discard(here)


_run: ContextVar[Run] = ContextVar("waooaw_schema_run")


def make_validator(schema: Any) -> Validator:
    """Return what checks a schema's events within bounds.

    Raises:
        UnsafeSchema: a part of it has no bound.
        UnsafePattern: a regular expression cannot be searched in linear time, or is none.
    """
    kind = validator_for(schema, default=Draft202012Validator)
    _check_parts(schema)
    if isinstance(schema, Mapping):
        # jsonschema would look up the class for it at each reference, and find its own, which has no bounds.
        schema = {name: value for name, value in schema.items() if name != "$schema"}
    # An empty registry: a $ref to elsewhere is an error, and never a request over the network.
    made: Validator = _bounded(kind)(schema, registry=EMPTY_REGISTRY, format_checker=FormatChecker())
    return made


def first_violation(validator: Validator, payload: Any, seconds: float = MAX_SECONDS) -> ValidationError | None:
    """Return how a payload breaks a schema, or None when it does not.

    Args:
        validator: made by ``make_validator``.
        payload: plain JSON, which may hold Decimals.
        seconds: that it may take.

    Raises:
        TooLong: it takes longer.
        Endless: the schema refers to itself without end.
        UnsafePattern: a regular expression of the schema cannot be searched in linear time.
    """
    token = _run.set(Run(seconds))
    try:
        found: ValidationError | None = best_match(islice(validator.iter_errors(payload), _MAX_ERRORS))
    finally:
        _run.reset(token)
    return found


def _check_parts(schema: Any) -> None:
    waiting, names = [schema], set[str]()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            names.update(part)
            if part is not schema and isinstance(part.get("$schema"), str):
                raise UnsafeSchema("$schema may stand at the root of the schema only")
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    if {"unevaluatedProperties", "patternProperties"} <= names:
        # jsonschema itself searches the patterns for that, with an engine that may backtrack for ever.
        raise UnsafeSchema("unevaluatedProperties is not supported beside patternProperties: name the properties")
    for pattern in _patterns(schema):
        linear(pattern)


def _patterns(schema: Any) -> Iterator[str]:
    """Give the regular expressions of a schema, but for those behind references into what is no schema."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("pattern"), str):
                yield part["pattern"]
            if isinstance(part.get("patternProperties"), Mapping):
                yield from part["patternProperties"]
            waiting += [value for name, value in part.items() if name not in _VALUES]
        elif isinstance(part, list):
            waiting += part


@cache
def _bounded(kind: Any) -> Any:
    keywords: dict[str, Keyword] = {
        name: _asking(name, _REPLACED.get(name) or keyword) for name, keyword in kind.VALIDATORS.items()
    }
    return extend(kind, validators=keywords)  # type: ignore[no-untyped-call]


def _asking(name: str, keyword: Keyword) -> Keyword:
    """Return a keyword that asks first whether the check may go on."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        run = _run.get()
        run.go_on()
        if name in _REFERENCES:
            with run.follow(schema, instance):
                yield from keyword(validator, value, instance, schema) or ()
        else:
            yield from keyword(validator, value, instance, schema) or ()

    return check


# --- keywords in place of jsonschema's


def _found(pattern: str, text: str) -> bool:
    return linear(pattern).search(text, _run.get().go_on)


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError(f"{instance!r:.200} does not match {pattern!r:.200}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, part in patterns.items():
            for name, value in instance.items():
                if _found(pattern, name):
                    yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = [
        name for name in instance if name not in known and not any(_found(pattern, name) for pattern in patterns)
    ]
    if validator.is_type(wanted, "object"):
        for name in others:
            yield from validator.descend(instance[name], wanted, path=name)
    elif not wanted and others:
        shown = ", ".join(repr(name)[:80] for name in sorted(others)[:5])
        yield ValidationError(f"Additional properties are not allowed ({shown} unexpected)")


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array"):
        seen = set()
        for item in map(_frozen, instance):
            _run.get().go_on()
            if item in seen:
                yield ValidationError(f"{instance!r:.200} has non-unique elements")
                return
            seen.add(item)


def _frozen(value: Any) -> Any:
    """Return a JSON value as one that has a hash, and is equal to the same values as JSON means it."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, tuple(map(_frozen, value))
    if isinstance(value, dict):
        return dict, frozenset((name, _frozen(item)) for name, item in value.items())
    return value


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, Decimal) and not isinstance(divisor, Decimal):
        yield from Draft202012Validator.VALIDATORS["multipleOf"](validator, divisor, instance, schema) or ()
    elif validator.is_type(instance, "number"):
        with localcontext(prec=_DIGITS):  # beyond it the division raises InvalidOperation
            if Decimal(str(instance)) % Decimal(str(divisor)):
                yield ValidationError(f"{instance} is not a multiple of {divisor}")


def _format(validator: Any, name: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and len(instance) > MAX_FORMAT:
        yield ValidationError(f"a text of {len(instance)} characters is no {name!r:.80}")
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
