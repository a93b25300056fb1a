"""The known agents: who was ever declared, what they handle, when they last gave a sign of life."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from waooaw_celery.errors import NoHandler, UnknownAgent, UnknownMethod
from waooaw_celery.messages.message import TYPE_NAMES
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors

_NAMES = "waooaw:agents"
_RECORD = "waooaw:agent:"
#: Seconds for which an agent that was only named in a setting is taken for one that has not started yet.
UNSTARTED_SECONDS = 5.0
#: Facts of a worker's report that make its agent more than alive, the worst first.
_WORKER_STATES = (("stalled", "STALLED"), ("not_taking", "not taking"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """What is known of an agent.

    Attributes:
        name: its name.
        handlers: names of its handlers, or None for an agent that so far is only named in a setting.
        declared_at: when its worker first started, or None.
        last_seen: its last sign of life, or None.
        workers: node names of the workers that gave one lately.
        capabilities: tags of what it can do.
        read_at: the time by the clock that gave ``last_seen``, when this was read.
        reports: what each of these workers reports about itself, by node name: JSON objects.
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
        """Whether it gave a sign of life within this time, when this was read."""
        return self.last_seen is not None and (self.read_at or datetime.now(UTC)) - self.last_seen <= within

    def state(self, within: timedelta) -> str:
        """Return ``away``, ``alive``, or what keeps one of its workers from taking messages.

        Args:
            within: how long ago the last heartbeat of a living agent may be.
        """
        if not self.alive(within):
            return "away"
        for fact, state in _WORKER_STATES:
            if any(report.get(fact) for report in self.reports.values()):
                return state
        return "alive"


class AgentRegistry(ABC):
    """Known agents, kept where every process sees the same ones.

    Every method raises StoreUnavailable when what keeps them does not answer.

    Args:
        configured: names that are known by setting, without a worker having started yet.
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
        """Write down that this agent exists and lives: at its worker's start, and at every heartbeat.

        Args:
            name: the agent.
            handlers: names of all its handlers.
            worker: node name of the worker, such as ``analyst@host``.
            lifetime: seconds after which this worker no longer counts as living without another sign.
            capabilities: tags of what the agent can do.
            started_at: when this worker was started, where that is kept: in a ledger.
            report: what the worker reports about itself: an object of JSON values.
        """

    @abstractmethod
    def retire(self, name: str, worker: str) -> None:
        """Write down that this worker of the agent has stopped; the agent stays known."""

    @abstractmethod
    def _names(self) -> set[str]:
        """Return the names of all agents that were ever declared."""

    @abstractmethod
    def _read(self, names: list[str]) -> list[AgentRecord]:
        """Return a record for each name, an empty one for an agent that was never declared."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    def all(self) -> list[AgentRecord]:
        """Return every known agent, by name."""
        return self._read(sorted(self._configured | self._names()))

    def get(self, name: str) -> AgentRecord:
        """Return what is known of one agent.

        Raises:
            UnknownAgent: nothing is; the sentence lists who is known.
        """
        [record] = self._read([name])
        if record.declared_at is None and name not in self._configured:
            known = ", ".join(agent.name for agent in self.all()) or "none yet"
            raise UnknownAgent(
                f"no agent {name!r} was ever declared (known: {known}). Start its worker once, "
                f"or add {name!r} to the setting waooaw_agents"
            )
        return record

    def check_handler(self, target: HandlerName) -> None:
        """Check that an agent is known and handles this.

        A handler once seen is remembered, so that sending costs no question; one not seen is asked for anew.

        Raises:
            UnknownAgent: nobody ever declared the agent.
            NoHandler: it has no handler for this type of message.
            UnknownMethod: it has no such method.
        """
        if target.handler in self._handlers.get(target.agent, ()):
            return
        if time.monotonic() < self._unstarted.get(target.agent, 0.0):
            return
        handlers = self.get(target.agent).handlers
        if handlers is None:  # named in a setting, not yet started: what it will handle is not known
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
    """Known agents kept in Redis: a set of names, and for each a hash and its living workers.

    Args:
        client: connection to Redis.
        configured: names that are known by setting.
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
        told = {"handlers": json.dumps(sorted(handlers)), "capabilities": json.dumps(sorted(capabilities))}
        key = _RECORD + name
        with store_errors(f"declare the agent {name!r}"), self._client.pipeline() as pipeline:
            now = self._now()
            pipeline.sadd(_NAMES, name)
            pipeline.hsetnx(key, "declared_at", now.isoformat())
            pipeline.hset(key, mapping={**told, "last_seen": now.isoformat()})
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
        """Return the time by Redis's clock: a computer with a wrong one would end the workers of others."""
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
            answers = pipeline.execute()
            living = [
                (name, worker) for name, workers in zip(names, answers[1::2], strict=True) for worker in workers
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
            for name, fields, workers in zip(names, answers[::2], answers[1::2], strict=True)
        ]


def _report_key(name: str, worker: str) -> str:
    return f"{_RECORD}{name}:report:{worker}"
