"""What is asked of whoever keeps counts and quotas: one contract, in memory and in Redis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from waooaw_celery.limits.rules import Demand, Quota, Rule


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why messages may not be sent now.

    Attributes:
        rule: the rule that makes them wait longest.
        wait: microseconds after which they may be sent when nobody sends meanwhile; None: they never may.
    """

    rule: Rule
    wait: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleStatus:
    """How things stand with one rule of an agent.

    Attributes:
        agent: whose rule.
        scope: what it counts: empty for all messages, ``to:worker-1``, ``of:query``.
        rule: the rule as it is written.
        limit: how many messages in its window.
        used: how many are counted there now.
        remaining: how many more pass at once, those for which only URGENT messages are let through among them.
        retry_after: seconds until the next message passes that is not URGENT; 0: now.
    """

    agent: str
    scope: str
    rule: str
    limit: int
    used: int
    remaining: int
    retry_after: float


class LimitStorage(ABC):
    """Keeps what was counted, and the quotas that were set at run time.

    Every method raises StoreUnavailable when what keeps it does not answer.
    """

    @abstractmethod
    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        """Decide whether an agent may send, by all rules at once; none counts anything unless all pass.

        Args:
            agent: who wants to send.
            demands: how much in each scope, the first of which is that of all messages.
            default: the quota, unless one was set at run time.
            reserve: the share that is kept for URGENT messages, in thousandths.
            charge: count them when they may be sent; otherwise nothing is changed.
        """

    @abstractmethod
    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        """Return how things stand with the rules of these scopes. That counts nothing."""

    @abstractmethod
    def counted(self) -> Iterator[tuple[str, str]]:
        """Give the agents and scopes in which something may be counted now."""

    @abstractmethod
    def reset(self, agent: str) -> None:
        """Forget what was counted of an agent."""

    @abstractmethod
    def quota(self, agent: str) -> Quota | None:
        """Return the quota that was set for an agent at run time, or None."""

    @abstractmethod
    def quotas(self) -> dict[str, Quota]:
        """Return all quotas that were set at run time, by agent."""

    @abstractmethod
    def set_quota(self, agent: str, quota: Quota | None) -> None:
        """Set an agent's quota, or remove it; the next decision of any process goes by it."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""
