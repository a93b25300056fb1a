"""What is known about an agent: its workers, its capabilities, its status and its health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from waooaw_celery.discovery.declaration import Capability, Profile
from waooaw_celery.discovery.health.state import (
    DISCOVERY_FACT,
    Health,
    WorkerFacts,
    agent_health,
    is_silent,
    worker_health,
)
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.agents.record import PROFILE_FACT, AgentRecord

logger = get_logger(__name__)


class AgentStatus(StrEnum):
    """Whether an agent takes messages.

    ONLINE: it does. BUSY: it handles as many as it wants to at once. DRAINING: it ends what it has, takes nothing
    new, and stops. MAINTENANCE: it gets no message by capability. OFFLINE: none of its workers is alive.
    """

    ONLINE = "online"
    BUSY = "busy"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(JsonForm):
    """What an operator has ordered about an agent.

    Attributes:
        status: DRAINING, which holds for the workers that were started before, or MAINTENANCE.
        by: who ordered it.
        since: when, aware UTC.
        reason: why, or None.
    """

    status: AgentStatus
    by: str
    since: datetime
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """The order in words."""
        because = f": {self.reason}" if self.reason else ""
        return f"{self.by} set it to {self.status} at {self.since:%Y-%m-%d %H:%M:%S} UTC{because}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo(JsonForm):
    """What is known about a living worker of an agent.

    Attributes:
        node: its node name.
        health: its health, as others see it.
        reasons: why it is not HEALTHY.
        last_heartbeat: time of its last heartbeat, by the store's clock; None: it does not say how long it lives.
        handlers: names of its handlers for the agent; None: it does not declare them.
        profile: what its code declares; None: nothing.
        facts: what it reports; None: nothing.
        draining: whether it takes no new messages.
    """

    node: str
    health: Health
    reasons: tuple[str, ...]
    last_heartbeat: datetime | None
    handlers: tuple[str, ...] | None
    profile: Profile | None
    facts: WorkerFacts | None
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInfo(JsonForm):
    """What is known about an agent.

    Attributes:
        name: its name.
        status: whether it takes messages.
        health: whether it can do its work: HEALTHY, or that of most of its workers.
        reasons: why it is not ONLINE and HEALTHY.
        capabilities: what its living workers can do. A worker of an older version of its code may be able to do
            less than another.
        tags: its tags.
        metadata: its metadata.
        weight: its share of the messages to a capability, relative to other agents': what an operator has set, or
            else what it declares.
        max_in_flight: number of running messages from which it counts as BUSY; None: it never does.
        handlers: names of the handlers that any living worker has; None: none has ever started.
        workers: its living workers.
        running: how many messages they handle.
        last_seen: time of its last heartbeat, or None.
        order: what an operator has ordered, or None.
    """

    name: str
    status: AgentStatus
    health: Health
    reasons: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    weight: float
    max_in_flight: int | None
    handlers: tuple[str, ...] | None
    workers: tuple[WorkerInfo, ...]
    running: int
    last_seen: datetime | None
    order: Order | None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of its code that run, as it declares them."""
        found = {each.profile.version for each in self.workers if each.profile and each.profile.version}
        return tuple(sorted(found))

    @property
    def routable(self) -> bool:
        """Whether it gets messages by capability."""
        if self.status not in (AgentStatus.ONLINE, AgentStatus.BUSY) or self.health is Health.UNHEALTHY:
            return False
        # A worker that reports no health runs an older version of this package. One that reports UNKNOWN has not
        # run its checks yet.
        return self.health is not Health.UNKNOWN or all(each.facts is None for each in self.workers)

    def contract(self, method: str) -> list[dict[str, Any]]:
        """Return the contracts of a method that its living workers declare, without repetition."""
        found: list[dict[str, Any]] = []
        for worker in self.workers:
            contract = ((worker.profile and worker.profile.contracts) or {}).get(method)
            if contract is not None and contract not in found:
                found.append(contract)
        return found


def info_of(record: AgentRecord, profiles: Mapping[str, Profile]) -> AgentInfo:
    """Return what is known about an agent.

    Args:
        record: what the store has.
        profiles: what workers declare, by digest.
    """
    ordered = record.order or {}
    order = None if ordered.get("status") is None else _read(Order, ordered["status"], record.name)
    workers = tuple(_worker(record, node, profiles, order) for node in record.workers)
    health, reasons = agent_health({each.node: (each.health, each.reasons) for each in workers})
    newest = _newest_profile(workers)
    running = sum(each.facts.running for each in workers if each.facts is not None)
    status = _status(workers, order, running, newest.max_in_flight if newest else None)
    if order is not None and status is order.status:
        reasons = (order.sentence, *reasons)
    capabilities = {each for worker in workers if worker.profile for each in worker.profile.capabilities}
    if not any(worker.profile for worker in workers):  # an older version of the package declares names only
        capabilities = {Capability(name=name) for name in record.capabilities}
    return AgentInfo(
        name=record.name,
        status=status,
        health=health,
        reasons=reasons,
        capabilities=tuple(
            sorted(capabilities, key=lambda each: (each.name, each.version or "", each.method or ""))
        ),
        tags=newest.tags if newest else (),
        metadata=(newest.metadata if newest else None) or {},
        weight=_weight(ordered.get("weight"), newest),
        max_in_flight=newest.max_in_flight if newest else None,
        handlers=record.handlers,
        workers=workers,
        running=running,
        last_seen=record.last_seen,
        order=order,
    )


def is_unchanged(record: AgentRecord, before: AgentRecord | None, info: AgentInfo) -> bool:
    """Return whether what is known about an agent is the same as before.

    Args:
        record: what the store has.
        before: what it had before.
        info: what was known then.
    """
    if before is None or record.reports != before.reports or record.order != before.order:
        return False
    if record.alive_until != before.alive_until or record.worker_handlers != before.worker_handlers:
        return False
    if record.workers != before.workers or record.handlers != before.handlers:
        return False
    now = record.read_at
    # Nobody is so silent that its health changes.
    return now is not None and all(
        worker.profile is not None
        and worker.facts is not None
        and worker.last_heartbeat is not None
        and not is_silent(worker.facts, (now - worker.last_heartbeat).total_seconds())
        for worker in info.workers
    )


def _worker(record: AgentRecord, node: str, profiles: Mapping[str, Profile], order: Order | None) -> WorkerInfo:
    report = record.reports.get(node, {})
    facts = None if report.get(DISCOVERY_FACT) is None else _read(WorkerFacts, report[DISCOVERY_FACT], node)
    heard, until = None, record.alive_until.get(node)
    if facts is not None and until is not None:
        heard = until - timedelta(seconds=facts.ttl)
    silent = 0.0 if heard is None or record.read_at is None else (record.read_at - heard).total_seconds()
    health, reasons = worker_health(facts, report, silent)
    if facts is None and report.get(PROFILE_FACT):
        # Its heartbeat came without the facts that decide: they must not count as good ones.
        health, reasons = Health.UNHEALTHY, ("its heartbeat does not report its health",)
    drained = (
        order is not None
        and order.status is AgentStatus.DRAINING
        and facts is not None
        and facts.started_at <= order.since
    )
    return WorkerInfo(
        node=node,
        health=health,
        reasons=reasons,
        last_heartbeat=heard,
        handlers=record.worker_handlers.get(node),
        profile=profiles.get(report.get(PROFILE_FACT, "")),
        facts=facts,
        draining=drained or (facts is not None and facts.draining),
    )


def _status(
    workers: tuple[WorkerInfo, ...], order: Order | None, running: int, max_in_flight: int | None
) -> AgentStatus:
    if not workers:
        return AgentStatus.OFFLINE
    if order is not None and order.status is AgentStatus.MAINTENANCE:
        return AgentStatus.MAINTENANCE
    if all(each.draining for each in workers):
        return AgentStatus.DRAINING
    if max_in_flight is not None and running >= max_in_flight:
        return AgentStatus.BUSY
    return AgentStatus.ONLINE


def _weight(ordered: Any, newest: Profile | None) -> float:
    """Return the weight that an operator has ordered, or else the one that the agent declares."""
    if isinstance(ordered, int | float):
        return float(ordered)
    return newest.weight if newest else 1.0


def _newest_profile(workers: tuple[WorkerInfo, ...]) -> Profile | None:
    """Return what the worker declares that was started last: tags and weight of a new version count at once."""
    known = [each for each in workers if each.profile is not None and each.facts is not None]
    if not known:
        return None
    newest = max(known, key=lambda each: each.facts.started_at if each.facts else 0)
    return newest.profile


def _read(kind: Any, form: Any, what: str) -> Any:
    """Return an object of its JSON form, or None if a newer version of this package has written it."""
    known = {name: value for name, value in form.items() if name in kind.__dataclass_fields__}
    try:
        return kind.from_dict(known)
    except InvalidMessage as error:
        logger.warning("cannot read what %s reports: %s", what, error, extra={"action": "report_not_readable"})
        return None
