"""Samples of metrics, before they are in the form of Prometheus, and what keeps their number small.

Each distinct set of label values is a series that Prometheus stores. So no label is a message id, a payload or the
name of a person, and what has many values is cut: the largest are kept, and the others are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.validation import AGENT_NAME

#: Stands for all values of a label that have no series of their own. No agent can have this name.
OTHER = "(other)"
#: Stands for a sender whose name is no name of an agent: anybody can write anything into a queue.
INVALID = "(invalid)"
#: Most agents that have series of their own: the first ones by name, the same in all metrics.
MAX_AGENTS = 1000
#: Most characters of a label's value.
_MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class Metric:
    """A gauge.

    Attributes:
        name: its name, which ends with its unit.
        text: what its value means, a sentence.
        labels: the names of its labels.
    """

    name: str
    text: str
    labels: tuple[str, ...] = ()


@dataclass(slots=True)
class Samples:
    """What one reading of a source found.

    Attributes:
        values: of each metric, the values by label values.

    Example:
        >>> samples = Samples()
        >>> samples.set(metrics.AGENT_WORKERS, 2, "writer")
    """

    values: dict[Metric, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set the value of a series.

        Args:
            metric: the metric.
            value: the value, in the metric's unit.
            labels: the values of its labels, in the order of ``metric.labels``.

        Raises:
            ValueError: there are more or fewer labels than the metric has.
        """
        self.values.setdefault(metric, {})[_series(metric, labels)] = value

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to the value of a series; one without a value has 0. The arguments are those of ``set``."""
        series, key = self.values.setdefault(metric, {}), _series(metric, labels)
        series[key] = series.get(key, 0) + value

    def highest(self, metric: Metric, value: float, *labels: str) -> None:
        """Raise the value of a series to this value, unless it is higher. The arguments are those of ``set``."""
        series, key = self.values.setdefault(metric, {}), _series(metric, labels)
        series[key] = max(series.get(key, value), value)


def agent_labels(names: Iterable[str], limit: int = MAX_AGENTS) -> Callable[[str], str]:
    """Return a function that returns the label of an agent: its name, or ``OTHER`` if there are too many agents.

    Args:
        names: names of all agents.
        limit: how many of them have series of their own.
    """
    kept = frozenset(sorted(names)[:limit])
    return lambda name: name if name in kept else OTHER


def sender_label(name: str | None) -> str:
    """Return the label of a sender, of which a message may say anything."""
    return name if name is not None and AGENT_NAME.fullmatch(name) else INVALID


def largest(values: Mapping[str, float], limit: int) -> dict[str, float]:
    """Return the largest values by name, and the sum of all others under ``OTHER``.

    Args:
        values: the values by name.
        limit: how many keep their names.

    Example:
        >>> largest({"a": 5, "b": 1, "c": 2}, 1)
        {'a': 5, '(other)': 3}
    """
    ordered = sorted(values, key=lambda name: (-values[name], name))
    found = {name: values[name] for name in ordered[:limit]}
    if ordered[limit:]:
        found[OTHER] = found.get(OTHER, 0) + sum(values[name] for name in ordered[limit:])
    return found


def _series(metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}, not {len(labels)} of them")
    return tuple(escaped(label)[:_MAX_LABEL] for label in labels)
