"""Servers for all tests: embedded ones, or those that WAOOAW_TEST_* names. No port or database is fixed."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import settings
from selection import pytest_addoption as pytest_addoption
from selection import pytest_collection_modifyitems as pytest_collection_modifyitems

from waooaw_celery.testing.embedded import postgres, valkey

for _name in [name for name in os.environ if name.startswith(("CELERY_", "WAOOAW_", "FLOWER_"))]:
    if not _name.startswith("WAOOAW_TEST_"):
        del os.environ[_name]  # each test sets what it needs


# An example may wait for the processor: no test is about the time of one.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """An empty Redis or Valkey: WAOOAW_TEST_REDIS_URL, or an embedded server."""
    server = os.environ.get("WAOOAW_TEST_REDIS_URL")
    if server is None:
        with valkey() as url:
            yield url
        return
    with _empty_database(server) as url:
        yield url


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """A RabbitMQ server: WAOOAW_TEST_AMQP_URL, or the one on localhost; if there is none, the test is skipped."""
    url = os.environ.get("WAOOAW_TEST_AMQP_URL", "amqp://guest:guest@localhost:5672//")
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "localhost", parts.port or 5672), timeout=2).close()
    except OSError as error:
        pytest.skip(f"RabbitMQ does not answer at {parts.hostname}:{parts.port or 5672} ({error})")
    return url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database: WAOOAW_TEST_POSTGRES_URL, or an embedded server."""
    server = os.environ.get("WAOOAW_TEST_POSTGRES_URL")
    if server is not None:
        yield server
        return
    with postgres() as url:
        yield url


@pytest.fixture(scope="module")
def dead_letters_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lock the dead-letter queues of the shared RabbitMQ against other test processes of this computer.

    A reader of a queue holds its messages for a short time, and others do not see them. A file of which no test
    of RabbitMQ was selected waits for nobody.
    """
    selected = [item for item in request.session.items if item.path == request.path]
    if not any(item.get_closest_marker("rabbitmq") for item in selected):
        yield
        return
    with _dead_letters_locked():
        yield


@pytest.fixture
def dead_letters_alone_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same lock for a single test, in a file whose other tests read no dead letters."""
    if request.node.get_closest_marker("rabbitmq") is None:
        yield
        return
    with _dead_letters_locked():
        yield


@contextmanager
def _dead_letters_locked() -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"waooaw-tests-dead-letters-{os.getuid()}"
    with path.open("w") as lock:
        deadline = time.monotonic() + 600
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pytest.fail("other tests held the lock of the dead-letter queues for ten minutes")
                time.sleep(0.1)
        yield


@contextmanager
def _empty_database(server: str) -> Iterator[str]:
    """Reserve an unused database of a Redis server, and empty it afterwards."""
    server = server.rstrip("/")
    with redis.Redis.from_url(server) as client:
        count = int(client.config_get("databases")["databases"])
    for number in range(count - 1, 0, -1):
        with redis.Redis.from_url(f"{server}/{number}") as client:
            if client.dbsize() == 0 and client.set("waooaw-tests", os.getpid(), nx=True, ex=3600):
                try:
                    yield f"{server}/{number}"
                finally:
                    client.flushdb()
                return
    raise pytest.UsageError(f"{server} has no empty database for the tests")
