"""What a rate limit says: rules, and the quota of an agent that they make up together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.validation import check_agent_name

#: Seconds in each unit of the grammar, the longest first.
UNITS = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
#: Largest limit, and longest window in seconds: all that is worked out from them stays exact in Lua's numbers.
MAX_LIMIT = 1_000_000_000
MAX_PERIOD = 366 * 86_400
#: Steps into which a window is divided: a message is counted for one step of its window too long at most.
STEPS = 25_000
#: Moments that a window remembers: with a higher limit, each stands for several messages.
SLOTS = 100
#: The scope of the rules that are for whatever an agent sends.
ALL = ""
#: Stands for whoever receives: each recipient is counted by itself.
EACH = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """No more than so many messages in any window of this length.

    Attributes:
        limit: how many messages, 1 to a billion.
        period: length of the window, in whole seconds.
        burst: how many at once, after which they must keep the pace of ``limit`` in ``period``; None: the limit.
        to: only messages to this agent; ``*``: each recipient is counted by itself; None: whoever receives.
        of: only messages of this type; None: of any.

    Raises:
        ConfigurationError: a value is out of range, or the rule is both ``to`` and ``of``.
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
                raise ConfigurationError(
                    f"burst {self.burst} is more than the limit {self.limit}: no more than that pass anyway"
                )
        if self.to is not None and self.of is not None:
            raise ConfigurationError("a rule is 'to' an agent or 'of' a type, not both: write two rules")
        if self.to is not None and self.to != EACH:
            check_agent_name(self.to, "to")
        if self.of is not None and not isinstance(self.of, MessageType):
            raise ConfigurationError(f"of must be a MessageType, not {self.of!r}")

    @property
    def step(self) -> int:
        """Microseconds in one step of the window."""
        return self.period * 1_000_000 // STEPS

    @property
    def group(self) -> int:
        """How many messages each moment that is remembered stands for."""
        return -(-self.limit // SLOTS)

    @property
    def scope(self) -> str:
        """What is counted by this rule: the name of its counter."""
        if self.to is not None:
            return scope_to(self.to)
        return ALL if self.of is None else scope_of(self.of)

    def without_reserve(self, reserve: int) -> tuple[int, int]:
        """Return how much of the limit and of the burst other than URGENT messages may use.

        Args:
            reserve: the share that is kept for URGENT ones, in thousandths. One message is left in any case.
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
    """What an agent may send: all of its rules hold at once. Without any, it is unlimited.

    Attributes:
        rules: the rules, each with a window and a scope of its own.

    Raises:
        ConfigurationError: two rules have the same window and the same scope.
    """

    rules: tuple[Rule, ...] = ()
    _scopes: Mapping[str, tuple[Rule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scopes: dict[str, tuple[Rule, ...]] = {}
        for rule in self.rules:
            for other in scopes.get(rule.scope, ()):
                if other.period == rule.period:
                    raise ConfigurationError(f"{other} and {rule} limit the same: keep one of them")
            scopes[rule.scope] = (*scopes.get(rule.scope, ()), rule)
        object.__setattr__(self, "_scopes", scopes)

    @property
    def scopes(self) -> Mapping[str, tuple[Rule, ...]]:
        """The rules by what they count."""
        return self._scopes

    def of_scope(self, scope: str) -> tuple[Rule, ...]:
        """Return the rules for a scope: for a recipient those that name it, or else those for each."""
        found = self._scopes.get(scope)
        return self._scopes.get(any_of(scope), ()) if found is None else found

    def __str__(self) -> str:
        return "; ".join(map(str, self.rules)) or "unlimited"


@dataclass(frozen=True, slots=True)
class Demand:
    """So many messages want to be counted in a scope.

    Attributes:
        scope: in which.
        n: how many.
        ordinary: how many of them are not URGENT.
    """

    scope: str
    n: int
    ordinary: int


def scope_to(agent: str) -> str:
    """Return the scope of messages to an agent."""
    return f"to:{agent}"


def scope_of(type_: MessageType) -> str:
    """Return the scope of messages of a type."""
    return f"of:{type_.value}"


def rule_in(scope: str, limit: int, period: int, burst: int | None) -> Rule:
    """Return the rule of these numbers as it holds in a scope: that of a recipient names it."""
    to = scope.removeprefix("to:") if scope.startswith("to:") else None
    of = MessageType(scope.removeprefix("of:")) if scope.startswith("of:") else None
    return Rule(limit, period, burst, to, of)


def any_of(scope: str) -> str:
    """Return the scope whose rules hold where a scope has none: ``to:*`` for a recipient, else itself."""
    return scope_to(EACH) if scope.startswith("to:") else scope


def demands(messages: Iterable[tuple[str | None, MessageType | None, Priority, int]]) -> list[Demand]:
    """Return what messages of one sender want in each scope that a rule may count.

    Args:
        messages: of each its recipient, its type, its priority, and how many such there are.
    """
    counts: dict[str, list[int]] = {ALL: [0, 0]}
    for to, type_, priority, n in messages:
        scopes = [ALL]
        scopes += [] if to is None else [scope_to(to)]
        scopes += [] if type_ is None else [scope_of(type_)]
        for scope in scopes:
            count = counts.setdefault(scope, [0, 0])
            count[0] += n
            count[1] += 0 if priority is Priority.URGENT else n
    return [Demand(scope, n, ordinary) for scope, (n, ordinary) in counts.items()]


def seconds_of(microseconds: int | None) -> float:
    """Return a wait in seconds, rounded so that it is never too short; None, never, is infinite."""
    return math.inf if microseconds is None else microseconds / 1_000_000


def _check_number(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigurationError(f"{name} must be a whole number from 1 to {most}, not {value!r:.40}")
