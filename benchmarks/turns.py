"""Lets subjects take turns, for a benchmark that is not part of the comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def measure(subjects: Mapping[str, Callable[[], int]], rounds: int, seconds: float = 0.5) -> dict[str, float]:
    """Return the median rate of each subject, in messages a second.

    Args:
        subjects: what each does once; it returns how many messages that was.
        rounds: how many samples each has, in an order that is reversed each time.
        seconds: how long a sample takes.
    """
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for work in subjects.values():
        work()
    for number in range(rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                done += subjects[name]()
            rates[name].append(done / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}
