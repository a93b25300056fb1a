"""The contract of a storage for counts and quotas, implemented in memory and in Redis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from waooaw_celery.limits.rules import Demand, Quota, Rule


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why messages may not be sent now.

    Attributes:
        rule: The rule with the longest wait.
        wait_us: Microseconds until the messages pass, if the agent sends nothing meanwhile; None: they never pass.
    """

    rule: Rule
    wait_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleStatus:
    """The current count of one rule of an agent.

    Attributes:
        agent: The agent.
        scope: What the rule counts: empty for all messages, ``to:worker-1``, ``of:query``.
        rule: The rule in the quota grammar.
        limit: Messages allowed in its window.
        used: Messages counted in the window now.
        remaining: Messages that pass now, including the share reserved for URGENT messages.
        retry_after: Seconds until the next message that is not URGENT passes; 0: now.
    """

    agent: str
    scope: str
    rule: str
    limit: int
    used: int
    remaining: int
    retry_after: float


class LimitStorage(ABC):
    """Stores counts, and the quotas that are set at run time.

    Every method raises StoreUnavailable when the server behind it does not answer.
    """

    @abstractmethod
    def decide(
        self, agent: str, demands: Sequence[Demand], default: Quota, reserve: int, *, charge: bool
    ) -> Refusal | None:
        """Decide in one step whether an agent may send, by all its rules. Nothing is counted unless all pass.

        Args:
            agent: The sender.
            demands: The number of messages in each scope; the first scope is that of all messages.
            default: The quota that applies unless one is set at run time.
            reserve: The share reserved for URGENT messages, in thousandths.
            charge: Count the messages when they pass; False: only check.

        Returns:
            The refusal, or None when the messages pass.
        """

    @abstractmethod
    def status(self, agent: str, scopes: Sequence[str], default: Quota, reserve: int) -> list[RuleStatus]:
        """Return the status of the rules of these scopes, without counting anything."""

    @abstractmethod
    def counted_scopes(self) -> Iterator[tuple[str, str]]:
        """Yield the agents and scopes that may have a count now."""

    @abstractmethod
    def reset(self, agent: str) -> None:
        """Delete the counts of an agent."""

    @abstractmethod
    def quota(self, agent: str) -> Quota | None:
        """Return the quota that was set for an agent at run time, or None."""

    @abstractmethod
    def quotas(self) -> dict[str, Quota]:
        """Return all quotas that were set at run time, by agent."""

    @abstractmethod
    def set_quota(self, agent: str, quota: Quota | None) -> None:
        """Set an agent's quota, or remove it with None. It applies to the next decision of every process."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""
