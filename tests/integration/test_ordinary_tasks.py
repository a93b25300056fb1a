"""Ordinary Celery tasks whose names have two parts, sent by name from processes that know nothing of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from celery.beat import ScheduleEntry, Scheduler
from process_pool import spawn
from support import PROBE_FOLDER, Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, RequestResponseHandler
from waooaw_celery.errors import UnknownAgent, UnknownMethod
from waooaw_celery.testing.embedded import end_all


@pytest.fixture(params=["plain", "ours"])
def queue(request: pytest.FixtureRequest, broker: Broker) -> Iterator[str]:
    """The queue of a worker of ordinary tasks: one of plain Celery, one of an AgentApp without agents."""
    name = broker.name()
    env = (
        os.environ
        | {
            "KIND": request.param,
            "SHOP_QUEUE": name,
            "CELERY_BROKER_URL": broker.url,
            "CELERY_RESULT_BACKEND": broker.redis_url,
            "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
        }
        | ({"WAOOAW_DATABASE_URL": broker.database_url} if broker.database_url else {})
    )
    command = [sys.executable, "-m", "celery", "-A", "ordinary_worker", "worker", "-n", f"{name}@t", "-c", "1"]
    log = broker.folder / f"{name}.log"
    process = spawn([*command, "--without-mingle", "--without-gossip"], log=log, env=env, cwd=PROBE_FOLDER)
    app = broker.app()
    try:
        until(lambda: app.control.ping([f"{name}@t"], timeout=0.5), f"the start of {name}")
        yield name
    finally:
        app.close()
        end_all([process])


@pytest.fixture
def shop(broker: Broker, queue: str) -> Iterator[AgentApp]:
    """An application without a sender that has declared no agent, as in a web process."""
    app = broker.app(waooaw_sender=None, task_default_queue=queue)
    yield app
    app.close()


def test_an_ordinary_task_is_sent_by_name(broker: Broker, queue: str, shop: AgentApp) -> None:
    """By name, by signature, with a queue and with a route, a two-part name of no agent reaches its worker."""
    routed = broker.app(waooaw_sender=None, task_routes={"shop.*": {"queue": queue}})
    elsewhere = broker.app(waooaw_sender=None)
    results = [
        shop.send_task("shop.mul", (2, 3)),
        shop.signature("shop.mul", args=(2, 3)).delay(),
        shop.send_task("shop.mul", kwargs={"a": 2, "b": 3}),
        elsewhere.send_task("shop.mul", (2, 3), queue=queue),
        elsewhere.signature("shop.mul", args=(2, 3), queue=queue).apply_async(),
        routed.send_task("shop.mul", (2, 3)),
    ]
    assert [result.get(timeout=20) for result in results] == [6] * 6
    assert shop.send_task("shop.flaky", (1,)).get(timeout=20) == 2
    for app in (routed, elsewhere):
        app.close()


def test_an_ordinary_task_in_a_canvas(shop: AgentApp) -> None:
    """Chains, groups and chords of ordinary tasks with two-part names run as in Celery."""

    def mul(*args: int) -> Any:
        return shop.signature("shop.mul", args=args)

    assert chain(mul(2, 3), mul(4)).apply_async().get(timeout=20) == 24
    assert group(mul(2, 3), mul(4, 5)).apply_async().get(timeout=20) == [6, 20]
    task = mul(2, 3).set(link=mul(10)).apply_async()
    assert task.get(timeout=20) == 6
    total = chord([mul(2, 3), mul(4, 5)])(shop.signature("shop.total"))
    assert total.get(timeout=20) == 26


def test_a_beat_entry_of_an_ordinary_task(shop: AgentApp) -> None:
    """Beat sends an entry whose task only other processes know."""
    entry = ScheduleEntry("mul", "shop.mul", schedule=timedelta(hours=1), args=(3, 4), app=shop)
    result = Scheduler(app=shop, lazy=True).apply_async(entry, advance=False)
    assert result.get(timeout=20) == 12


def test_an_ordinary_task_follows_an_agents_handler(broker: Broker, queue: str, probe: str) -> None:
    """A chain from an agent's method to an ordinary task: the agent's worker has not declared ``shop`` either."""
    app = broker.app()
    steps = chain(
        app.signature(f"{probe}.echo", kwargs={"value": 7}),
        app.signature("shop.mul", args=(6,), queue=queue),
    )
    assert steps.apply_async().get(timeout=20) == 42
    app.close()


def test_misspelt_agents_are_still_refused(app: AgentApp, probe: str) -> None:
    """The verbs refuse an agent that is not known; by name, so are an agent's queue and its missing methods."""
    with pytest.raises(UnknownAgent):
        MessageBus(app).send(Message(from_agent="tests", to_agent="shop"))
    with pytest.raises(UnknownAgent):
        RequestResponseHandler(app).request("shop", "mul", {"a": 1, "b": 2})
    with pytest.raises(UnknownAgent):
        app.send_task("shop.mul", (1, 2), queue="agent.shop")
    with pytest.raises(UnknownMethod):
        app.send_task(f"{probe}.no_such_method")


def test_a_route_says_that_a_task_is_ordinary(broker: Broker, probe: str, queue: str) -> None:
    """A task that a known agent does not have is ordinary if ``task_routes`` routes it; a handler stays one."""
    app = broker.app(task_routes={f"{probe}.*": {"queue": queue}})
    assert app.target(f"{probe}.mul") is None
    assert app.target(f"{probe}.echo") == (probe, "echo")
    assert app.send_task(f"{probe}.echo", kwargs={"value": 1}).get(timeout=20) == 1
    app.close()


def test_a_name_like_an_agents_is_warned_of_once(
    broker: Broker, probe: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An ordinary task whose name looks like that of a known agent is published, and a warning names both."""
    app = broker.app(task_default_queue=broker.name())
    with caplog.at_level("WARNING"):
        for _ in range(2):
            app.send_task(f"{probe}x.command", ({},), ignore_result=True)
    warned = [record.getMessage() for record in caplog.records if "ordinary Celery tasks" in record.getMessage()]
    assert len(warned) == 1
    assert probe in warned[0]
    with app.connection_for_write() as connection, connection.channel() as channel:
        app.amqp.queues[app.conf.task_default_queue](channel).delete()
    app.close()
