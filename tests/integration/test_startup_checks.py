"""A worker checks its broker before it starts: settings that lose messages are refused or warned of."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Queue
from process_pool import spawn
from redis import Redis
from support import PROBE_FOLDER, WAIT_SECONDS, until

from waooaw_celery import Agent, AgentApp, create_app
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end_all, valkey
from waooaw_celery.worker.health.startup_checks import check_broker, check_queues


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


def unread(app: AgentApp, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Check the queues of an application, and return the warnings."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "waooaw_celery"):
        check_queues(app)
    return [record.getMessage() for record in caplog.records]


def test_a_queue_of_ordinary_tasks_that_holds_messages_is_warned_of(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Old code sends to ``celery``, which the agent's worker does not read; the warning gives the option."""
    with (
        closing(create_app(broker_url=server, result_backend=server)) as app,
        closing(Celery("old", broker=server, set_as_current=False)) as old,
    ):
        Agent("reader", app)
        assert unread(app, caplog) == []
        old.send_task("old.tasks.work")
        old.send_task("old.tasks.work", priority=3)
        try:
            assert unread(app, caplog) == [
                "this worker reads only agent.reader, but celery holds 2 messages: these tasks wait for ever "
                "unless another worker reads them. To read them here, start this worker with "
                "-Q agent.reader,celery"
            ]
            app.amqp.queues.select(["agent.reader"])
            assert "celery holds 2 messages" in unread(app, caplog)[0]
            app.amqp.queues.select(["agent.reader", "celery"])
            assert unread(app, caplog) == []
        finally:
            old.control.purge()


def test_a_queue_that_the_settings_name_is_warned_of(server: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also when it is empty, unless ``-Q`` says which queues the worker reads, or the application has no agent."""
    routes = [
        {"images.*": {"queue": "images"}, "texts.tasks.count": "texts", "other.*": {"queue": "agent.other"}},
        (("sounds.*", {"queue": Queue("sounds")}), ("prices.*", {"priority": 3})),
        lambda name, *_, **__: {"queue": "computed"},
    ]
    settings = {"broker_url": server, "task_routes": routes, "task_default_queue": "jobs"}
    with closing(create_app(**settings)) as app:
        assert unread(app, caplog) == []
    with closing(create_app(**settings)) as app:
        Agent("reader", app)
        assert unread(app, caplog) == [
            "this worker reads only agent.reader, but task_routes names texts, task_routes names images, "
            "task_routes names sounds, task_default_queue names jobs: these tasks wait for ever unless another "
            "worker reads them. To read them here, start this worker with -Q agent.reader,texts,images,sounds,jobs"
        ]
        app.amqp.queues.select(["agent.reader"])
        assert unread(app, caplog) == []


@pytest.mark.rabbitmq
def test_an_unread_queue_is_warned_of_on_rabbitmq(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its messages are counted there too; a queue that does not exist holds none."""
    name = f"old-{uuid4().hex[:8]}"
    with closing(create_app(broker_url=amqp_url, task_routes={"old.*": {"queue": name}})) as app:
        Agent("reader", app)
        app.amqp.queues.select(["agent.reader"])
        assert name not in str(unread(app, caplog))
        with app.connection_for_write() as connection:
            queue = Queue(name)(connection.default_channel)
            queue.declare()
            try:
                connection.Producer().publish([[], {}, {}], routing_key=name)
                until(lambda: f"{name} holds 1 message" in str(unread(app, caplog)), "the warning")
            finally:
                queue.delete()


def test_queues_of_a_broker_that_does_not_answer_are_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that they were not checked."""
    with closing(create_app(broker_url="redis://127.0.0.1:1/0")) as app:
        Agent("reader", app)
        assert [text.partition(":")[0] for text in unread(app, caplog)] == ["the queues could not be checked"]


def test_a_worker_warns_of_unread_queues_at_its_start(server: str, tmp_path: Path) -> None:
    """The warning is in its log, and with its option the worker runs the waiting task."""
    (tmp_path / "reading.py").write_text(
        "from waooaw_celery import Agent, create_app\n"
        "app = create_app()\n"
        "agent = Agent('reading', app)\n"
        "@app.task(name='old.tasks.work')\n"
        "def work(n): return n + 1\n"
    )
    env = os.environ | {"CELERY_BROKER_URL": server, "CELERY_RESULT_BACKEND": server}
    command = [sys.executable, "-m", "celery", "-A", "reading", "worker", "-P", "solo", "--without-mingle"]
    with closing(Celery("old", broker=server, backend=server, set_as_current=False)) as old:
        waiting = old.send_task("old.tasks.work", [1])
        logs = [tmp_path / "first.log", tmp_path / "second.log"]
        for log in logs:
            log.touch()
        processes = [spawn(command, log=logs[0], env=env, cwd=tmp_path)]
        try:
            option = "-Q agent.reading,celery"
            until(lambda: f"start this worker with {option}" in logs[0].read_text(), "the warning")
            assert "celery holds 1 message:" in logs[0].read_text()
            processes.append(spawn([*command, *option.split()], log=logs[1], env=env, cwd=tmp_path))
            assert waiting.get(timeout=30) == 2
            assert "start this worker with" not in logs[1].read_text()
        finally:
            end_all(processes)
            waiting.forget()
