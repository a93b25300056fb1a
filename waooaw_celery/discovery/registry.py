"""The registry: which agents there are, what they can do, and how they are."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.discovery.address import check_capability_name, version_condition
from waooaw_celery.discovery.agent_info import AgentInfo, AgentStatus, Order
from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.changes import Change, changes_between
from waooaw_celery.discovery.declaration import check_weight
from waooaw_celery.discovery.health.state import Health
from waooaw_celery.discovery.registration import Registration
from waooaw_celery.errors import InvalidMessage, UnknownAgent
from waooaw_celery.messages.validation import JSON, check_agent_name, check_tags

#: Seconds for which ``watch`` waits for a change before it looks whether it shall end.
WATCH_SECONDS = 1.0
#: The statuses that an operator may set.
SETTABLE = (AgentStatus.ONLINE, AgentStatus.DRAINING, AgentStatus.MAINTENANCE)


class Registry:
    """The known agents.

    What it returns is at most one second old. It is read from the ledger, or from Redis where there is no ledger.

    Args:
        app: the application.

    Example:
        >>> registry = Registry(app)
        >>> [agent.name for agent in registry.find(capability="summarise", version=">=2", healthy=True)]
        ['writer-1', 'writer-2']
    """

    def __init__(self, app: Any) -> None:
        self._app = require_agent_app(app, "Registry")

    @property
    def _cache(self) -> DirectoryCache:
        cache: DirectoryCache = self._app.directory
        return cache

    def list(self) -> list[AgentInfo]:
        """Return all known agents, sorted by name.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        agents = self._cache.snapshot().agents
        return [agents[name] for name in sorted(agents)]

    def get(self, name: str) -> AgentInfo:
        """Return an agent.

        Raises:
            UnknownAgent: the agent is not known.
            StoreUnavailable: the store does not answer.
        """
        found = self._cache.snapshot().agents.get(check_agent_name(name))
        found = found or self._cache.refresh().agents.get(name)
        if found is None:
            raise UnknownAgent(f"agent {name!r} is not known: start its worker once, or register it")
        return found

    def find(
        self,
        *,
        capability: str | None = None,
        version: str | None = None,
        tags: Iterable[str] = (),
        status: AgentStatus | str | Iterable[AgentStatus | str] | None = None,
        healthy: bool | None = None,
    ) -> builtins.list[AgentInfo]:
        """Return the agents that meet all conditions, sorted by name.

        Args:
            capability: name of a capability that the agent has.
            version: condition on the version of this capability, such as ``>=2``; ``2`` stands for every 2.x.
            tags: tags that it has.
            status: its status, or several of them.
            healthy: True: only those with the health HEALTHY; False: only the others.

        Raises:
            InvalidMessage: an argument is invalid, or there is a version and no capability.
            StoreUnavailable: the store does not answer.
        """
        wanted_tags = set(check_tags(tags))
        statuses = None if status is None else _statuses(status)
        if capability is not None:
            check_capability_name(capability)
        if version is not None:
            if capability is None:
                raise InvalidMessage("a version is that of a capability: give the capability too")
            version_condition(version)
        return [
            info
            for info in self.list()
            if (capability is None or any(c.name == capability and c.meets(version) for c in info.capabilities))
            and wanted_tags <= set(info.tags)
            and (statuses is None or info.status in statuses)
            and (healthy is None or (info.health is Health.HEALTHY) is healthy)
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many agents have each status, each health and each capability.

        Example:
            >>> registry.counts()
            {'status': {'online': 3}, 'health': {'healthy': 2, 'degraded': 1}, 'capability': {'ocr': 2}}
        """
        agents = self.list()
        return {
            "status": dict(Counter(info.status.value for info in agents)),
            "health": dict(Counter(info.health.value for info in agents)),
            "capability": dict(Counter(name for i in agents for name in sorted({c.name for c in i.capabilities}))),
        }

    def register(
        self,
        name: str,
        *,
        handlers: Iterable[str] = (),
        capabilities: Iterable[Any] = (),
        version: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, JSON] | None = None,
        weight: float = 1.0,
        max_in_flight: int | None = None,
        contracts: Mapping[str, JSON] | None = None,
        ttl_seconds: float = 15.0,
        instance: str | None = None,
        keep_alive: bool = True,
    ) -> Registration:
        """Register an agent that is no Celery worker of this package, such as a program that reads its queue.

        Args:
            name: name of the agent.
            handlers: names of what it handles: its methods, and ``command``, ``query``, ``ack``.
            capabilities: what it can do: names, or Capability objects.
            version: its version.
            tags: its tags.
            metadata: a JSON object of its own.
            weight: its share of the messages to a capability, relative to other agents'.
            max_in_flight: number of running messages from which it counts as BUSY.
            contracts: the contracts of its methods, by name: JSON Schemas of ``parameters`` and ``result``.
            ttl_seconds: seconds after its last heartbeat from which it counts as OFFLINE.
            instance: which of several processes of the agent this is; None: the host and the process id.
            keep_alive: whether a thread sends a heartbeat three times in ``ttl_seconds``; False: call ``beat``.

        Returns:
            The registration, which ends with ``deregister``. It can be used in a ``with`` statement.

        Raises:
            InvalidMessage: an argument is invalid.
            StoreUnavailable: the store does not answer.
        """
        registration = Registration(
            self._app,
            name,
            handlers=handlers,
            ttl_seconds=ttl_seconds,
            instance=instance,
            profile={
                "version": version,
                "capabilities": capabilities,
                "tags": tags,
                "metadata": metadata,
                "weight": weight,
                "max_in_flight": max_in_flight,
                "contracts": contracts,
            },
        )
        registration.start(keep_alive=keep_alive)
        self._cache.refresh()
        return registration

    def deregister(self, name: str) -> bool:
        """Forget an agent that has no living worker, and return whether it was known.

        Raises:
            InvalidMessage: a worker of it lives; stop it first.
            StoreUnavailable: the store does not answer.
        """
        living = (
            [worker.node for worker in self._cache.refresh().agents[name].workers] if self._knows(name) else []
        )
        if living:
            raise InvalidMessage(f"agent {name!r} is alive ({', '.join(living)}): stop it, or drain it, first")
        known: bool = self._app.registry.forget(name)
        self._app.registry.announce(name)
        self._cache.refresh()
        return known

    def set_status(
        self, name: str, status: AgentStatus | str, *, by: str | None = None, reason: str | None = None
    ) -> AgentInfo:
        """Set the status of an agent, and return the agent.

        Args:
            name: name of the agent.
            status: DRAINING: its present workers take nothing new, end what they have, and stop. MAINTENANCE: it
                gets no message by capability until its status is set again. ONLINE: it gets messages again.
            by: who sets it; None: the setting ``waooaw_sender``.
            reason: why.

        Raises:
            InvalidMessage: the status cannot be set.
            UnknownAgent: the agent is not known.
            StoreUnavailable: the store does not answer.
        """
        [wanted] = _statuses(status)
        if wanted not in SETTABLE:
            names = ", ".join(SETTABLE)
            raise InvalidMessage(f"the status {wanted} follows from what its workers do: set one of {names}")
        app = self._app
        order = None
        if wanted is not AgentStatus.ONLINE:
            now = app.reference_clock.now()
            order = Order(status=wanted, by=by or app.settings.sender or "unknown", since=now, reason=reason)
        self._order(name, "status", None if order is None else order.to_dict())
        app.announce_order()
        return self._cache.refresh().agents[name]

    def set_weights(self, weights: Mapping[str, float | None]) -> builtins.list[AgentInfo]:
        """Set the weights of agents, such as those of two versions of one program, and return the agents.

        The policies ``weighted`` and ``sticky`` choose by them. No policy chooses an agent with the weight 0.

        Args:
            weights: a weight for each agent; None: the one that its code declares.

        Raises:
            InvalidMessage: a weight is no number from 0 to a million; nothing was changed.
            UnknownAgent: an agent is not known; nothing was changed.
            StoreUnavailable: the store does not answer; some of them may be set.

        Example:
            >>> registry.set_weights({"writer-blue": 0, "writer-green": 1})
        """
        for weight in weights.values():
            if weight is not None:
                check_weight(weight)
        for name in weights:
            self.get(name)
        for name, weight in weights.items():
            self._order(name, "weight", weight)
        agents = self._cache.refresh().agents
        return [agents[name] for name in sorted(weights)]

    def _order(self, name: str, what: str, value: JSON) -> None:
        """Store one part of what is ordered about an agent, and tell all processes."""
        [record] = self._app.registry.read([check_agent_name(name)])
        ordered = {**(record.order or {}), what: value}
        ordered = {key: each for key, each in ordered.items() if each is not None}
        if not self._app.registry.set_order(name, ordered or None):
            raise UnknownAgent(f"agent {name!r} is not known: start its worker once, or register it")
        self._app.registry.announce(name)

    def changes(self, stop: threading.Event | None = None) -> Iterator[Change]:
        """Yield each change of an agent from now on, at most a second after it; blocks meanwhile.

        Args:
            stop: ends the iteration when it is set.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        known = self._cache.snapshot()
        while stop is None or not stop.is_set():
            found = self._cache.await_snapshot(known, WATCH_SECONDS)
            if found is not known:
                yield from changes_between(known, found)
                known = found

    async def watch(self) -> AsyncIterator[Change]:
        """Yield each change of an agent from now on, at most a second after it.

        Raises:
            StoreUnavailable: the store does not answer.

        Example:
            >>> async for change in registry.watch():
            ...     print(change.kind, change.agent)
        """
        known = await asyncio.to_thread(self._cache.snapshot)
        while True:
            found = await asyncio.to_thread(self._cache.await_snapshot, known, WATCH_SECONDS)
            for change in changes_between(known, found) if found is not known else ():
                yield change
            known = found

    def _knows(self, name: str) -> bool:
        return check_agent_name(name) in self._cache.refresh().agents


def _statuses(status: Any) -> frozenset[AgentStatus]:
    given = [status] if isinstance(status, str) else list(status)
    try:
        return frozenset(AgentStatus(each) for each in given)
    except ValueError:
        raise InvalidMessage(f"there is no status {status!r:.80}: use one of {', '.join(AgentStatus)}") from None
