"""A reference model of rate limits, written independently of the package: it stores every message.

A rule divides its window into 25,000 steps. A message counts until more than 25,000 steps have passed after its
own. A token bucket holds a fraction of messages, and refills in each microsecond. Nothing is optimised, packed or
pruned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from waooaw_celery.limits.rules import Quota, Rule

STEPS = 25_000
#: Higher limits are counted in groups, which this model does not have.
MAX_EXACT_LIMIT = 100

#: Number of messages, and number of those that are not URGENT, by scope.
Demands = dict[str, tuple[int, int]]


@dataclass
class Record:
    """The state of a rule: the times of all messages, and the level of its bucket after the last one."""

    sent: list[int] = field(default_factory=list)
    bucket: Fraction | None = None


@dataclass
class Scope:
    """The state of a scope. Its clock stands still while the real one is set back."""

    last: int | None = None
    skew: int = 0
    records: dict[int, Record] = field(default_factory=dict)

    def now(self, time: int) -> int:
        """Return the time of this scope's clock."""
        if self.last is not None and time + self.skew < self.last:
            self.skew = self.last - time
        return time + self.skew


class Model:
    """The state of one agent."""

    def __init__(self) -> None:
        self.scopes: dict[str, Scope] = {}

    def passes(self, quota: Quota, demands: Demands, reserve: int, time: int, ahead: int = 0) -> bool:
        """Whether the messages would pass in each scope.

        Args:
            quota: The rules.
            demands: The numbers of messages.
            reserve: The share reserved for URGENT messages, in thousandths.
            time: The time, in microseconds.
            ahead: Microseconds to add to the time, if nothing is sent meanwhile.
        """
        return all(
            self._rule_passes(scope, rule, n, non_urgent, reserve, time, ahead)
            for scope, (n, non_urgent) in demands.items()
            for rule in rules_of(quota, scope)
        )

    def send(self, quota: Quota, demands: Demands, time: int) -> None:
        """Count messages."""
        for name, (n, _) in demands.items():
            rules = rules_of(quota, name)
            if not rules:
                continue
            scope = self.scopes.setdefault(name, Scope())
            now = scope.now(time)
            records = {}
            for rule in rules:
                record = scope.records.get(rule.period, Record())
                level = self._level(rule, record, scope, now)
                records[rule.period] = Record([*record.sent, *[now] * n], level - n if rule.burst else Fraction(0))
            scope.records, scope.last = records, now

    def used(self, scope_name: str, rule: Rule, time: int) -> int:
        """Return the number of messages counted."""
        scope = self.scopes.get(scope_name, Scope())
        return self._used(rule, scope.records.get(rule.period, Record()), scope.now(time))

    def _rule_passes(
        self, name: str, rule: Rule, n: int, non_urgent: int, reserve: int, time: int, ahead: int
    ) -> bool:
        scope = self.scopes.get(name, Scope())
        now = scope.now(time) + ahead
        record = scope.records.get(rule.period, Record())
        used, level = self._used(rule, record, now), self._level(rule, record, scope, now)
        reserved = min(rule.limit * reserve // 1000, rule.limit - 1)
        fits = used + n <= rule.limit and (not non_urgent or used + non_urgent <= rule.limit - reserved)
        if rule.burst:
            reserved_burst = min(rule.burst * reserve // 1000, rule.burst - 1)
            fits = fits and n <= level and (not non_urgent or non_urgent + reserved_burst <= level)
        return fits

    def _used(self, rule: Rule, record: Record, now: int) -> int:
        step = rule.period * 1_000_000 // STEPS
        return sum(now // step - at // step <= STEPS for at in record.sent)

    def _level(self, rule: Rule, record: Record, scope: Scope, now: int) -> Fraction:
        full = Fraction(rule.burst or 0)
        if record.bucket is None or scope.last is None:
            return full
        return min(full, record.bucket + Fraction((now - scope.last) * rule.limit, rule.period * 1_000_000))


def rules_of(quota: Quota, scope: str) -> list[Rule]:
    """Return the rules of a scope, by checking each rule."""
    named = [rule for rule in quota.rules if rule.scope == scope]
    return named or [rule for rule in quota.rules if scope.startswith("to:") and rule.scope == "to:*"]


def is_exact(quota: Quota) -> bool:
    """Whether the model counts this quota exactly."""
    return all(rule.limit <= MAX_EXACT_LIMIT for rule in quota.rules)
