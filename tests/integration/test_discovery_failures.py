"""What goes wrong in other registries: bare heartbeats, rows of an earlier life, lost registrations."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import WAIT_SECONDS, Broker, pass_time, until
from test_discovery import BEAT, Agents

from waooaw_celery import AgentApp, MessageBus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.agents import AgentStatus, Health, Registry
from waooaw_celery.errors import NoAgentAvailable
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.keys import StoreKeys
from waooaw_celery.testing.embedded import end_all

TEXT = {"text": {"body": "a"}}
pytestmark = pytest.mark.slow


@pytest.fixture
def agents(broker: Broker, app: AgentApp) -> Iterator[Agents]:
    """The agents of one test."""
    found = Agents(broker, app)
    yield found
    end_all(found.processes.values())


@pytest.fixture
def registry(app: AgentApp) -> Registry:
    """The registry of the test's application."""
    return Registry(app)


@pytest.fixture
def register(broker: Broker, registry: Registry) -> Iterator[Callable[..., Any]]:
    """Register agents that are no workers, without heartbeats of their own."""
    made: list[Any] = []

    def _register(**options: Any) -> Any:
        given = {"handlers": ["command"], "capabilities": ["print"], "ttl_seconds": 2, "keep_alive": False}
        made.append(registry.register(broker.name(), **{**given, **options}))
        return made[-1]

    yield _register
    for each in made:
        each.deregister()


def test_a_bare_heartbeat_does_not_bring_an_unhealthy_agent_back(
    registry: Registry, register: Callable[..., Any]
) -> None:
    """A heartbeat says that a process lives, not that it can do its work."""
    agent = register(ttl_seconds=30)
    agent.report("unhealthy", "the printer burns")
    for _ in range(3):
        agent.beat()
    info = registry.get(agent.name)
    until(lambda: registry.get(agent.name).health is Health.UNHEALTHY, "the report", 3)
    assert not registry.get(agent.name).routable
    agent.report("healthy")
    until(lambda: registry.get(agent.name).routable, "the recovery", 3)
    assert info.name == agent.name


def test_a_heartbeat_without_the_facts_of_health_does_not_count_as_healthy(
    app: AgentApp, registry: Registry, register: Callable[..., Any]
) -> None:
    """Such as one of a worker whose report failed."""
    agent = register(ttl_seconds=30)
    record = app.registry.get(agent.name)
    report = {name: fact for name, fact in record.reports[agent.instance].items() if name != "discovery"}
    app.registry.declare(agent.name, ["command"], agent.instance, 30, ["print"], None, report)
    until(lambda: registry.get(agent.name).health is Health.UNHEALTHY, "the report", 3)
    assert "does not report its health" in registry.get(agent.name).reasons[0]


def test_looking_at_an_agent_does_not_keep_it_alive(
    app: AgentApp, registry: Registry, register: Callable[..., Any]
) -> None:
    """Neither does a new status: only its own heartbeat moves the clock by which it is judged."""
    agent = register(ttl_seconds=1.5)
    until_dead = time.monotonic() + 5
    registry.set_status(agent.name, "maintenance")
    registry.set_status(agent.name, "online")
    while registry.get(agent.name).status is not AgentStatus.OFFLINE:
        registry.list()
        app.registry.everywhere()
        registry.find(capability="print")
        assert time.monotonic() < until_dead, "it lives for ever"
    with pytest.raises(NoAgentAvailable, match="offline"):
        MessageBus(app).send_to("tests", "capability:print", {})


def test_one_missed_heartbeat_does_not_end_the_routing(
    app: AgentApp, registry: Registry, register: Callable[..., Any]
) -> None:
    """Two missed ones neither: the time to live is three heartbeats long. Then it is DEGRADED first."""
    tag = f"t{uuid4().hex[:8]}"
    agent = register(ttl_seconds=6, tags=[tag])
    pass_time(3.5)
    assert MessageBus(app).send_to("tests", f"capability:print?tags={tag}", {}).to_agent == agent.name
    until(lambda: registry.get(agent.name).health is Health.DEGRADED, "the third heartbeat's time", 3)
    assert MessageBus(app).send_to("tests", f"capability:print?tags={tag}", {}).to_agent == agent.name
    until(lambda: registry.get(agent.name).status is AgentStatus.OFFLINE, "the time to live", 5)


def test_a_killed_agent_gets_nothing_after_its_time_to_live(
    agents: Agents, app: AgentApp, registry: Registry
) -> None:
    """It could not deregister. The other agent gets everything from then on."""
    killed, other = agents.start(), agents.start()
    os.killpg(agents.processes[killed].pid, signal.SIGKILL)
    agents.processes[killed].wait(WAIT_SECONDS)
    began = time.monotonic()
    until(lambda: registry.get(killed).status is AgentStatus.OFFLINE, "its time to live", 10)
    assert time.monotonic() - began <= 3 * BEAT + 1.2
    assert {Requests(app).request(agents.address, params=TEXT)["by"] for _ in range(20)} == {other}


def test_a_restarted_agent_is_not_healthy_by_the_rows_of_its_earlier_life(
    agents: Agents, registry: Registry, tmp_path: Any
) -> None:
    """Its earlier life was healthy. Its new one gets messages only after its own checks have passed."""
    file = tmp_path / "ready"
    file.touch()
    name = agents.start(check_file=str(file))
    until(lambda: registry.get(name).health is Health.HEALTHY, "the first check")
    before = registry.get(name).workers[0].facts
    os.killpg(agents.processes[name].pid, signal.SIGKILL)
    agents.processes[name].wait(WAIT_SECONDS)
    file.unlink()
    agents.start(name, check_file=str(file))
    seen = set()

    def is_new() -> bool:
        facts = registry.get(name).workers[0].facts if registry.get(name).workers else None
        if facts is None or before is None or facts.started_at == before.started_at:
            return False
        seen.add((facts.health, registry.get(name).routable))
        return facts.health is Health.UNHEALTHY

    until(is_new, "the failed check of the new life", 10)
    assert not any(routable for _, routable in seen), seen


def test_an_agent_that_lost_its_registration_registers_again_by_itself(
    agents: Agents, broker: Broker, app: AgentApp, registry: Registry
) -> None:
    """All that the store knows of it is deleted; its next heartbeat brings everything back."""
    name = agents.start(agent={"version": "1.4"})
    process = agents.processes[name]
    if app.settings.database_url is not None:
        with app.database.begin("lose the registration") as connection:
            for table, column in (("waooaw_agent_workers", "agent"), ("waooaw_agents", "name")):
                connection.execute(text(f"DELETE FROM {table} WHERE {column} = :name"), {"name": name})
    keys = StoreKeys()
    with connect(store_url(broker.redis_url)) as client:
        client.srem(keys.agents, name)
        for key in client.scan_iter(f"{keys.agent(name)}*"):
            client.delete(key)
    began = time.monotonic()

    def is_back() -> bool:
        found = [each for each in registry.list() if each.name == name]
        return bool(found) and found[0].versions == ("1.4",) and found[0].routable

    until(is_back, "the registration", 10)
    assert time.monotonic() - began < 2 * BEAT + 1.2
    assert process.poll() is None
    assert Requests(app).request(agents.address, params=TEXT)["by"] == name


def test_a_store_restored_from_yesterdays_backup_shows_no_dead_agent_as_alive(
    broker: Broker, app: AgentApp, registry: Registry, register: Callable[..., Any]
) -> None:
    """What counts is until when a worker lives, by the store's own clock, and not that a row is there."""
    agent = register(ttl_seconds=30)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    if app.settings.database_url is not None:
        with app.database.begin("restore a backup") as connection:
            connection.execute(
                text("UPDATE waooaw_agent_workers SET alive_until = :at WHERE agent = :name"),
                {"at": yesterday, "name": agent.name},
            )
    keys = StoreKeys()
    with connect(store_url(broker.redis_url)) as client:
        client.zadd(keys.workers(agent.name), {agent.instance: yesterday.timestamp()})
        client.persist(keys.report(agent.name, agent.instance))
    until(lambda: registry.get(agent.name).status is AgentStatus.OFFLINE, "the restored state", 3)
    assert not registry.get(agent.name).routable
    agent.beat()
    until(lambda: registry.get(agent.name).routable, "its next heartbeat", 3)


def test_an_order_of_yesterday_does_not_drain_todays_workers(
    agents: Agents, app: AgentApp, registry: Registry
) -> None:
    """A backup may contain an order to drain that was obeyed long ago."""
    name = agents.start()
    order = {"status": "draining", "by": "ada", "since": "2020-01-01T00:00:00+00:00", "reason": None}
    assert app.registry.set_order(name, {"status": order})
    beats = registry.get(name).last_seen
    until(lambda: registry.get(name).last_seen != beats, "a heartbeat", 5)
    assert registry.get(name).status is AgentStatus.ONLINE
    assert agents.processes[name].poll() is None
    assert Requests(app).request(agents.address, params=TEXT)["by"] == name


def test_two_workers_of_one_agent_with_other_versions_get_no_message_that_one_of_them_cannot_handle(
    agents: Agents, app: AgentApp
) -> None:
    """They share one queue: a message for version 2 could reach the worker of version 1."""
    name = agents.start(version="1.0", node=f"{(first := f'n{uuid4().hex[:6]}')}-one")
    agents.start(name, version="2.0", node=f"{first}-two")
    address = agents.address.replace("summarise", "summarise@>=2")
    with pytest.raises(NoAgentAvailable, match="1 of its 2 workers have another version"):
        Requests(app).request(address, params=TEXT)
    assert Requests(app).request(agents.address.replace("summarise", "summarise@>=1"), params=TEXT)["by"] == name
    agents.processes[f"{first}-one"].terminate()
    agents.processes[f"{first}-one"].wait(WAIT_SECONDS)
    until(lambda: len(Registry(app).get(name).workers) == 1, "the withdrawal", 5)
    assert Requests(app).request(address, params=TEXT)["by"] == name
