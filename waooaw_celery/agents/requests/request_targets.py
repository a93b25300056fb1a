"""Which methods of which agents a request is for, when the sender names an agent or a capability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from waooaw_celery.app.app import AgentApp
from waooaw_celery.discovery.address import CapabilityAddress, is_capability
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.worker.current_task import current_task

#: The methods that are requested, each with the capability that the sender named, or None.
Targets: TypeAlias = dict[HandlerName, str | None]


class RequestTargets:
    """Finds the methods that are requested.

    Args:
        app: the application that sends the requests.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app

    def of(
        self,
        to_agents: Sequence[str | CapabilityAddress],
        method: str | None,
        without: Mapping[str, str],
        breaker: bool,
    ) -> Targets:
        """Return the methods that are requested, each with the capability that the sender named, or None.

        Args:
            to_agents: the agents, or the capabilities that they must have.
            method: name of one of their methods; None: the method that is the capability.
            without: agents that are not to be chosen for a capability, and why.
            breaker: whether agents whose circuit breakers are open are not to be chosen.

        Raises:
            UnknownAgent, UnknownMethod, NoAgentAvailable, InvalidMessage: for one of the agents.
        """
        if isinstance(to_agents, str) or not to_agents:
            raise InvalidMessage(f"to_agents must be a list of at least one agent, not {to_agents!r}")
        targets: Targets = {}
        for to in dict.fromkeys(to_agents):
            if is_capability(to):
                target, capability = self._chosen(to, method, without, breaker)
                targets[target] = capability
            else:
                targets[_method(to, method)] = None
        for target in targets:
            self._app.registry.check_handler(target)
        return targets

    def _chosen(
        self, to: str | CapabilityAddress, method: str | None, without: Mapping[str, str], breaker: bool
    ) -> tuple[HandlerName, str]:
        """Return the method of the agent that is chosen for a capability, and the capability."""
        task = current_task()
        waiting = () if task is None else (*(task.call.waiting if task.call else ()), task.agent)
        circular = dict.fromkeys(waiting, "it waits for the handler that sends this request")
        choice = self._app.selector.choose(
            to, method=method, without={**without, **circular}, is_request=True, breaker=breaker
        )
        return HandlerName(choice.agent, str(choice.capability.method)), choice.recorded


def _method(agent: Any, method: str | None) -> HandlerName:
    check_agent_name(agent, "to_agent")
    target = HandlerName.parse(f"{agent}.{method}") if isinstance(method, str) else None
    if target is None or takes_message(target.handler):
        raise InvalidMessage(f"method must be the name of a method of {agent!r}, not {method!r}")
    return target
