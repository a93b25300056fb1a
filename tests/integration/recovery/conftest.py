"""A broker that loses messages, and applications with a ledger on it."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from support import Broker, lone_database

from waooaw_celery import AgentApp, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end_all, valkey

Process: TypeAlias = subprocess.Popen[bytes]


@pytest.fixture(scope="package")
def ledger_url(postgres_url: str) -> Iterator[str]:
    """A ledger for this folder, so that no other test's messages are open in it."""
    with lone_database(postgres_url) as url:
        app = create_app(waooaw_database_url=url)
        schema.upgrade(app.database)
        app.close()
        yield url


@pytest.fixture(scope="package")
def broker(redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey for this folder, which tests empty. Results are in another one."""
    with valkey() as url:
        yield Broker(url, redis_url, tmp_path_factory.mktemp("recovery"), ledger_url)


@pytest.fixture(scope="package")
def rabbitmq(
    amqp_url: str, redis_url: str, ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    broker = Broker(amqp_url, redis_url, tmp_path_factory.mktemp("recovery-amqp"), ledger_url)
    yield broker
    broker.clean()


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    with closing(broker.app()) as app:
        yield app
        gc.collect()  # Celery's results forget themselves: before their server stops


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., Process]]:
    """Start a worker that runs until the end of the test."""
    processes: list[Process] = []

    def _start(app: AgentApp, name: str, *options: str, on: Broker = broker, **settings: Any) -> Process:
        heartbeats: Any = {"waooaw_heartbeat_seconds": 0.3} | settings
        processes.append(on.start(name, app, *options, **heartbeats))
        return processes[-1]

    yield _start
    end_all(processes)


@pytest.fixture(params=["postgresql", "sqlite"])
def any_ledger(
    request: pytest.FixtureRequest, broker: Broker, tmp_path: Path, ledger_url: str
) -> Iterator[AgentApp]:
    """An application with its ledger on PostgreSQL, and one with its ledger on SQLite."""
    url = ledger_url if request.param == "postgresql" else f"sqlite:///{tmp_path}/ledger.sqlite"
    with closing(broker.app(waooaw_database_url=url)) as app:
        schema.upgrade(app.database)
        yield app
