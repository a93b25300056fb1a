"""What discovery keeps in each store: in Redis, and in a ledger in SQLite or PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from waooaw_celery.agents import Capability
from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.declaration import make_profile
from waooaw_celery.ledger.agents import LedgerAgentRegistry
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.store.agents.redis import RedisAgentRegistry
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.agents.shared_declarations import SharedDeclarations
from waooaw_celery.store.connection import connect, store_url


@pytest.fixture(params=["redis", "sqlite", "postgresql", "postgresql with redis"])
def registry(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[AgentRegistry]:
    """Each store in turn."""
    kind = request.param
    redis = RedisAgentRegistry(connect(store_url(redis_url)))
    if kind == "redis":
        yield redis
        redis.close()
        return
    url = (
        f"sqlite:///{tmp_path / 'ledger.sqlite'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    )
    database = Database(database_url(url))
    schema.upgrade(database)
    shared = SharedDeclarations(redis) if kind.endswith("redis") else None
    registry = LedgerAgentRegistry(database, shared=shared)
    yield registry
    registry.close()
    redis.close()


def declare(registry: AgentRegistry, name: str, worker: str, version: str, lifetime: float = 30) -> str:
    """Declare a worker of an agent, and return the digest of what it declares."""
    found = make_profile(version=version, capabilities=[Capability(name="sum", version=version, method="add")])
    profile = found.digest(), found.to_dict()
    report = {"profile": profile[0], "running": 3}
    registry.declare(name, ["add"], worker, lifetime, ["sum"], None, report, profile)
    return profile[0]


def test_what_workers_declare_is_read_by_its_digest(registry: AgentRegistry) -> None:
    """Two versions of an agent declare different things, and a worker that is gone nothing."""
    name = f"sum-{uuid4().hex[:8]}"
    one, two = declare(registry, name, "a@one", "1"), declare(registry, name, "a@two", "2")
    record = registry.get(name)
    assert {node: report["profile"] for node, report in record.reports.items()} == {"a@one": one, "a@two": two}
    assert set(record.alive_until) == {"a@one", "a@two"}
    wanted = [(name, "a@one", one), (name, "a@two", two), (name, "a@three", "unknown")]
    found = registry.profiles(wanted)
    assert {digest: each["version"] for digest, each in found.items()} == {one: "1", two: "2"}
    assert registry.profiles([]) == {}
    cache = DirectoryCache(lambda: registry)
    versions = cache.refresh().agents[name].versions
    assert versions == ("1", "2")


def test_an_order_outlasts_heartbeats_and_is_removed(registry: AgentRegistry) -> None:
    """It is stored apart from what workers declare, and only for agents that are known."""
    name = f"sum-{uuid4().hex[:8]}"
    assert not registry.set_order(name, {"weight": 0})
    declare(registry, name, "a@one", "1")
    assert registry.get(name).order is None
    assert registry.set_order(name, {"weight": 0.5})
    declare(registry, name, "a@one", "1")
    assert registry.get(name).order == {"weight": 0.5}
    assert registry.set_order(name, None)
    assert registry.get(name).order is None


def test_only_an_agent_without_living_workers_is_forgotten(registry: AgentRegistry) -> None:
    """A worker that was withdrawn no longer counts."""
    name = f"sum-{uuid4().hex[:8]}"
    declare(registry, name, "a@one", "1")
    assert not registry.forget(name)
    registry.retire(name, "a@one")
    assert registry.forget(name)
    assert name not in [record.name for record in registry.everywhere()]
    assert not registry.forget(name)


def test_a_change_is_announced_where_there_is_a_redis(registry: AgentRegistry, redis_url: str) -> None:
    """Without one, waiting for a change lasts as long as it was told to."""
    has_redis = isinstance(registry, RedisAgentRegistry) or registry._shared is not None  # type: ignore[attr-defined]
    heard: list[bool] = []
    waiting = threading.Thread(target=lambda: heard.append(registry.await_change(3.0 if has_redis else 0.2)))
    waiting.start()
    other = RedisAgentRegistry(connect(store_url(redis_url)))
    while waiting.is_alive() and has_redis:  # it may not have subscribed yet
        other.announce("sum")
        waiting.join(0.1)
    waiting.join(10)
    other.close()
    assert heard == [has_redis]
