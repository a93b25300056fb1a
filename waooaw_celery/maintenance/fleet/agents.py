"""The agents, their workers, their clocks and their circuit breakers, as the store has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.discovery.agent_info import info_of
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.samples import MAX_AGENTS, OTHER, Samples, agent_labels
from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.resilience.breaker_rules import BreakerState

#: Workers whose clocks have series.
MAX_CLOCKS = 50


class AgentReader:
    """Reads the agents of an application: those of its ledger, or of its Redis and key prefix.

    Args:
        app: the application.
        agents: where the names of the agents are noted for other sources.
    """

    def __init__(self, app: AgentApp, agents: KnownAgents) -> None:
        self._app, self._agents = app, agents
        self._registry: AgentRegistry | None = None

    def read(self) -> Samples:
        """Return what is known about the agents.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if self._registry is None:
            self._registry = self._app.open_registry()
        records = self._registry.all()
        self._agents.note(record.name for record in records)
        samples = Samples()
        label = agent_labels(record.name for record in records)
        for record in records:
            name = label(record.name)
            samples.add(metrics.AGENT_WORKERS, len(record.workers), name)
            if name != OTHER:  # the health of several agents has no sum
                samples.set(metrics.AGENT_HEALTH, 1, name, info_of(record, {}).health.value)
        for worker, ahead in _clocks(records):
            samples.set(metrics.CLOCK_AHEAD, ahead, worker)
        for breaker in self._app.breakers.states()[:MAX_AGENTS]:
            samples.set(metrics.BREAKER_OPEN, breaker.state != BreakerState.CLOSED.value, breaker.agent)
        return samples

    def close(self) -> None:
        """Close the connections of this reader."""
        if self._registry is not None:
            self._registry.close()


def _clocks(records: Iterable[AgentRecord]) -> list[tuple[str, float]]:
    """Return the workers whose clocks differ most, each with the seconds that its clock is ahead."""
    found: dict[str, float] = {}
    for record in records:
        for worker in record.workers:
            ahead = _ahead(record.reports.get(worker, {}))
            if ahead is not None:
                found[worker] = ahead
    return sorted(found.items(), key=lambda each: (-abs(each[1]), each[0]))[:MAX_CLOCKS]


def _ahead(report: Mapping[str, Any]) -> float | None:
    clock = report.get("clock")
    ahead = clock.get("ahead") if isinstance(clock, Mapping) else None
    return float(ahead) if isinstance(ahead, int | float) else None
