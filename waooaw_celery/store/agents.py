"""The registry of agents: which exist, what they handle, and when their workers sent their last heartbeat."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from waooaw_celery.errors import NoHandler, UnknownAgent, UnknownMethod
from waooaw_celery.messages.enums import TYPE_NAMES
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors

_NAMES = "waooaw:agents"
_RECORD = "waooaw:agent:"
#: Seconds for which it is cached that an agent that a setting names has not started yet.
UNSTARTED_SECONDS = 5.0
#: Fields of a worker's report that change the state of its agent, each with that state, the worst first.
_WORKER_STATES = (("stalled", "STALLED"), ("not_taking", "not taking"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """What the registry knows about an agent.

    Attributes:
        name: name of the agent.
        handlers: names of its handlers; None if it has never started and only a setting names it.
        declared_at: when a worker of it first started, or None.
        last_seen: time of its last heartbeat, or None.
        workers: node names of its living workers.
        capabilities: its capability tags.
        read_at: when this record was read, by the clock that gave ``last_seen``.
        reports: the newest report of each living worker, by node name: JSON objects.
    """

    name: str
    handlers: tuple[str, ...] | None
    declared_at: datetime | None
    last_seen: datetime | None
    workers: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    read_at: datetime | None = None
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def alive(self, within: timedelta) -> bool:
        """Whether its last heartbeat was at most this long ago when the record was read."""
        return self.last_seen is not None and (self.read_at or datetime.now(UTC)) - self.last_seen <= within

    def state(self, within: timedelta) -> str:
        """Return ``away``, ``alive``, or ``STALLED`` or ``not taking`` if one of its workers reports that.

        Args:
            within: longest time since the last heartbeat of a living agent.
        """
        if not self.alive(within):
            return "away"
        for fact, state in _WORKER_STATES:
            if any(report.get(fact) for report in self.reports.values()):
                return state
        return "alive"


class AgentRegistry(ABC):
    """The known agents, shared by all processes.

    Every method raises StoreUnavailable if the store does not answer.

    Args:
        configured: names of agents that are known before a worker of theirs has started (setting
            ``waooaw_agents``).
    """

    def __init__(self, configured: Iterable[str] = ()) -> None:
        self._configured = frozenset(configured)
        self._handlers: dict[str, tuple[str, ...]] = {}
        self._unstarted: dict[str, float] = {}

    @abstractmethod
    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that an agent exists and one of its workers lives: at the worker's start and at each heartbeat.

        Args:
            name: name of the agent.
            handlers: names of all its handlers.
            worker: node name of the worker, such as ``analyst@host``.
            lifetime: seconds without another heartbeat after which the worker no longer counts as living.
            capabilities: capability tags of the agent.
            started_at: when the worker started; only a ledger stores it.
            report: what the worker reports about itself, a JSON object.
        """

    @abstractmethod
    def retire(self, name: str, worker: str) -> None:
        """Record that a worker of an agent has stopped. The agent stays known."""

    @abstractmethod
    def _names(self) -> set[str]:
        """Return the names of all agents that have been declared."""

    @abstractmethod
    def _read(self, names: list[str]) -> list[AgentRecord]:
        """Return a record for each name; it is empty for an agent that has never been declared."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    def all(self) -> list[AgentRecord]:
        """Return all known agents, sorted by name."""
        return self._read(sorted(self._configured | self._names()))

    def get(self, name: str) -> AgentRecord:
        """Return the record of an agent.

        Raises:
            UnknownAgent: the agent is not known; the error lists the known ones.
        """
        [record] = self._read([name])
        if record.declared_at is None and name not in self._configured:
            known = ", ".join(agent.name for agent in self.all()) or "none yet"
            raise UnknownAgent(
                f"agent {name!r} is not known (known: {known}): start its worker once, "
                f"or add {name!r} to the setting waooaw_agents"
            )
        return record

    def check_handler(self, target: HandlerName) -> None:
        """Check that an agent is known and has a handler.

        Known handlers are cached, so that a send needs no round trip. A handler that is not in the cache is looked
        up each time.

        Raises:
            UnknownAgent: the agent is not known.
            NoHandler: the agent has no handler for this type of message.
            UnknownMethod: the agent has no such method.
        """
        if target.handler in self._handlers.get(target.agent, ()):
            return
        if time.monotonic() < self._unstarted.get(target.agent, 0.0):
            return
        handlers = self.get(target.agent).handlers
        if handlers is None:  # it has not started, so its handlers are not known yet
            self._unstarted[target.agent] = time.monotonic() + UNSTARTED_SECONDS
            return
        self._handlers[target.agent] = handlers
        if target.handler in handlers:
            return
        if target.handler in TYPE_NAMES:
            types = ", ".join(name.upper() for name in handlers if name in TYPE_NAMES) or "none"
            raise NoHandler(
                f"agent {target.agent!r} has no handler for {target.message_type.name} (it handles: {types}): "
                f"add @agent.on(MessageType.{target.message_type.name}) there and restart its worker"
            )
        methods = ", ".join(name for name in handlers if not takes_message(name)) or "none"
        raise UnknownMethod(f"agent {target.agent!r} has no method {target.handler!r} (it has: {methods})")


class RedisAgentRegistry(AgentRegistry):
    """The known agents in Redis: a set of names, and for each agent a hash and a sorted set of its living workers.

    Args:
        client: client of the Redis.
        configured: names of agents that are known before a worker of theirs has started.
    """

    def __init__(self, client: Client, configured: Iterable[str] = ()) -> None:
        super().__init__(configured)
        self._client = client

    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        fields = {"handlers": json.dumps(sorted(handlers)), "capabilities": json.dumps(sorted(capabilities))}
        key = _RECORD + name
        with store_errors(f"declare the agent {name!r}"), self._client.pipeline() as pipeline:
            now = self._now()
            pipeline.sadd(_NAMES, name)
            pipeline.hsetnx(key, "declared_at", now.isoformat())
            pipeline.hset(key, mapping={**fields, "last_seen": now.isoformat()})
            pipeline.zadd(f"{key}:workers", {worker: now.timestamp() + lifetime})
            pipeline.zremrangebyscore(f"{key}:workers", "-inf", now.timestamp())
            pipeline.set(_report_key(name, worker), json.dumps(report or {}), px=max(int(lifetime * 1000), 1))
            pipeline.execute()

    def retire(self, name: str, worker: str) -> None:
        with store_errors(f"retire a worker of {name!r}"):
            self._client.zrem(f"{_RECORD}{name}:workers", worker)
            self._client.delete(_report_key(name, worker))

    def close(self) -> None:
        self._client.close()

    def _now(self) -> datetime:
        """Return the time of Redis's clock, because a worker with a wrong clock would expire those of others."""
        return datetime.fromtimestamp(redis_time(self._client.time()), UTC)

    def _names(self) -> set[str]:
        with store_errors("list the agents"):
            return set(self._client.smembers(_NAMES))

    def _read(self, names: list[str]) -> list[AgentRecord]:
        with store_errors("look up agents"), self._client.pipeline(transaction=False) as pipeline:
            now = self._now()
            for name in names:
                pipeline.hgetall(_RECORD + name)
                pipeline.zrangebyscore(f"{_RECORD}{name}:workers", now.timestamp(), "+inf")
            replies = pipeline.execute()
            living = [
                (name, worker) for name, workers in zip(names, replies[1::2], strict=True) for worker in workers
            ]
            texts = self._client.mget([_report_key(*each) for each in living]) if living else []
        reports = {each: json.loads(text) for each, text in zip(living, texts, strict=True) if text}
        return [
            AgentRecord(
                name=name,
                handlers=tuple(json.loads(fields["handlers"])) if fields else None,
                declared_at=datetime.fromisoformat(fields["declared_at"]) if fields else None,
                last_seen=datetime.fromisoformat(fields["last_seen"]) if fields else None,
                workers=tuple(workers),
                capabilities=tuple(json.loads(fields["capabilities"])) if fields else (),
                read_at=now,
                reports={worker: reports[name, worker] for worker in workers if reports.get((name, worker))},
            )
            for name, fields, workers in zip(names, replies[::2], replies[1::2], strict=True)
        ]


def _report_key(name: str, worker: str) -> str:
    return f"{_RECORD}{name}:report:{worker}"
