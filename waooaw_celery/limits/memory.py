"""Counts and quotas in the memory of one process, for tests and single-process applications."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from waooaw_celery.limits.algorithm import RateCounter, Snapshot
from waooaw_celery.limits.rules import EACH_RECIPIENT, STEPS, Demand, Quota, Rule, rule_for_scope, to_seconds
from waooaw_celery.limits.storage import LimitStorage, Refusal, RuleStatus

#: Number of counters from which expired ones are pruned.
_PRUNE_FROM = 1024


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class MemoryStorage(LimitStorage):
    """Counts for the threads of one process.

    Args:
        clock: Returns the time in microseconds; None: the monotonic clock.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or _monotonic_us
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, str], RateCounter] = {}
        self._quotas: dict[str, Quota] = {}
        self._prune_from = _PRUNE_FROM

    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        with self._lock:
            quota = self._quotas.get(agent, default)
            now = self._clock()
            worst: Refusal | None = None
            snapshots: list[tuple[RateCounter, Snapshot, Demand]] = []
            for demand in demands:
                rules = quota.rules_for(demand.scope)
                if not rules:
                    continue
                counter = self._counters.get((agent, demand.scope)) or RateCounter()
                snapshot = counter.snapshot(rules, now)
                snapshots.append((counter, snapshot, demand))
                worst = _worse(worst, demand.scope, rules, snapshot.waits(demand, reserve))
            if charge and worst is None:
                for counter, snapshot, demand in snapshots:
                    counter.count(snapshot, demand.n)
                    self._store((agent, demand.scope), counter)
            return worst

    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        with self._lock:
            quota = self._quotas.get(agent, default)
            now = self._clock()
            statuses = []
            for scope in scopes:
                rules = quota.rules_for(scope)
                snapshot = (self._counters.get((agent, scope)) or RateCounter()).snapshot(rules, now)
                waits = snapshot.waits(Demand(scope, 1, 1), reserve)
                for (rule, window), wait in zip(snapshot.windows, waits, strict=True):
                    named = _with_recipient(scope, rule)
                    level = window.level // rule.period_us
                    statuses.append(rule_status(agent, scope, named, window.used, level, wait))
            return statuses

    def counted_scopes(self) -> Iterator[tuple[str, str]]:
        with self._lock:
            keys = list(self._counters)
        yield from keys

    def reset(self, agent: str) -> None:
        with self._lock:
            for key in [key for key in self._counters if key[0] == agent]:
                del self._counters[key]

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
        """Do nothing: this storage has no connections."""

    def _store(self, key: tuple[str, str], counter: RateCounter) -> None:
        if key not in self._counters and len(self._counters) >= self._prune_from:
            self._prune()
        self._counters[key] = counter

    def _prune(self) -> None:
        """Delete the counters whose windows have passed, so that short-lived agents use no memory."""
        now = self._clock()
        for key, counter in list(self._counters.items()):
            if now + counter.skew - counter.counted_at > max(counter.windows, default=0) * (STEPS + 1):
                del self._counters[key]
        self._prune_from = max(_PRUNE_FROM, 2 * len(self._counters))


def rule_status(agent: str, scope: str, rule: Rule, used: int, level: int, wait: int | None) -> RuleStatus:
    """Return the status of a rule.

    Args:
        agent: The agent.
        scope: The name of the counter.
        rule: The rule.
        used: Messages counted in the window.
        level: Whole messages in the token bucket.
        wait: Microseconds until the next message passes; None: never.
    """
    remaining = rule.limit - used
    if rule.burst:
        remaining = min(remaining, level)
    return RuleStatus(
        agent=agent,
        scope=scope,
        rule=str(rule),
        limit=rule.limit,
        used=used,
        remaining=max(remaining, 0),
        retry_after=to_seconds(wait),
    )


def _with_recipient(scope: str, rule: Rule) -> Rule:
    """Return a ``to *`` rule with the recipient that the scope names, any other rule unchanged."""
    return rule_for_scope(scope, rule.limit, rule.period, rule.burst) if rule.to == EACH_RECIPIENT else rule


def _worse(
    worst: Refusal | None, scope: str, rules: Sequence[Rule], waits: Sequence[int | None]
) -> Refusal | None:
    """Return the refusal with the longest wait; of equal ones, the first."""
    for rule, wait in zip(rules, waits, strict=True):
        if wait == 0 or (worst is not None and worst.wait_us is None):
            continue
        if wait is None or worst is None or wait > (worst.wait_us or 0):
            worst = Refusal(_with_recipient(scope, rule), wait)
    return worst
