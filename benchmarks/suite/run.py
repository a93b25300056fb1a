"""Runs groups: the subjects of a group take turns, in an order that is reversed in each round."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.suite.row import Context, Group, MakeGroup, Result, Sample


def run(makers: list[MakeGroup], context: Context, rounds: int) -> dict[str, list[Result]]:
    """Measure groups one after the other.

    Args:
        makers: the groups.
        context: what they need.
        rounds: how many samples each subject has.

    Returns:
        The results by the title of the group. A group that cannot be measured here has none.
    """
    found: dict[str, list[Result]] = {}
    for make in makers:
        with ExitStack() as stack:
            group = make(replace(context, stack=stack))
            if group.rows:
                found[group.title] = _measure(group, rounds)
    return found


def _measure(group: Group, rounds: int) -> list[Result]:
    samples: dict[str, list[Sample]] = {name: [] for name in group.subjects}
    for number in range(rounds):
        for name in sorted(group.subjects, reverse=bool(number % 2)):
            print(f"{group.title}, round {number + 1} of {rounds}: {name}", file=sys.stderr)
            samples[name].append(group.subjects[name]())
    return [Result(row, {name: samples[name] for name in (row.ours, row.base, *row.others)}) for row in group.rows]
