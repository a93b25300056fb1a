"""pytest-celery's fixtures, over processes: one Valkey, and one worker that is the agent ``greeter``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from process_cluster import AgentSetup, ValkeyContainer, WorkerContainer
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryTestWorker

from waooaw_celery import AgentApp


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a socket has at most 107 characters, and pytest's own are long."""
    with TemporaryDirectory(prefix="waooaw-") as path:
        yield Path(path)


@pytest.fixture
def valkey_container(folder: Path) -> Iterator[ValkeyContainer]:
    """The server that is both broker and result backend."""
    container = ValkeyContainer(folder)
    with container.running():
        yield container


@pytest.fixture
def celery_broker(valkey_container: ValkeyContainer) -> CeleryTestBroker:
    """Put Valkey in the place of the brokers that run in Docker."""
    return CeleryTestBroker(valkey_container)


@pytest.fixture
def celery_backend(valkey_container: ValkeyContainer) -> CeleryTestBackend:
    """Put Valkey in the place of the result backends that run in Docker."""
    return CeleryTestBackend(valkey_container)


@pytest.fixture
def celery_worker(
    folder: Path, celery_worker_cluster_config: dict[str, Any], celery_setup_app: AgentApp
) -> Iterator[CeleryTestWorker]:
    """Put the agent's worker in the place of the one that runs in Docker."""
    env = {
        "CELERY_BROKER_URL": celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0],
        "CELERY_RESULT_BACKEND": celery_worker_cluster_config["celery_backend_cluster_config"]["urls"][0],
    }
    container = WorkerContainer("greeter", folder, env)
    with container.running():
        yield CeleryTestWorker(container, celery_setup_app)


@pytest.fixture
def celery_setup_cls() -> type[AgentSetup]:
    """Let the setup's application be one that speaks with agents."""
    return AgentSetup


@pytest.fixture
def celery_setup_app(celery_setup_app: AgentApp) -> Iterator[AgentApp]:
    """Close the application's connections after the test."""
    yield celery_setup_app
    celery_setup_app.close()
