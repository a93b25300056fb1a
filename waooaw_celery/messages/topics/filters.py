"""Payload filters: which events of a subscription's topics are delivered. A filter is plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.plain_json import as_json, unchanged
from waooaw_celery.messages.validation import JSON, json_copy

_MISSING = object()
#: Longest index in a path, in digits: no list has more items.
_MAX_INDEX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on a payload, all of which must hold.

    Attributes:
        where: for each path into the payload, such as ``order.total`` or ``items.0.kind``, one of: the value that
            it must have; a list of values, one of which it must have; a mapping of conditions, which are ``eq``,
            ``ne``, ``in``, ``gt``, ``gte``, ``lt``, ``lte``, ``prefix`` and ``exists``. A path that the payload
            does not have meets ``{"exists": false}`` only. Dates, times, UUIDs and bytes are compared as text.

    Example:
        >>> Filter.of({"state": ["paid", "sent"], "order.total": {"gte": 100}}).fits(
        ...     {"state": "paid", "order": {"total": 120}}
        ... )
        True
    """

    where: Mapping[str, JSON]

    @classmethod
    def of(cls, where: object) -> Filter:
        """Return the filter with these conditions.

        Raises:
            InvalidMessage: a path or a condition is invalid; the error names it.
        """
        if not isinstance(where, Mapping) or not where:
            raise InvalidMessage(
                f"a filter must be a mapping such as {{'order.total': {{'gte': 100}}}}, not {where!r:.80}"
            )
        copied = as_json(json_copy(where, "where"), float)
        for path, expected in copied.items():
            if not all(path.split(".")):
                raise InvalidMessage(f"the filter's path {path!r} has an empty part: write it like 'order.total'")
            if isinstance(expected, dict):
                _check_conditions(path, expected)
        return cls(copied)

    def fits(self, payload: JSON) -> bool:
        """Whether a payload meets every condition. It does not raise for any payload."""
        return all(_meets(_value_at(payload, path), expected) for path, expected in self.where.items())


def _check_conditions(path: str, conditions: Mapping[str, JSON]) -> None:
    for name, value in conditions.items():
        if name not in _CONDITIONS:
            known = ", ".join(_CONDITIONS)
            raise InvalidMessage(f"the filter of {path!r} has the unknown condition {name!r} (known: {known})")
        if name == "in" and not isinstance(value, list):
            raise InvalidMessage(f"the filter of {path!r}: 'in' takes a list, not {value!r:.80}")
        if name == "exists" and not isinstance(value, bool):
            raise InvalidMessage(f"the filter of {path!r}: 'exists' takes true or false, not {value!r:.80}")
        if name == "prefix" and not isinstance(value, str):
            raise InvalidMessage(f"the filter of {path!r}: 'prefix' takes a string, not {value!r:.80}")
        if name in ("gt", "gte", "lt", "lte") and not (_is_number(value) or isinstance(value, str)):
            raise InvalidMessage(f"the filter of {path!r}: {name!r} takes a number or a string, not {value!r:.80}")
    if not conditions:
        raise InvalidMessage(f"the filter of {path!r} has no condition")


def _value_at(payload: JSON, path: str) -> Any:
    """Return the value at a path, or ``_MISSING``."""
    for part in path.split("."):
        if isinstance(payload, dict) and part in payload:
            payload = payload[part]
        elif isinstance(payload, list) and _is_index(part) and int(part) < len(payload):
            payload = payload[int(part)]
        else:
            return _MISSING
    return as_json(payload, unchanged)


def _is_index(part: str) -> bool:
    """Whether a part of a path is an index. The length is bounded: Python refuses to parse thousands of digits."""
    return len(part) <= _MAX_INDEX_DIGITS and part.isascii() and part.isdecimal()


def _meets(value: Any, expected: JSON) -> bool:
    if isinstance(expected, dict):
        return all(
            (value is not _MISSING) == operand if name == "exists" else _holds(name, value, operand)
            for name, operand in expected.items()
        )
    return _holds("in" if isinstance(expected, list) else "eq", value, expected)


def _holds(name: str, value: Any, operand: JSON) -> bool:
    try:
        return value is not _MISSING and _CONDITIONS[name](value, operand)
    except ArithmeticError:  # comparing a signaling NaN raises
        return name == "ne"


def _equal(value: JSON, operand: JSON) -> bool:
    """Whether two JSON values are equal; unlike in Python, true is not 1."""
    if isinstance(value, bool) or isinstance(operand, bool):
        return value is operand
    return bool(value == operand)


def _is_number(value: JSON) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _ordering(compare: Callable[[Any, Any], bool]) -> Callable[[JSON, JSON], bool]:
    """Return a condition that compares two numbers or two strings, and is false for all other values."""

    def condition(value: JSON, operand: JSON) -> bool:
        numbers = _is_number(value) and _is_number(operand)
        return (numbers or (isinstance(value, str) and isinstance(operand, str))) and compare(value, operand)

    return condition


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _equal,
    "ne": lambda value, operand: not _equal(value, operand),
    "in": lambda value, operands: any(_equal(value, operand) for operand in operands),
    "gt": _ordering(lambda value, operand: value > operand),
    "gte": _ordering(lambda value, operand: value >= operand),
    "lt": _ordering(lambda value, operand: value < operand),
    "lte": _ordering(lambda value, operand: value <= operand),
    "prefix": lambda value, operand: isinstance(value, str) and value.startswith(operand),
    "exists": lambda _value, operand: operand is True,
}
