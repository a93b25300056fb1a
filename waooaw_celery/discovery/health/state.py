"""The states of health, and what a worker reports about the health of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from waooaw_celery.messages.json_form import JsonForm

#: Field of a worker's report with what it knows about the agent: see ``WorkerFacts``.
DISCOVERY_FACT = "discovery"
#: Facts of a worker's report that make its agents unhealthy, each with what it means.
_WORKER_FACTS = (
    ("stalled", "the worker makes no progress"),
    ("not_taking", "the worker takes no messages"),
)


class Health(StrEnum):
    """Whether an agent, or one of its workers, can do its work."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChange(JsonForm):
    """A change of health.

    Attributes:
        at: when, aware UTC.
        health: the new state.
        reasons: why.
    """

    at: datetime
    health: Health
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts(JsonForm):
    """What a worker reports about an agent with each heartbeat.

    Attributes:
        started_at: when the worker started, aware UTC.
        ttl: seconds for which it counts as living after a heartbeat.
        heartbeat: seconds between two heartbeats.
        health: the health of the agent in this worker.
        reasons: why it is not HEALTHY.
        running: how many of the agent's messages it handles now.
        draining: whether it takes no new messages, because an operator drains the agent.
        handled: how many messages it handled in the last minute.
        failed: how many of them failed.
        seconds: the median and the 95th percentile of their durations, in seconds; None: none was handled.
        waited: the longest time that a message waited in the queue, of those begun in the last minute, in seconds.
        history: the newest changes of its health, the newest last.
    """

    started_at: datetime
    ttl: float
    heartbeat: float
    health: Health = Health.UNKNOWN
    reasons: tuple[str, ...] = ()
    running: int = 0
    draining: bool = False
    handled: int = 0
    failed: int = 0
    seconds: tuple[float, float] | None = None
    waited: float | None = None
    history: tuple[HealthChange, ...] = ()


#: Heartbeats that a worker may miss before it counts as DEGRADED, and the seconds that a heartbeat may be late.
_MISSED, _LATE = 2, 1.0


def is_silent(facts: WorkerFacts, silent: float) -> bool:
    """Return whether a worker has missed heartbeats.

    Args:
        facts: what it reported last.
        silent: seconds since its last heartbeat.
    """
    return silent > facts.heartbeat * _MISSED + _LATE


def worker_health(
    facts: WorkerFacts | None, report: Mapping[str, Any], silent: float
) -> tuple[Health, tuple[str, ...]]:
    """Return the health of a living worker, as others see it, and the reasons.

    Args:
        facts: what it reports about the agent; None: nothing, because it runs an older version of this package.
        report: what it reports about itself.
        silent: seconds since its last heartbeat.
    """
    found = [f"{meaning}: {report[fact]}" for fact, meaning in _WORKER_FACTS if report.get(fact)]
    if found:
        return Health.UNHEALTHY, tuple(found)
    if facts is None:
        return Health.UNKNOWN, ("it does not report its health",)
    if facts.health is Health.HEALTHY and is_silent(facts, silent):
        return Health.DEGRADED, (f"no heartbeat for {silent:.0f} s",)
    return facts.health, facts.reasons


def agent_health(workers: Mapping[str, tuple[Health, tuple[str, ...]]]) -> tuple[Health, tuple[str, ...]]:
    """Return the health of an agent, and the reasons, from those of its living workers.

    It is UNHEALTHY only if all of its workers are: they share one queue, and the others go on.

    Args:
        workers: health and reasons of each living worker, by node name.
    """
    states = {health for health, _ in workers.values()}
    reasons = tuple(f"{node}: {reason}" for node, (_, why) in sorted(workers.items()) for reason in why)
    if not states:
        return Health.UNKNOWN, ("no worker is alive",)
    if len(states) == 1:
        return next(iter(states)), reasons
    return Health.DEGRADED, reasons
