"""What can be called from outside: the methods and workflows of all known agents, with their contracts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.discovery.contracts.contract import DESCRIPTION, PARAMETERS, PART, RESULT, WORKFLOW
from waooaw_celery.discovery.contracts.documents import newest_contracts
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.errors import NoWorker, UnknownAgent, UnknownMethod

#: Seconds for which what an agent has is not read again.
KNOWN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method or workflow that can be called from outside.

    Attributes:
        agent: the agent.
        method: the method or workflow.
        is_workflow: whether it is a workflow.
        description: what it does, in the words of its docstring; empty: it has none.
        parameters: JSON Schema of its arguments, as one object.
        result: JSON Schema of its result; None: unknown.
        part: JSON Schema of each part of its streamed answer; None: it does not stream.
    """

    agent: str
    method: str
    is_workflow: bool
    description: str
    parameters: Mapping[str, Any]
    result: Mapping[str, Any] | None
    part: Mapping[str, Any] | None

    @property
    def streams(self) -> bool:
        """Whether its answer comes in parts."""
        return self.part is not None


class Catalogue:
    """Reads what can be called from the registry, which knows the methods of living workers.

    What this process has read of an agent is remembered: it can be called while all its workers are stopped, and
    gets the call when one of them starts.

    Args:
        app: the application.
        agents: only these agents; empty: all.
    """

    def __init__(self, app: AgentApp, agents: tuple[str, ...] = ()) -> None:
        self._registry, self._agents = Registry(app), frozenset(agents)
        self._read: dict[str, tuple[float, dict[str, Operation]]] = {}

    def agents(self, principal: Principal | None = None) -> list[AgentInfo]:
        """Return the agents that have something which a principal may call, or which anybody may.

        Args:
            principal: the principal; None: whoever it is.
        """
        return [
            info for info in self._registry.list() if self._shows(info.name) and operations_of(info, principal)
        ]

    def agent(self, name: str) -> AgentInfo:
        """Return an agent.

        Raises:
            UnknownAgent: it is not known, or this edge does not show it.
        """
        if not self._shows(name):
            raise UnknownAgent(f"this edge does not serve the agent {name!r:.80}")
        return self._registry.get(name)

    def operation(self, agent: str, method: str) -> Operation:
        """Return a method or workflow.

        Raises:
            UnknownAgent: the agent is not known, or this edge does not show it.
            UnknownMethod: it has no such method or workflow; the error lists those that it has.
            NoWorker: what it has is not known; see ``operations``.
        """
        operations = self.operations(agent)
        if (found := operations.get(method)) is not None:
            return found
        raise UnknownMethod(f"{agent!r} has no method or workflow {method!r:.80}; it has {', '.join(operations)}")

    def operations(self, agent: str) -> Mapping[str, Operation]:
        """Return the methods and workflows of an agent, by name, as they were a moment ago.

        Raises:
            UnknownAgent: the agent is not known, or this edge does not show it.
            NoWorker: no worker of it runs, and this process has seen none before.
        """
        if (known := self.known(agent)) is not None:
            return known
        operations = {each.method: each for each in operations_of(self.agent(agent))}
        if not operations:  # all its workers are stopped: its queue keeps what is sent to it
            _, operations = self._read.get(agent, (0.0, {}))
        if not operations:
            raise NoWorker(
                f"no worker of {agent!r} runs, so that its methods are not known: start one, and try again"
            )
        self._read[agent] = time.monotonic() + KNOWN_SECONDS, operations
        return operations

    def known(self, agent: str) -> Mapping[str, Operation] | None:
        """Return the methods and workflows of an agent if they were read a moment ago. This asks no server."""
        until, operations = self._read.get(agent, (0.0, {}))
        return operations if until > time.monotonic() else None

    def _shows(self, agent: str) -> bool:
        return not self._agents or agent in self._agents


def operations_of(info: AgentInfo, principal: Principal | None = None) -> list[Operation]:
    """Return what an agent can be asked, by name.

    Args:
        info: the agent.
        principal: only what this principal may call; None: all.
    """
    return [
        Operation(
            agent=info.name,
            method=name,
            is_workflow=bool(contract.get(WORKFLOW)),
            description=contract.get(DESCRIPTION, ""),
            parameters=contract.get(PARAMETERS, {"type": "object"}),
            result=contract.get(RESULT),
            part=contract.get(PART),
        )
        for name, contract in newest_contracts(info).items()
        if principal is None or principal.can_call(info.name, name)
    ]
