"""A worker checks its broker before it starts: settings that lose messages are refused or warned of."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from support import PROBE_FOLDER, WAIT_SECONDS

from waooaw_celery import Agent, create_app
from waooaw_celery.embedded import valkey
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.store.connection import store_url
from waooaw_celery.worker.health.startup_checks import check_broker


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of these tests, whose settings they change."""
    with valkey() as url:
        yield url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    """A connection to it; its settings are restored afterwards."""
    with Redis.from_url(store_url(server), decode_responses=True) as client:
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "appendonly")}
        yield client
        for name, value in before.items():
            client.config_set(name, value)


def warnings(url: str, caplog: pytest.LogCaptureFixture, **settings: object) -> list[str]:
    """Check a broker, and return the actions of the warnings."""
    with closing(create_app(broker_url=url, **settings)) as app, caplog.at_level(logging.INFO, "waooaw_celery"):
        check_broker(app)
    return [record.__dict__["action"] for record in caplog.records]


def test_a_redis_that_evicts_queues_is_refused(
    server: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what to set. ``waooaw_allow_eviction`` allows it, with a warning."""
    redis.config_set("maxmemory", "100mb")
    redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match=r"allkeys-lru.*noeviction.*waooaw_allow_eviction"):
        warnings(server, caplog)
    assert "broker_evicts" in warnings(server, caplog, waooaw_allow_eviction=True)


def test_a_redis_without_a_memory_limit_is_accepted(
    server: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its eviction policy has no effect."""
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("maxmemory", "0")
    assert "broker_evicts" not in warnings(server, caplog)


def test_a_redis_without_persistence_is_warned_of(
    server: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``appendonly yes`` there is no warning."""
    redis.config_set("appendonly", "no")
    assert warnings(server, caplog) == ["broker_forgets"]
    caplog.clear()
    redis.config_set("appendonly", "yes")
    assert warnings(server, caplog) == []


def test_a_broker_that_does_not_answer_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that its settings were not checked. Celery connects when it is back."""
    assert warnings("redis://127.0.0.1:1/0", caplog) == ["broker_unchecked"]


@pytest.mark.rabbitmq
def test_a_handler_that_outlives_rabbitmqs_consumer_timeout_is_warned_of(
    amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ takes a message from a worker that holds it for longer than half an hour."""
    with closing(create_app(broker_url=amqp_url)) as app:
        agent = Agent("patient", app)
        agent.method(time_limit=1800)(long)
        agent.method(time_limit=1799)(short)
        with caplog.at_level(logging.INFO, "waooaw_celery"):
            check_broker(app)
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == ["patient.long"]


def long() -> None:
    """Have a time limit of half an hour."""


def short() -> None:
    """Have a shorter time limit."""


def test_a_worker_does_not_start_on_a_redis_that_evicts_queues(server: str, redis: Redis, tmp_path: Path) -> None:
    """It ends with the error, and without a traceback."""
    redis.config_set("maxmemory", "100mb")
    redis.config_set("maxmemory-policy", "allkeys-random")
    (tmp_path / "evicted.py").write_text(
        "from waooaw_celery import Agent, create_app\napp = create_app()\nagent = Agent('evicted', app)\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "evicted", "worker", "-c", "1", "--without-mingle"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": "", "CELERY_BROKER_URL": server, "PYTHONPATH": f"{tmp_path}:{PROBE_FOLDER}"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert ended.returncode != 0
    assert "maxmemory-policy allkeys-random" in ended.stderr
    assert "Traceback" not in ended.stderr
