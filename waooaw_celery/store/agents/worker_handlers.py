"""The handlers of each living worker of an agent: stored with its report, and compared with each other.

While a new version of an agent replaces an old one, workers of both consume the agent's queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

#: The reports of an agent's living workers, by node name.
Reports: TypeAlias = Mapping[str, Mapping[str, Any]]
#: The handlers of an agent's living workers, by node name.
WorkerHandlers: TypeAlias = Mapping[str, tuple[str, ...]]

#: The field of a stored report that has the names of the worker's handlers.
_FIELD = "handlers"


def stored_report(report: Mapping[str, Any] | None, handlers: Iterable[str]) -> dict[str, Any]:
    """Return what a store keeps of a living worker: its report, and its handlers.

    Args:
        report: what the worker reports about itself; None: nothing.
        handlers: names of its handlers.
    """
    return {**(report or {}), _FIELD: sorted(handlers)}


def split_reports(stored: Reports) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, ...]]]:
    """Return the reports of workers and their handlers.

    Args:
        stored: what the store keeps, as ``stored_report`` returned it.

    Returns:
        The reports that are not empty, by node name; and the handlers by node name, without the workers of a
        version of this package that does not declare them.
    """
    reports = {
        node: {name: fact for name, fact in each.items() if name != _FIELD} for node, each in stored.items()
    }
    handlers = {node: tuple(each[_FIELD]) for node, each in stored.items() if _FIELD in each}
    return {node: report for node, report in reports.items() if report}, handlers


def known_handlers(
    declared_last: Iterable[str] | None, workers: Iterable[str], handlers: WorkerHandlers
) -> tuple[str, ...] | None:
    """Return the handlers that at least one living worker has, sorted; None if no worker has ever started.

    Args:
        declared_last: the handlers that any worker declared last. They count if there is no living worker, or if
            one does not declare its own.
        workers: node names of the living workers.
        handlers: the handlers of those that declare them.
    """
    if declared_last is None:
        return None
    names = {name for each in handlers.values() for name in each}
    if not handlers or set(workers) - set(handlers):
        names.update(declared_last)
    return tuple(sorted(names))


def partial_handlers(handlers: WorkerHandlers) -> dict[str, tuple[str, ...]]:
    """Return the handlers that some of the workers lack, each with the workers that have it.

    Example:
        >>> partial_handlers({"greeter@blue": ("greet",), "greeter@green": ("greet", "greet_all")})
        {'greet_all': ('greeter@green',)}
    """
    names = sorted({name for each in handlers.values() for name in each})
    owners = {name: tuple(sorted(node for node, each in handlers.items() if name in each)) for name in names}
    return {name: workers for name, workers in owners.items() if len(workers) < len(handlers)}
