"""Rules and quotas: what a rate limit allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.validation import check_agent_name

#: Seconds in each unit of the grammar, longest first.
UNITS = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
#: Largest limit, and longest window in seconds. Up to these, Lua's doubles hold every intermediate result exactly.
MAX_LIMIT = 1_000_000_000
MAX_PERIOD = 366 * 86_400
#: Steps in a window. A message counts for at most one step longer than its window.
STEPS = 25_000
#: Timestamps that a window stores. With a higher limit, each one stands for a group of messages.
MAX_GROUPS = 100
#: The scope of rules for all messages of an agent.
ALL_MESSAGES = ""
#: In a rule's ``to``: count each recipient separately.
EACH_RECIPIENT = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows at most ``limit`` messages in any window of ``period`` seconds.

    Attributes:
        limit: Number of messages, 1 to 1,000,000,000.
        period: Length of the window, in whole seconds, at most 366 days.
        burst: Messages that may be sent at once; after that they pass at the rate of ``limit`` per ``period``.
            None: the limit.
        to: Count only messages to this agent; ``*``: count each recipient separately; None: any recipient.
        of: Count only messages of this type; None: any type.

    Raises:
        ConfigurationError: A value is out of range, or both ``to`` and ``of`` are set.
    """

    limit: int
    period: int
    burst: int | None = None
    to: str | None = None
    of: MessageType | None = None

    def __post_init__(self) -> None:
        _check_number("limit", self.limit, MAX_LIMIT)
        _check_number("period", self.period, MAX_PERIOD)
        if self.burst is not None:
            _check_number("burst", self.burst, MAX_LIMIT)
            if self.burst > self.limit:
                raise ConfigurationError(f"burst {self.burst} is larger than the limit {self.limit}")
        if self.to is not None and self.of is not None:
            raise ConfigurationError("a rule can have 'to' or 'of', not both: write two rules")
        if self.to is not None and self.to != EACH_RECIPIENT:
            check_agent_name(self.to, "to")
        if self.of is not None and not isinstance(self.of, MessageType):
            raise ConfigurationError(f"of must be a MessageType, not {self.of!r}")

    @property
    def period_us(self) -> int:
        """Microseconds in the window."""
        return self.period * 1_000_000

    @property
    def step_us(self) -> int:
        """Microseconds in one step of the window."""
        return self.period_us // STEPS

    @property
    def group_size(self) -> int:
        """Messages that each stored timestamp stands for."""
        return -(-self.limit // MAX_GROUPS)

    @property
    def scope(self) -> str:
        """The name of the counter that this rule limits."""
        if self.to is not None:
            return recipient_scope(self.to)
        return ALL_MESSAGES if self.of is None else type_scope(self.of)

    def without_reserve(self, reserve: int) -> tuple[int, int]:
        """Return the limit and the burst for messages that are not URGENT; each is at least 1 if set.

        Args:
            reserve: The share reserved for URGENT messages, in thousandths.
        """
        burst = self.burst or 0
        return (
            self.limit - min(self.limit * reserve // 1000, self.limit - 1),
            burst - min(burst * reserve // 1000, max(burst - 1, 0)),
        )

    def __str__(self) -> str:
        unit = next(name for name, seconds in UNITS.items() if self.period % seconds == 0)
        count = self.period // UNITS[unit]
        words = [f"{self.limit}/{unit}" if count == 1 else f"{self.limit}/{count} {unit}s"]
        words += [] if self.burst is None else [f"burst {self.burst}"]
        words += [] if self.to is None else [f"to {self.to}"]
        words += [] if self.of is None else [f"of {self.of.value}"]
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Quota:
    """What an agent may send: every rule must pass. A quota without rules is unlimited.

    Attributes:
        rules: The rules.

    Raises:
        ConfigurationError: Two rules have the same window and scope.
    """

    rules: tuple[Rule, ...] = ()
    _rules_by_scope: Mapping[str, tuple[Rule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scopes: dict[str, tuple[Rule, ...]] = {}
        for rule in self.rules:
            for other in scopes.get(rule.scope, ()):
                if other.period == rule.period:
                    raise ConfigurationError(
                        f"{other} and {rule} have the same window and scope: keep one of them"
                    )
            scopes[rule.scope] = (*scopes.get(rule.scope, ()), rule)
        object.__setattr__(self, "_rules_by_scope", scopes)

    @property
    def rules_by_scope(self) -> Mapping[str, tuple[Rule, ...]]:
        """The rules, by the name of their counter."""
        return self._rules_by_scope

    def rules_for(self, scope: str) -> tuple[Rule, ...]:
        """Return the rules of a scope. For a recipient without rules of its own, return the ``to *`` rules."""
        rules = self._rules_by_scope.get(scope)
        return self._rules_by_scope.get(fallback_scope(scope), ()) if rules is None else rules

    def __str__(self) -> str:
        return "; ".join(map(str, self.rules)) or "unlimited"


@dataclass(frozen=True, slots=True)
class Demand:
    """The number of messages to count in one scope.

    Attributes:
        scope: The name of the counter.
        n: Number of messages.
        non_urgent: How many of them are not URGENT.
    """

    scope: str
    n: int
    non_urgent: int


def recipient_scope(agent: str) -> str:
    """Return the scope of messages to an agent."""
    return f"to:{agent}"


def type_scope(type_: MessageType) -> str:
    """Return the scope of messages of a type."""
    return f"of:{type_.value}"


def rule_for_scope(scope: str, limit: int, period: int, burst: int | None) -> Rule:
    """Return the rule with these numbers, and the recipient or type that the scope names."""
    to = scope.removeprefix("to:") if scope.startswith("to:") else None
    of = MessageType(scope.removeprefix("of:")) if scope.startswith("of:") else None
    return Rule(limit, period, burst, to, of)


def fallback_scope(scope: str) -> str:
    """Return the scope whose rules apply when a scope has none: ``to:*`` for a recipient, else itself."""
    return recipient_scope(EACH_RECIPIENT) if scope.startswith("to:") else scope


def demands_by_scope(messages: Iterable[tuple[str | None, MessageType | None, Priority, int]]) -> list[Demand]:
    """Count the messages of one sender in every scope that a rule may limit.

    Args:
        messages: Tuples of recipient, type, priority and number of messages.

    Returns:
        One demand for each scope, that of all messages first.
    """
    counts: dict[str, list[int]] = {ALL_MESSAGES: [0, 0]}
    for to, type_, priority, n in messages:
        scopes = [ALL_MESSAGES]
        scopes += [] if to is None else [recipient_scope(to)]
        scopes += [] if type_ is None else [type_scope(type_)]
        for scope in scopes:
            count = counts.setdefault(scope, [0, 0])
            count[0] += n
            count[1] += 0 if priority is Priority.URGENT else n
    return [Demand(scope, n, non_urgent) for scope, (n, non_urgent) in counts.items()]


def to_seconds(microseconds: int | None) -> float:
    """Return a wait in seconds; None (never) becomes infinity."""
    return math.inf if microseconds is None else microseconds / 1_000_000


def _check_number(name: str, value: Any, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise ConfigurationError(f"{name} must be a whole number from 1 to {maximum}, not {value!r:.40}")
