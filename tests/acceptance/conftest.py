"""pytest-celery's fixtures with local processes: a Valkey server, and a worker of the agent ``greeter``."""

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
    """A folder with a short path: a socket's path has at most 107 characters, and pytest's paths are long."""
    with TemporaryDirectory(prefix="waooaw-") as path:
        yield Path(path)


@pytest.fixture
def valkey_container(folder: Path) -> Iterator[ValkeyContainer]:
    """The server that is the broker and the result backend."""
    container = ValkeyContainer(folder)
    with container.running():
        yield container


@pytest.fixture
def celery_broker(valkey_container: ValkeyContainer) -> CeleryTestBroker:
    """Replace the brokers that run in Docker by Valkey."""
    return CeleryTestBroker(valkey_container)


@pytest.fixture
def celery_backend(valkey_container: ValkeyContainer) -> CeleryTestBackend:
    """Replace the result backends that run in Docker by Valkey."""
    return CeleryTestBackend(valkey_container)


@pytest.fixture
def celery_worker(
    folder: Path, celery_worker_cluster_config: dict[str, Any], celery_setup_app: AgentApp
) -> Iterator[CeleryTestWorker]:
    """Replace the worker that runs in Docker by the agent's worker."""
    env = {
        "CELERY_BROKER_URL": celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0],
        "CELERY_RESULT_BACKEND": celery_worker_cluster_config["celery_backend_cluster_config"]["urls"][0],
    }
    container = WorkerContainer("greeter", folder, env)
    with container.running():
        yield CeleryTestWorker(container, celery_setup_app)


@pytest.fixture
def celery_setup_cls() -> type[AgentSetup]:
    """Use a setup whose application can send to agents."""
    return AgentSetup


@pytest.fixture
def celery_setup_app(celery_setup_app: AgentApp) -> Iterator[AgentApp]:
    """Close the application's connections after the test."""
    yield celery_setup_app
    celery_setup_app.close()
