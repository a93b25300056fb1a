"""The agent registry in Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.agents.worker_handlers import known_handlers, split_reports, stored_report
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.keys import StoreKeys


class RedisAgentRegistry(AgentRegistry):
    """The known agents in Redis: a set of names, and for each agent a hash and a sorted set of its living workers.

    Args:
        client: client of the Redis.
        configured: names of agents that are known before a worker of theirs has started.
        prefix: what stands before every key.
    """

    def __init__(self, client: Client, configured: Iterable[str] = (), prefix: str = "") -> None:
        super().__init__(configured)
        self._client = client
        self._keys = StoreKeys(prefix)
        self._heard: Any = None
        text = files("waooaw_celery.store").joinpath("lua", "declare.lua").read_text(encoding="utf-8")
        self._declare = client.register_script(text)

    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
        profile: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        handlers, own = sorted(handlers), self._keys
        keys = [own.agents, own.agent(name), own.workers(name), own.report(name, worker)]
        declared = [name, json.dumps(handlers), json.dumps(sorted(capabilities))]
        living = [worker, lifetime, json.dumps(stored_report(report, handlers))]
        if profile is not None:
            keys.append(own.profile(name, profile[0]))
            living.append(json.dumps(profile[1]))
        with store_errors(f"declare the agent {name!r}"):
            self._declare(keys, [*declared, *living])

    def retire(self, name: str, worker: str) -> None:
        with store_errors(f"retire a worker of {name!r}"):
            self._client.zrem(self._keys.workers(name), worker)
            self._client.delete(self._keys.report(name, worker))

    def profiles(self, workers: Iterable[tuple[str, str, str]]) -> dict[str, Mapping[str, Any]]:
        wanted = {digest: self._keys.profile(name, digest) for name, _, digest in workers}
        with store_errors("look up what agents declare"):
            texts = self._client.mget(list(wanted.values())) if wanted else []
        return {digest: json.loads(text) for digest, text in zip(wanted, texts, strict=True) if text}

    def set_order(self, name: str, order: Mapping[str, Any] | None) -> bool:
        key = self._keys.agent(name)
        with store_errors(f"change the agent {name!r}"):
            if not self._client.sismember(self._keys.agents, name):
                return False
            if order is None:
                self._client.hdel(key, "order")
            else:
                self._client.hset(key, "order", json.dumps(order))
        return True

    def forget(self, name: str) -> bool:
        with store_errors(f"forget the agent {name!r}"):
            if self._client.zcount(self._keys.workers(name), self._now().timestamp(), "+inf"):
                return False
            self._client.delete(self._keys.agent(name), self._keys.workers(name))
            return bool(self._client.srem(self._keys.agents, name))

    def announce(self, name: str) -> None:
        with store_errors(f"announce a change of {name!r}"):
            self._client.publish(self._keys.changes, name)

    def await_change(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        with store_errors("wait for changes of agents"):
            if self._heard is None:
                self._heard = self._client.pubsub(ignore_subscribe_messages=True)
                self._heard.subscribe(self._keys.changes)
            while (left := ends_at - time.monotonic()) > 0:
                if self._heard.get_message(timeout=left) is not None:
                    while self._heard.get_message(timeout=0) is not None:
                        pass
                    return True
        return False

    def close(self) -> None:
        if self._heard is not None:
            self._heard.close()
            self._heard = None
        self._client.close()

    def _now(self) -> datetime:
        """Return the time of Redis's clock, by which workers count as living."""
        return datetime.fromtimestamp(redis_time(self._client.time()), UTC)

    def _names(self) -> set[str]:
        with store_errors("list the agents"):
            return set(self._client.smembers(self._keys.agents))

    def _read(self, names: list[str]) -> list[AgentRecord]:
        with store_errors("look up agents"), self._client.pipeline(transaction=False) as pipeline:
            now = self._now()
            for name in names:
                pipeline.hgetall(self._keys.agent(name))
                pipeline.zrangebyscore(self._keys.workers(name), now.timestamp(), "+inf", withscores=True)
            replies = pipeline.execute()
            living = [
                (name, worker) for name, workers in zip(names, replies[1::2], strict=True) for worker, _ in workers
            ]
            texts = self._client.mget([self._keys.report(*each) for each in living]) if living else []
        stored: dict[str, dict[str, Any]] = {name: {} for name in names}
        for (name, worker), text in zip(living, texts, strict=True):
            if text:
                stored[name][worker] = json.loads(text)
        split = {name: split_reports(stored[name]) for name in names}
        return [
            AgentRecord(
                name=name,
                handlers=known_handlers(
                    json.loads(fields.get("handlers", "null")), [worker for worker, _ in workers], split[name][1]
                ),
                declared_at=_time(fields["declared_at"]) if fields else None,
                last_seen=_time(fields["last_seen"]) if fields else None,
                workers=tuple(worker for worker, _ in workers),
                capabilities=tuple(json.loads(fields["capabilities"])) if fields else (),
                read_at=now,
                reports=split[name][0],
                worker_handlers=split[name][1],
                alive_until={worker: _time(until) for worker, until in workers},
                order=json.loads(fields["order"]) if fields.get("order") else None,
            )
            for name, fields, workers in zip(names, replies[::2], replies[1::2], strict=True)
        ]


def _time(text: str | float) -> datetime:
    """Return a time that the server has written, in seconds since 1970."""
    return datetime.fromtimestamp(float(text), UTC)
