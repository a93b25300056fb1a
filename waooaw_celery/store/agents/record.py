"""What the registry knows about an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from waooaw_celery.store.agents.worker_handlers import WorkerHandlers

#: Fields of a worker's report that change the state of its agent, each with that state, the worst first.
_WORKER_STATES = (("stalled", "STALLED"), ("refused", "refusing"), ("not_taking", "not taking"))
#: Field that a ledger's registry adds to a worker's report: the ledger's id. Left out: the worker has no ledger.
LEDGER_FACT = "ledger"
#: Field of a worker's report: the digest of what its code declares about the agent.
PROFILE_FACT = "profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """What the registry knows about an agent.

    Attributes:
        name: name of the agent.
        handlers: names of the handlers that any living worker has, or else those that were declared last; None if
            it has never started and only a setting names it.
        declared_at: when a worker of it first started, or None.
        last_seen: time of its last heartbeat, or None.
        workers: node names of its living workers.
        capabilities: its capability tags.
        read_at: when this record was read, by the clock that gave ``last_seen``.
        reports: the newest report of each living worker, by node name: JSON objects.
        worker_handlers: names of the handlers of each living worker that declares them, by node name.
        alive_until: until when each living worker counts as living, by node name.
        order: what operators have ordered about the agent, a JSON object; None: nothing. Its ``status`` is an
            order to drain it or to give it no messages, its ``weight`` replaces the one that the agent declares.
    """

    name: str
    handlers: tuple[str, ...] | None
    declared_at: datetime | None
    last_seen: datetime | None
    workers: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    read_at: datetime | None = None
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    worker_handlers: WorkerHandlers = field(default_factory=dict)
    alive_until: Mapping[str, datetime] = field(default_factory=dict)
    order: Mapping[str, Any] | None = None

    @property
    def ledgers(self) -> dict[str, str | None]:
        """The id of the ledger that each living worker writes to, by node name; None: it has no ledger."""
        return {worker: self.reports.get(worker, {}).get(LEDGER_FACT) for worker in self.workers}

    def alive(self, within: timedelta) -> bool:
        """Whether its last heartbeat was at most this long ago when the record was read."""
        return self.last_seen is not None and (self.read_at or datetime.now(UTC)) - self.last_seen <= within

    def state(self, within: timedelta) -> str:
        """Return ``away``, ``alive``, or what a worker of it reports: ``STALLED``, ``refusing`` or ``not taking``.

        Args:
            within: longest time since the last heartbeat of a living agent.
        """
        if not self.alive(within):
            return "away"
        for fact, state in _WORKER_STATES:
            if any(report.get(fact) for report in self.reports.values()):
                return state
        return "alive"
