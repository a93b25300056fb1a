"""What rate limits mean, written down a second time and in another way: every message is remembered for ever.

A rule divides its window into 25,000 steps. A message counts until more than 25,000 steps have passed since its
own. A bucket is a fraction of messages. Nothing here is fast, packed or pruned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from waooaw_celery.limits.rules import Quota, Rule

STEPS = 25_000
#: Limits above it are counted in groups, which this model does not know.
EXACT = 100

#: How many messages in all, and how many that are not urgent, by scope.
Wants = dict[str, tuple[int, int]]


@dataclass
class Record:
    """What a rule remembers: the moments of all messages, and how full its bucket was at the last one."""

    sent: list[int] = field(default_factory=list)
    bucket: Fraction | None = None


@dataclass
class Scope:
    """What is counted together, on a clock that stands still when the real one is set back."""

    last: int | None = None
    skew: int = 0
    records: dict[int, Record] = field(default_factory=dict)

    def now(self, time: int) -> int:
        """Return the time that counts here."""
        if self.last is not None and time + self.skew < self.last:
            self.skew = self.last - time
        return time + self.skew


class Model:
    """One agent."""

    def __init__(self) -> None:
        self.scopes: dict[str, Scope] = {}

    def may(
        self, quota: Quota, wants: dict[str, tuple[int, int]], reserve: int, time: int, ahead: int = 0
    ) -> bool:
        """Whether so many messages in all, and so many that are not urgent, would pass in each scope.

        Args:
            quota: by which rules.
            wants: the numbers, by scope.
            reserve: thousandths that are kept for urgent ones.
            time: the time.
            ahead: ask for so many microseconds later, if nothing happens until then.
        """
        return all(
            self._rule_may(scope, rule, n, ordinary, reserve, time, ahead)
            for scope, (n, ordinary) in wants.items()
            for rule in rules_of(quota, scope)
        )

    def send(self, quota: Quota, wants: Wants, time: int) -> None:
        """Remember messages."""
        for name, (n, _) in wants.items():
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
        """Return how many messages count."""
        scope = self.scopes.get(scope_name, Scope())
        return self._used(rule, scope.records.get(rule.period, Record()), scope.now(time))

    def _rule_may(self, name: str, rule: Rule, n: int, ordinary: int, reserve: int, time: int, ahead: int) -> bool:
        scope = self.scopes.get(name, Scope())
        now = scope.now(time) + ahead
        record = scope.records.get(rule.period, Record())
        used, level = self._used(rule, record, now), self._level(rule, record, scope, now)
        kept = min(rule.limit * reserve // 1000, rule.limit - 1)
        fits = used + n <= rule.limit and (not ordinary or used + ordinary <= rule.limit - kept)
        if rule.burst:
            held = min(rule.burst * reserve // 1000, rule.burst - 1)
            fits = fits and n <= level and (not ordinary or ordinary + held <= level)
        return fits

    def _used(self, rule: Rule, record: Record, now: int) -> int:
        step = rule.period * 1_000_000 // STEPS
        return sum(now // step - at // step <= STEPS for at in record.sent)

    def _level(self, rule: Rule, record: Record, scope: Scope, now: int) -> Fraction:
        full = Fraction(rule.burst or 0)
        if record.bucket is None or scope.last is None:
            return full
        step = rule.period * 1_000_000 // STEPS
        return min(full, record.bucket + Fraction((now // step - scope.last // step) * rule.limit, STEPS))


def rules_of(quota: Quota, scope: str) -> list[Rule]:
    """Return the rules for a scope, found by looking at each."""
    named = [rule for rule in quota.rules if rule.scope == scope]
    return named or [rule for rule in quota.rules if scope.startswith("to:") and rule.scope == "to:*"]


def exact(quota: Quota) -> bool:
    """Whether the model knows all of a quota."""
    return all(rule.limit <= EXACT for rule in quota.rules)
