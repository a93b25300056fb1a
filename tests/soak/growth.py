"""Whether what a system holds stays the same: memory, keys and connections, one quarter against a later one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Tolerance:
    """By how much the last quarter may exceed the second.

    Attributes:
        share: of the second quarter's median.
        more: beside that.
    """

    share: float
    more: float


#: What is measured, and how much more of it there may be in the end. Restarted workers begin with less memory.
TOLERANCES: Mapping[str, Tolerance] = {
    "memory of the workers (MB)": Tolerance(0.10, 20),
    "memory of the driver (MB)": Tolerance(0.10, 20),
    "keys in Valkey": Tolerance(0.25, 100),
    "connections to Valkey": Tolerance(0.20, 10),
    "connections to PostgreSQL": Tolerance(0.20, 5),
    "messages that wait or are held": Tolerance(1.0, 150),
}


@dataclass
class Series:
    """Measurements over time.

    Attributes:
        samples: by what was measured: seconds since the beginning, and the value.
    """

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def sample(self, at: float, measures: Mapping[str, Callable[[], float]]) -> None:
        """Measure everything once; what does not answer at this moment is left out.

        Args:
            at: seconds since the beginning.
            measures: by name.
        """
        for name, measure in measures.items():
            self.samples.setdefault(name, []).append((at, measure()))

    def quarters(self, name: str, seconds: float) -> tuple[float, float]:
        """Return the medians of the second and of the last quarter.

        Args:
            name: what was measured.
            seconds: how long it lasted.
        """
        values = self.samples.get(name, [])
        second = [value for at, value in values if seconds / 4 <= at < seconds / 2]
        last = [value for at, value in values if at >= seconds * 3 / 4]
        return (median(second) if second else 0.0), (median(last) if last else 0.0)

    def violations(self, seconds: float) -> list[str]:
        """Return what has grown."""
        found = []
        for name, tolerance in TOLERANCES.items():
            second, last = self.quarters(name, seconds)
            if last > second * (1 + tolerance.share) + tolerance.more:
                found.append(f"{name} grew from {second:g} to {last:g}")
        return found
