"""Whether memory, keys and connections grow: compares the second quarter of a soak with the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Tolerance:
    """By how much the median of the last quarter may exceed that of the second.

    Attributes:
        share: as a share of the second quarter's median.
        more: in addition to that share, in the unit of the measure.
    """

    share: float
    more: float


#: The measures, and how much each may grow. Restarted workers begin with less memory.
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
        samples: for each measure, the seconds since the start with the value.
    """

    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def sample(self, at: float, measures: Mapping[str, Callable[[], float]]) -> None:
        """Take all measures once.

        Args:
            at: seconds since the start.
            measures: the functions that measure, by name.
        """
        for name, measure in measures.items():
            self.samples.setdefault(name, []).append((at, measure()))

    def quarters(self, name: str, seconds: float) -> tuple[float, float]:
        """Return the medians of the second and of the last quarter.

        Args:
            name: name of the measure.
            seconds: length of the soak.
        """
        values = self.samples.get(name, [])
        second = [value for at, value in values if seconds / 4 <= at < seconds / 2]
        last = [value for at, value in values if at >= seconds * 3 / 4]
        return (median(second) if second else 0.0), (median(last) if last else 0.0)

    def violations(self, seconds: float) -> list[str]:
        """Return one sentence for each measure that grew too much."""
        found = []
        for name, tolerance in TOLERANCES.items():
            second, last = self.quarters(name, seconds)
            if last > second * (1 + tolerance.share) + tolerance.more:
                found.append(f"{name} grew from {second:g} to {last:g}")
        return found
