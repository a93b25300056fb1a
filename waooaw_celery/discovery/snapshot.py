"""All agents as they were at one time, and those of them that may get a message to a capability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.discovery.agent_info import AgentInfo, AgentStatus
from waooaw_celery.discovery.declaration import Capability
from waooaw_celery.discovery.health.state import Health

#: Addresses whose candidates one snapshot remembers.
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Candidates:
    """The agents among which a policy chooses.

    Attributes:
        names: their names, sorted.
        weights: the weight of each.
        cumulative: the sums of the weights up to each.
        capabilities: the capability of each that the message is for.
        refused: each other agent with the capability's name, and why it gets no message.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    cumulative: tuple[float, ...]
    capabilities: Mapping[str, Capability]
    refused: Mapping[str, str]


@dataclass(slots=True)
class Snapshot:
    """All agents as they were at one time.

    Attributes:
        agents: the agents by name.
        read_at: when they were read, by the monotonic clock.
    """

    agents: Mapping[str, AgentInfo]
    read_at: float
    _candidates: dict[tuple[Any, ...], Candidates] = field(default_factory=dict)

    def candidates(
        self,
        address: CapabilityAddress,
        handler: str | None,
        method: str | None = None,
        refusing: Mapping[str, str] = MappingProxyType({}),
    ) -> Candidates:
        """Return the agents that may get a message.

        Args:
            address: the capability.
            handler: the handler that takes the message, such as ``command``; None: the capability's method.
            method: the method that is requested; None: whichever the capability is.
            refusing: agents that let no request through now, each with the reason.
        """
        key = address.name, address.version, address.tags, handler, method, frozenset(refusing)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= MAX_REMEMBERED:
                self._candidates.clear()
            found = self._candidates[key] = self._select(address, handler, method, refusing)
        return found

    def _select(
        self, address: CapabilityAddress, handler: str | None, method: str | None, refusing: Mapping[str, str]
    ) -> Candidates:
        accepted: dict[str, tuple[AgentInfo, Capability]] = {}
        refused: dict[str, str] = {}
        for name, info in sorted(self.agents.items()):
            named = [each for each in info.capabilities if each.name == address.name]
            if not named:
                continue
            found = _refusal(info, named, address, handler, method)
            if isinstance(found, str):
                refused[name] = found
            elif name in refusing:
                refused[name] = refusing[name]
            else:
                accepted[name] = info, found
        free = [name for name, (info, _) in accepted.items() if info.status is not AgentStatus.BUSY]
        names = tuple(free or accepted)
        for name in accepted:
            if name not in names:
                refused[name] = "it is busy, and another agent is not"
        weights = tuple(accepted[name][0].weight for name in names)
        return Candidates(
            names, weights, tuple(accumulate(weights)), {name: accepted[name][1] for name in names}, refused
        )


def _refusal(
    info: AgentInfo,
    named: Iterable[Capability],
    address: CapabilityAddress,
    handler: str | None,
    method: str | None,
) -> Capability | str:
    """Return the capability of an agent that a message is for, or why the agent does not get the message."""
    fitting = [each for each in named if each.meets(address.version)]
    if not fitting:
        versions = ", ".join(sorted(each.version or "no version" for each in named))
        return f"it has {versions}, not {address.version}"
    if missing := sorted(set(address.tags) - set(info.tags)):
        return f"it lacks the tag {', '.join(missing)}"
    if handler is None:
        fitting = [each for each in fitting if each.method is not None and method in (None, each.method)]
        if not fitting:
            return "it has no method for it" if method is None else f"its method for it is not {method!r}"
    elif handler not in (info.handlers or ()):
        return f"it has no handler for {handler.upper()}"
    if not info.routable:
        why = f" ({info.reasons[0]})" if info.reasons else ""
        state = info.health if info.status in (AgentStatus.ONLINE, AgentStatus.BUSY) else info.status
        return f"it is {state}{why}"
    if not info.weight:
        return "its weight is 0"
    best = max(fitting, key=lambda each: _order_of(each.version))
    # Its workers share one queue: each must be able to handle what any of them may receive.
    unable = [
        worker.node
        for worker in info.workers
        if worker.profile is not None
        and worker.health is not Health.UNHEALTHY
        and not worker.draining
        and not any(
            each.name == best.name and each.method == best.method and each.meets(address.version)
            for each in worker.profile.capabilities
        )
        and (best.method is None or best.method in (worker.handlers or ()))
    ]
    if unable:
        return f"{len(unable)} of its {len(info.workers)} workers have another version: {unable[0]}"
    return best


def _order_of(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (version or "0").split(".") if part.isdigit())
