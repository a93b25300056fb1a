"""Agents in projects of web frameworks: FastAPI's lifespan, Django's modules, eager tasks, and the doctor."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from support import Broker

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.agents.integrations.fastapi import agents_lifespan
from waooaw_celery.aio import RequestResponseHandler
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.diagnostics.finding import State
from waooaw_celery.maintenance.diagnostics.project import project_changes


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    """Valkey with the ledger."""
    return ledger_broker


def test_a_service_of_fastapi_asks_an_agent(broker: Broker, probe: str) -> None:
    """It checks the settings at its start, answers from an agent, and closes its connections at its end."""
    fastapi = pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    events: list[str] = []

    @asynccontextmanager
    async def own(_: Any) -> AsyncIterator[dict[str, str]]:
        events.append("begin")
        yield {"from": "own"}
        events.append("end")

    agents = broker.app()
    api = fastapi.FastAPI(lifespan=agents_lifespan(agents, inner=own))

    @api.get("/echo/{value}")
    async def echo(value: str) -> Any:
        return await RequestResponseHandler(agents).request(probe, "echo", {"value": value}, timeout=20)

    with TestClient(api) as client:
        assert client.get("/echo/hello").json() == "hello"
    assert events == ["begin", "end"]


def test_a_service_with_a_wrong_setting_does_not_start(broker: Broker) -> None:
    """The error names the setting."""
    pytest.importorskip("fastapi")
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    with (
        closing(broker.app(waooaw_routing_policy="nonsense")) as app,
        pytest.raises(ConfigurationError, match="routing_policy"),
        TestClient(Starlette(lifespan=agents_lifespan(app))),
    ):
        pass


@pytest.mark.parametrize(("related", "found"), [("tasks", {"one", "agent"}), ("jobs", {"job"})])
def test_the_modules_of_agents_are_discovered(
    related: str, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``autodiscover_tasks`` imports ``agents`` beside ``tasks``; another name is imported alone."""
    package = tmp_path / "discovered"
    package.mkdir()
    (package / "__init__.py").write_text("seen = set()\n")
    for module, name in {"tasks": "one", "agents": "agent", "jobs": "job"}.items():
        (package / f"{module}.py").write_text(f"from discovered import seen\nseen.add('{name}')\n")
    monkeypatch.syspath_prepend(tmp_path)
    app = AgentApp("discovering", set_as_current=False)
    app.autodiscover_tasks(["discovered"], related, force=True)
    assert sys.modules["discovered"].seen == found
    for name in [name for name in sys.modules if name.startswith("discovered")]:
        del sys.modules[name]


def test_a_message_in_an_application_with_eager_tasks_logs_a_warning(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, because messages go through the broker although a ``.delay`` would not."""
    with closing(broker.app(task_always_eager=True)) as app:
        name = broker.name()
        app.registry.declare(name, ["command"], f"{name}@nowhere", lifetime=60.0)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                MessageBus(app).send(Message(from_agent="tests", to_agent=name))
    assert sum("task_always_eager" in record.message for record in caplog.records) == 1


def test_no_framework_is_imported_with_the_package() -> None:
    """Neither Django's ORM, nor FastAPI, nor fsspec. (Kombu itself imports a part of Django.)"""
    program = (
        "import sys, waooaw_celery; from waooaw_celery import *; from waooaw_celery.agents import *; "
        "from waooaw_celery.agents.integrations import django, fastapi; "
        "print(sorted({'django.db', 'fastapi', 'starlette', 'fsspec'} & set(sys.modules)))"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": ""}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=env, timeout=60)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")  # Celery 6 drops `priority=`
def test_what_changes_for_a_project_names_what_it_sets() -> None:
    """A project keeps its own values; pickle, numbers as priorities and names like handlers are named."""
    app = Celery("old", broker="redis://localhost/0", set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        worker_prefetch_multiplier=4,
        task_time_limit=60,
        result_expires=86_400,
        task_default_queue="jobs",
        task_serializer="pickle",
        accept_content=["pickle", "json"],
        task_always_eager=True,
        broker_transport_options={"visibility_timeout": 3600},
        beat_schedule={"nightly": {"task": "shop.count", "schedule": 60, "options": {"priority": 9}}},
    )

    @app.task(name="shop.count", priority=3, expires=5, shared=False)
    def count() -> None:
        """Count."""

    found = {finding.name: finding for finding in project_changes(app)}
    kept = ("acknowledgement", "prefetch", "time limit", "results", "queues")
    assert {found[name].state for name in kept} == {State.OK}
    for name, words in {
        "serializer": "pickle",
        "priorities": "task shop.count, schedule nightly",
        "expiry": "shop.count have an expiry",
        "task names": "named like handlers: shop.count",
        "eager tasks": "task_always_eager",
        "broker": "3600 s",
    }.items():
        assert found[name].state is State.WARN
        assert words in found[name].sentence
    unordered = Celery("sqs", broker="sqs://", set_as_current=False)
    [broker] = [finding for finding in project_changes(unordered) if finding.name == "broker"]
    assert broker.state is State.WARN
