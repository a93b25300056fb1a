"""How a number of places is spread over the workers of an agent."""

from __future__ import annotations

from collections.abc import Mapping


def evenly(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Spread a number of places evenly over workers; those that are larger now get the remainder.

    Args:
        total: how many places.
        sizes: how many each worker has now, by name.

    Example:
        >>> evenly(5, {"a": 1, "b": 4})
        {'a': 2, 'b': 3}
    """
    each, remainder = divmod(total, len(sizes))
    larger = sorted(sizes, key=lambda name: (-sizes[name], name))[:remainder]
    return {name: each + (name in larger) for name in sizes}


def changed(change: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Add places to the smallest workers, or take them from the largest ones, each in turn.

    Args:
        change: how many to add, or to take if it is negative; one place is left to each worker.
        sizes: how many each worker has now, by name.

    Example:
        >>> changed(3, {"a": 1, "b": 3})
        {'a': 3, 'b': 4}
        >>> changed(-2, {"a": 1, "b": 3})
        {'a': 1, 'b': 1}
    """
    result = dict(sizes)
    for _ in range(abs(change)):
        if change > 0:
            name = min(result, key=lambda name: (result[name], name))
        else:
            name = max(result, key=lambda name: (result[name], name))
        result[name] += 1 if change > 0 else -1
    return result
