"""One picture of all agents, and which of them needs attention first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from waooaw_celery.discovery.agent_info import AgentInfo, AgentStatus, info_of
from waooaw_celery.discovery.health.outcomes import MAX_KEPT
from waooaw_celery.discovery.health.state import Health
from waooaw_celery.messages.queues import QueueDepth
from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.resilience.breaker_rules import BreakerState
from waooaw_celery.store.resilience.breaker_store import Breaker
from waooaw_celery.worker.scaling.pool_scaling import pool_size


class Attention(StrEnum):
    """Why an agent needs attention, the most urgent reason first."""

    NO_WORKER = "no worker"  #: messages wait, and no worker is alive
    UNHEALTHY = "unhealthy"
    BREAKER = "breaker open"  #: requests to it are refused
    DEGRADED = "degraded"
    FAILING = "failing"  #: messages failed in the last minute
    FULL = "full"  #: messages wait, and all places of its workers are in use
    HELD = "held"  #: an operator drains it, or keeps it in maintenance
    NONE = ""


#: The reasons in the order of their urgency.
URGENCY = tuple(Attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLine:
    """What is known about an agent. None: its source has not answered, or cannot say.

    Attributes:
        name: its name.
        attention: why it needs attention.
        status: whether it takes messages.
        health: whether it can do its work.
        reasons: why it is not ONLINE and HEALTHY.
        workers: number of its living workers.
        running: messages that they handle now.
        places: messages that they can handle at once.
        waiting: messages that wait in its queue.
        by_priority: the same by priority, by its name.
        oldest_seconds: the age of the oldest message that waits, or the longest wait of the last minute.
        handled: messages that it handled in the last minute.
        failed: how many of them failed.
        is_lower_bound: whether both are too low, because a worker counts so many messages at most.
        breaker: the state of its circuit breaker.
    """

    name: str
    attention: Attention
    status: AgentStatus | None
    health: Health | None
    reasons: tuple[str, ...]
    workers: int | None
    running: int | None
    places: int | None
    waiting: int | None
    by_priority: dict[str, int] | None
    oldest_seconds: float | None
    handled: int | None
    failed: int | None
    is_lower_bound: bool
    breaker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """How current what comes from one source is.

    Attributes:
        name: ``agents``, ``queues`` or ``breakers``.
        error: why it does not answer now; None: it has answered.
        seconds: the age of what is shown of it, in seconds; None: nothing is.
    """

    name: str
    error: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of all agents.

    Attributes:
        at: when it was made, aware UTC.
        agents: the agents, those that need attention first.
        sources: where it comes from.
    """

    at: datetime
    agents: tuple[AgentLine, ...]
    sources: tuple[SourceState, ...]


def agent_lines(
    names: Iterable[str],
    records: Mapping[str, AgentRecord] | None,
    depths: Mapping[str, QueueDepth] | None,
    oldest: Mapping[str, float],
    breakers: Mapping[str, Breaker] | None,
) -> tuple[AgentLine, ...]:
    """Return a line for each agent, those that need attention first.

    Args:
        names: the agents.
        records: what the store knows, by name; None: it has not answered.
        depths: what waits, by name; None: the broker has not answered.
        oldest: the age of the oldest waiting message, in seconds, by name.
        breakers: the circuit breakers that are open or count failures, by name; None: they are not known.
    """
    lines = [_line(name, records, depths, oldest.get(name), breakers) for name in names]
    return tuple(sorted(lines, key=_order))


def _line(
    name: str,
    records: Mapping[str, AgentRecord] | None,
    depths: Mapping[str, QueueDepth] | None,
    oldest: float | None,
    breakers: Mapping[str, Breaker] | None,
) -> AgentLine:
    record = None if records is None else records.get(name)
    info = None if record is None else info_of(record, {})
    depth = None if depths is None else depths.get(name)
    facts = [each.facts for each in info.workers if each.facts is not None] if info is not None else []
    state = None if breakers is None else str(breakers[name].state if name in breakers else BreakerState.CLOSED)
    known: dict[str, Any] = {
        "status": info and info.status,
        "health": info and info.health,
        "workers": None if info is None else len(info.workers),
        "running": None if info is None else info.running,
        "places": None if record is None else sum(pool_size(each) or 0 for each in record.reports.values()),
        "waiting": None if depth is None else depth.total,
        "handled": None if info is None else sum(each.handled for each in facts),
        "failed": None if info is None else sum(each.failed for each in facts),
        "breaker": state,
    }
    if oldest is None:
        oldest = max((each.waited for each in facts if each.waited is not None), default=None)
    by_priority = None if depth is None else depth.by_priority
    return AgentLine(
        name=name,
        attention=_attention(info, known),
        reasons=() if info is None else info.reasons,
        by_priority=None if by_priority is None else {each.name: count for each, count in by_priority.items()},
        oldest_seconds=oldest,
        is_lower_bound=any(each.handled >= MAX_KEPT for each in facts),
        **known,
    )


def _attention(info: AgentInfo | None, known: Mapping[str, Any]) -> Attention:
    waiting, places = known["waiting"] or 0, known["places"] or 0
    if info is not None and waiting and not info.workers:
        return Attention.NO_WORKER
    if info is not None and info.workers and info.health is Health.UNHEALTHY:
        return Attention.UNHEALTHY
    if known["breaker"] not in (None, BreakerState.CLOSED):
        return Attention.BREAKER
    if info is not None and info.workers and info.health is Health.DEGRADED:
        return Attention.DEGRADED
    if known["failed"]:
        return Attention.FAILING
    if waiting and places and (known["running"] or 0) >= places:
        return Attention.FULL
    if info is not None and info.status in (AgentStatus.DRAINING, AgentStatus.MAINTENANCE):
        return Attention.HELD
    return Attention.NONE


def _order(line: AgentLine) -> tuple[Any, ...]:
    return URGENCY.index(line.attention), -(line.waiting or 0), -(line.running or 0), line.name
