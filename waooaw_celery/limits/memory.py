"""Counts and quotas in the memory of one process: for tests, and where one process is all there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from waooaw_celery.limits.algorithm import RateCounter, Reading
from waooaw_celery.limits.rules import EACH, STEPS, Demand, Quota, Rule, rule_in, seconds_of
from waooaw_celery.limits.storage import LimitStorage, Refusal, RuleStatus

#: Counters from which on it is looked for those that have nothing left to count.
_CROWD = 1024


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


class MemoryStorage(LimitStorage):
    """Counts for the threads of one process.

    Args:
        clock: tells the time in microseconds; None: the computer's monotonic clock.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or _microseconds
        self._lock = threading.Lock()
        self._meters: dict[tuple[str, str], RateCounter] = {}
        self._quotas: dict[str, Quota] = {}
        self._crowd = _CROWD

    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        with self._lock:
            quota = self._quotas.get(agent, default)
            now = self._clock()
            worst: Refusal | None = None
            read: list[tuple[RateCounter, Reading, Demand]] = []
            for demand in demands:
                rules = quota.of_scope(demand.scope)
                if not rules:
                    continue
                meter = self._meters.get((agent, demand.scope)) or RateCounter()
                reading = meter.reading(rules, now)
                read.append((meter, reading, demand))
                worst = _worse(worst, demand.scope, rules, reading.waits(demand, reserve))
            if charge and worst is None:
                for meter, reading, demand in read:
                    meter.count(reading, demand.n)
                    self._keep((agent, demand.scope), meter)
            return worst

    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        with self._lock:
            quota = self._quotas.get(agent, default)
            now = self._clock()
            found = []
            for scope in scopes:
                rules = quota.of_scope(scope)
                reading = (self._meters.get((agent, scope)) or RateCounter()).reading(rules, now)
                waits = reading.waits(Demand(scope, 1, 1), reserve)
                for (rule, window), wait in zip(reading.windows, waits, strict=True):
                    found.append(rule_status(agent, scope, _in(scope, rule), window.used, window.level, wait))
            return found

    def counted(self) -> Iterator[tuple[str, str]]:
        with self._lock:
            found = list(self._meters)
        yield from found

    def reset(self, agent: str) -> None:
        with self._lock:
            for key in [key for key in self._meters if key[0] == agent]:
                del self._meters[key]

    def quota(self, agent: str) -> Quota | None:
        return self._quotas.get(agent)

    def quotas(self) -> dict[str, Quota]:
        with self._lock:
            return dict(self._quotas)

    def set_quota(self, agent: str, quota: Quota | None) -> None:
        with self._lock:
            if quota is None:
                self._quotas.pop(agent, None)
            else:
                self._quotas[agent] = quota

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def _keep(self, key: tuple[str, str], meter: RateCounter) -> None:
        if key not in self._meters and len(self._meters) >= self._crowd:
            self._forget()
        self._meters[key] = meter

    def _forget(self) -> None:
        """Forget the counters whose windows are all over, so that names that come and go leave nothing."""
        now = self._clock()
        for key, meter in list(self._meters.items()):
            longest = max(meter.windows, default=0) * (STEPS + 1)
            if now + meter.skew - meter.written > longest:
                del self._meters[key]
        self._crowd = max(_CROWD, 2 * len(self._meters))


def rule_status(agent: str, scope: str, rule: Rule, used: int, level: int, wait: int | None) -> RuleStatus:
    """Return the status of a rule.

    Args:
        agent: whose.
        scope: of what.
        rule: which.
        used: how many messages are counted.
        level: how full its bucket is, of which a message takes ``STEPS``.
        wait: microseconds until the next message passes.
    """
    left = rule.limit - used
    if rule.burst:
        left = min(left, level // STEPS)
    return RuleStatus(
        agent=agent,
        scope=scope,
        rule=str(rule),
        limit=rule.limit,
        used=used,
        remaining=max(left, 0),
        retry_after=seconds_of(wait),
    )


def _in(scope: str, rule: Rule) -> Rule:
    return rule_in(scope, rule.limit, rule.period, rule.burst) if rule.to == EACH else rule


def _worse(
    worst: Refusal | None, scope: str, rules: Sequence[Rule], waits: Sequence[int | None]
) -> Refusal | None:
    """Return the refusal with the longest wait; of equal ones the first."""
    for rule, wait in zip(rules, waits, strict=True):
        if wait == 0 or (worst is not None and worst.wait is None):
            continue
        if wait is None or worst is None or wait > (worst.wait or 0):
            worst = Refusal(_in(scope, rule), wait)
    return worst
