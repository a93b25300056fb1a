"""Filters on payloads that can be written down: which events a subscriber wants, of those with its topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.plain_json import as_json, unchanged
from waooaw_celery.messages.validation import JSON, json_copy

_MISSING = object()
#: No list has more items than a number of so many digits says.
_MAX_INDEX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that a payload must all meet.

    Attributes:
        where: by path into the payload, such as ``order.total`` or ``items.0.kind``: a value that must be there; a
            list of values of which one must be; or conditions by name: ``eq``, ``ne``, ``in``, ``gt``, ``gte``,
            ``lt``, ``lte``, ``prefix``, ``exists``. What is not there meets only ``{"exists": false}``. A datetime
            and the like is compared as its text.

    Example:
        >>> Filter.of({"state": ["paid", "sent"], "order.total": {"gte": 100}}).fits(
        ...     {"state": "paid", "order": {"total": 120}}
        ... )
        True
    """

    where: Mapping[str, JSON]

    @classmethod
    def of(cls, where: object) -> Filter:
        """Return a filter.

        Raises:
            InvalidMessage: there is no path, or a condition is unknown; the sentence names it.
        """
        if not isinstance(where, Mapping) or not where:
            raise InvalidMessage(
                f"a filter is a mapping such as {{'order.total': {{'gte': 100}}}}, not {where!r:.80}"
            )
        copied = as_json(json_copy(where, "where"), float)
        for path, wanted in copied.items():
            if not all(path.split(".")):
                raise InvalidMessage(f"the filter's path {path!r} has an empty part: write it like 'order.total'")
            if isinstance(wanted, dict):
                _check_conditions(path, wanted)
        return cls(copied)

    def fits(self, payload: JSON) -> bool:
        """Whether a payload meets every condition; it never raises, whatever the payload is."""
        return all(_meets(_at(payload, path), wanted) for path, wanted in self.where.items())


def _check_conditions(path: str, wanted: Mapping[str, JSON]) -> None:
    for name, value in wanted.items():
        if name not in _CONDITIONS:
            known = ", ".join(_CONDITIONS)
            raise InvalidMessage(f"the filter of {path!r} has the condition {name!r}: known are {known}")
        if name == "in" and not isinstance(value, list):
            raise InvalidMessage(f"the filter of {path!r}: 'in' takes a list, not {value!r:.80}")
        if name == "exists" and not isinstance(value, bool):
            raise InvalidMessage(f"the filter of {path!r}: 'exists' takes true or false, not {value!r:.80}")
        if name == "prefix" and not isinstance(value, str):
            raise InvalidMessage(f"the filter of {path!r}: 'prefix' takes a text, not {value!r:.80}")
        if name in ("gt", "gte", "lt", "lte") and not (_number(value) or isinstance(value, str)):
            raise InvalidMessage(f"the filter of {path!r}: {name!r} takes a number or a text, not {value!r:.80}")
    if not wanted:
        raise InvalidMessage(f"the filter of {path!r} has no condition")


def _at(payload: JSON, path: str) -> Any:
    """Return what is at a path, or ``_MISSING``."""
    for part in path.split("."):
        if isinstance(payload, dict) and part in payload:
            payload = payload[part]
        elif isinstance(payload, list) and _is_index(part) and int(part) < len(payload):
            payload = payload[int(part)]
        else:
            return _MISSING
    return as_json(payload, unchanged)


def _is_index(part: str) -> bool:
    """Whether a part of a path is the number of an item; Python refuses to read one of thousands of digits."""
    return len(part) <= _MAX_INDEX_DIGITS and part.isascii() and part.isdecimal()


def _meets(found: Any, wanted: JSON) -> bool:
    if isinstance(wanted, dict):
        return all(
            (found is not _MISSING) == value if name == "exists" else _holds(name, found, value)
            for name, value in wanted.items()
        )
    return _holds("in" if isinstance(wanted, list) else "eq", found, wanted)


def _holds(name: str, found: Any, value: JSON) -> bool:
    try:
        return found is not _MISSING and _CONDITIONS[name](found, value)
    except ArithmeticError:  # a Decimal that is no number is neither equal to another nor greater
        return name == "ne"


def _same(found: JSON, value: JSON) -> bool:
    """Whether two JSON values are equal; in Python, true would be 1 as well."""
    if isinstance(found, bool) or isinstance(value, bool):
        return found is value
    return bool(found == value)


def _number(value: JSON) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[JSON, JSON], bool]:
    """Return a comparison of two numbers or two texts, which holds of nothing else."""

    def holds(found: JSON, value: JSON) -> bool:
        comparable = (_number(found) and _number(value)) or (isinstance(found, str) and isinstance(value, str))
        return comparable and compare(found, value)

    return holds


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _same,
    "ne": lambda found, value: not _same(found, value),
    "in": lambda found, values: any(_same(found, value) for value in values),
    "gt": _ordered(lambda found, value: found > value),
    "gte": _ordered(lambda found, value: found >= value),
    "lt": _ordered(lambda found, value: found < value),
    "lte": _ordered(lambda found, value: found <= value),
    "prefix": lambda found, value: isinstance(found, str) and found.startswith(value),
    "exists": lambda _found, value: value is True,
}
