"""Where the circuit breakers of agents are stored, and how they are shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord, BreakerState


class Stored(NamedTuple):
    """What the store answers to an operation on the breaker of an agent.

    Attributes:
        now: the store's time, in seconds since 1970.
        record: the record after it; None: the breaker is closed, and nothing has failed.
        done: whether the operation had an effect.
    """

    now: float
    record: BreakerRecord | None
    done: bool


class BreakerStore(ABC):
    """The stored circuit breakers of all agents.

    Args:
        limits: when a breaker opens, and for how long.
    """

    def __init__(self, limits: BreakerLimits) -> None:
        self.limits = limits

    @abstractmethod
    def read(self) -> tuple[float, Mapping[str, BreakerRecord]]:
        """Return the store's time, in seconds since 1970, and all records by the names of the agents.

        Raises:
            StoreUnavailable: the store does not answer.
        """

    @abstractmethod
    def change(self, operation: str, agent: str, **given: Any) -> Stored:
        """Change the record of an agent in one step.

        Args:
            operation: ``report``, ``probe``, ``probed``, ``open`` or ``close``: see ``lua/breaker.lua``.
            agent: the agent.
            given: what the operation needs.

        Raises:
            StoreUnavailable: the store does not answer.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker(JsonForm):
    """The circuit breaker of an agent, as it is stored.

    Attributes:
        agent: the requested agent.
        state: ``closed``, ``open`` or ``half open``.
        failures: failed requests within the window, while it is closed.
        requests: failed and answered requests within the window, as far as they were reported.
        since: since when it is open, aware UTC; None: it is closed.
        retry_at: when a probe may be sent, aware UTC, or None.
        probing: whether a probe is on its way.
        by: who opened it by hand, or None.
        reason: why, or None.
        until: when it closes by itself after it was opened by hand, aware UTC; None: not by itself.
    """

    agent: str
    state: str
    failures: int
    requests: int
    since: datetime | None
    retry_at: datetime | None
    probing: bool
    by: str | None
    reason: str | None
    until: datetime | None


def described(agent: str, record: BreakerRecord, now: float) -> Breaker:
    """Return a stored breaker as it is shown, at the store's time."""
    state = record.state(now)
    is_open = state is not BreakerState.CLOSED
    return Breaker(
        agent=agent,
        state=state.value,
        failures=record.failures(),
        requests=record.failures() + record.successes(),
        since=_time(record.opened_at) if is_open else None,
        retry_at=_time(record.retry_at) if is_open else None,
        probing=is_open and record.has_probe(now),
        by=record.by if is_open else None,
        reason=record.reason if is_open else None,
        until=_time(record.until) if is_open else None,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
