"""A principal: who was authenticated at an edge, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from waooaw_celery.errors import NotPermitted
from waooaw_celery.messages.topics.patterns import matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who was authenticated at an edge.

    Attributes:
        name: its name, for the ledger and for people.
        from_agent: the agent in whose name it sends. It can claim no other.
        may_call: the methods and workflows that it may call, as ``agent.method``, with ``*`` and ``?``.
        may_publish: patterns of the topics to which it may publish.
        may_read: whether it may read the ledger's conversations and dead letters of all agents.
    """

    name: str
    from_agent: str
    may_call: tuple[str, ...] = ("*",)
    may_publish: tuple[str, ...] = ()
    may_read: bool = False

    def identity(self, protocol: str) -> str:
        """Return the identity that its messages have in the ledger, such as ``a2a:portal``.

        Args:
            protocol: the protocol by which it speaks.
        """
        return f"{protocol}:{self.name}"

    def can_call(self, agent: str, method: str) -> bool:
        """Whether it may call a method or workflow of an agent."""
        return any(fnmatchcase(f"{agent}.{method}", pattern) for pattern in self.may_call)

    def check_may_call(self, agent: str, method: str) -> None:
        """Check that it may call a method or workflow of an agent.

        Raises:
            NotPermitted: it may not.
        """
        if not self.can_call(agent, method):
            raise NotPermitted(f"{self.name} may not call {agent}.{method}: its entry has no such may_call")

    def check_may_publish(self, topic: str) -> None:
        """Check that it may publish to a topic.

        Raises:
            NotPermitted: it may not.
        """
        if not any(matches(pattern, topic) for pattern in self.may_publish):
            raise NotPermitted(f"{self.name} may not publish to {topic}: its entry has no such may_publish")

    def check_may_read(self) -> None:
        """Check that it may read the ledger.

        Raises:
            NotPermitted: it may not.
        """
        if not self.may_read:
            raise NotPermitted(f"{self.name} may not read the ledger: its entry has no may_read = true")
