"""Chooses the agent that gets a message to a capability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from waooaw_celery.discovery.address import CapabilityAddress
from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.declaration import Capability
from waooaw_celery.discovery.policies import COMPARING, Chooser, Policy
from waooaw_celery.discovery.snapshot import Candidates
from waooaw_celery.errors import ConfigurationError, InvalidMessage, NoAgentAvailable


class Choice(NamedTuple):
    """The agent that gets a message.

    Attributes:
        agent: its name.
        capability: its capability that the message is for.
        address: the address that the sender named.
        policy: the policy that has chosen.
    """

    agent: str
    capability: Capability
    address: CapabilityAddress
    policy: Policy

    @property
    def recorded(self) -> str:
        """What the message and the ledger keep of the address."""
        return self.address.recorded


class Selector:
    """Chooses the agent that gets a message to a capability.

    Args:
        cache: the known agents.
        default_policy: the policy of an address that names none.
        refusing: returns the agents whose circuit breakers are open, each with the reason.

    Raises:
        ConfigurationError: there is no such policy.
    """

    def __init__(
        self,
        cache: DirectoryCache,
        default_policy: str,
        refusing: Callable[[], Mapping[str, str]] = lambda: MappingProxyType({}),
    ) -> None:
        self._cache, self._refusing = cache, refusing
        try:
            self.default_policy = Policy.of(default_policy)
        except InvalidMessage as error:
            raise ConfigurationError(f"waooaw_routing_policy: {error}") from error
        self.chooser = Chooser(cache.loads)

    def choose(
        self,
        to: str | CapabilityAddress,
        *,
        handler: str | None = None,
        method: str | None = None,
        without: Mapping[str, str] = MappingProxyType({}),
        is_request: bool = False,
        breaker: bool = True,
    ) -> Choice:
        """Return the agent that gets a message.

        Args:
            to: the address.
            handler: the handler that takes the message, such as ``command``; None: the capability's method.
            method: the method that is requested; None: whichever the capability is.
            without: agents that are not to be chosen, and why.
            is_request: whether the caller notes when it has the answer: see ``DirectoryCache.begin_request``. A
                request goes to no agent whose circuit breaker is open. A message, which waits in a queue, goes
                there if there is no other.
            breaker: whether agents whose circuit breakers are open are avoided.

        Raises:
            NoAgentAvailable: no agent may get it; the error says who was considered, and why not.
            InvalidMessage: the address is invalid, or its policy is unknown or lacks a key.
            StoreUnavailable: the store of agents does not answer.
        """
        address = CapabilityAddress.of(to)
        policy = self.default_policy if address.policy is None else _policy(address.policy)
        snapshot = self._cache.snapshot()
        candidates = _without(snapshot.candidates(address, handler, method), without)
        if not candidates.names:
            # A worker may have started a moment ago: the store knows.
            snapshot = self._cache.refresh()
            candidates = _without(snapshot.candidates(address, handler, method), without)
        if not candidates.names:
            raise NoAgentAvailable(str(address), dict(candidates.refused))
        if breaker and (refusing := self._refusing()):
            closed = _without(snapshot.candidates(address, handler, method, refusing), without)
            if not closed.names and is_request:
                raise NoAgentAvailable(str(address), dict(closed.refused))
            candidates = closed if closed.names else candidates
        if policy in COMPARING and len(candidates.names) > 1:
            self._cache.need_loads(candidates.names)
        agent = self.chooser.choose(policy, candidates, (address, handler, method), address.key)
        if not is_request:
            self._cache.sent[agent] += 1
        return Choice(agent, candidates.capabilities[agent], address, policy)


@lru_cache(maxsize=64)
def _policy(name: str) -> Policy:
    return Policy.of(name)


def _without(candidates: Candidates, without: Mapping[str, str]) -> Candidates:
    left = [number for number, name in enumerate(candidates.names) if name not in without]
    if len(left) == len(candidates.names):
        return candidates
    weights = [candidates.weights[number] for number in left]
    refused = {**candidates.refused, **{name: without[name] for name in candidates.names if name in without}}
    total, cumulative = 0.0, []
    for weight in weights:
        total += weight
        cumulative.append(total)
    names = tuple(candidates.names[number] for number in left)
    return Candidates(names, tuple(weights), tuple(cumulative), candidates.capabilities, refused)
