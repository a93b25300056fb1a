"""References in a task's payload to results of earlier tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import JSON

#: The only key of a reference.
_KEY = "$result"


def result_of(task: str, *path: str | int) -> dict[str, JSON]:
    """Return a reference to the result of a task, or to a part of it, for use in a payload.

    Args:
        task: name of the task.
        path: keys and indexes that lead to the part.

    Example:
        >>> graph.add_task("read", "ocr", "read", {"page": result_of("fetch", "pages", 0)}, depends_on=["fetch"])
    """
    return {_KEY: [task, *path]}


def references(payload: JSON) -> Iterator[str]:
    """Return the names of the tasks to which a payload refers."""
    if isinstance(payload, Mapping):
        if set(payload) == {_KEY}:
            yield str(_parts(payload)[0])
            return
        for value in payload.values():
            yield from references(value)
    elif isinstance(payload, list | tuple):
        for value in payload:
            yield from references(value)


def resolved(payload: JSON, results: Mapping[str, JSON]) -> JSON:
    """Return a payload with the results in place of the references.

    Raises:
        InvalidMessage: a result has no such part.
    """
    if isinstance(payload, Mapping):
        if set(payload) == {_KEY}:
            return _part(_parts(payload), results)
        return {name: resolved(value, results) for name, value in payload.items()}
    if isinstance(payload, list | tuple):
        return [resolved(value, results) for value in payload]
    return payload


def _parts(reference: Mapping[str, JSON]) -> list[Any]:
    parts = reference[_KEY]
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], str):
        raise InvalidMessage(f"a reference is made with result_of('task', ...), not {reference!r:.80}")
    return parts


def _part(parts: list[Any], results: Mapping[str, JSON]) -> JSON:
    value: Any = results.get(parts[0])
    for part in parts[1:]:
        try:
            value = value[part]
        except (LookupError, TypeError):
            raise InvalidMessage(f"the result of task {parts[0]!r} has no part {parts[1:]!r}") from None
    return value
