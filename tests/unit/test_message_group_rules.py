"""The keys of one worker's messages: what it refuses at its start, and what becomes of a message in an outage."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from support import until

from waooaw_celery import Agent, AgentApp, Message, MessageType, create_app
from waooaw_celery.broker.incoming.delivery import Claim
from waooaw_celery.broker.incoming.guard import Delivery
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.worker.health.startup_checks import check_groups, check_key_pool
from waooaw_celery.worker.ordering import message_groups
from waooaw_celery.worker.ordering.message_groups import MessageGroups

REDIS, RABBITMQ = "redis://localhost:1/0", "amqp://localhost:1//"
LEDGER = {"waooaw_database_url": "sqlite:////nowhere/ledger.sqlite"}


def application(url: str = REDIS, key: str | None = None, **settings: Any) -> AgentApp:
    """Return an application, perhaps with an agent whose commands have a key."""
    app = create_app("tests", broker_url=url, result_backend="redis://localhost:1/0", **settings)
    options: dict[str, Any] = {} if key is None else {"key": key}

    @Agent("probe", app).on(MessageType.COMMAND, **options)
    def command(message: Message) -> None:
        """Do nothing."""

    return app


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"url": RABBITMQ, "key": "from_agent"}, r"probe\.command has key=, which needs a ledger on RabbitMQ"),
        (
            {"url": RABBITMQ, "key": "from_agent", **LEDGER, "waooaw_audit_mode": "batched"},
            r"probe\.command has key=, .* set waooaw_audit_mode to strict",
        ),
        ({"url": RABBITMQ, "waooaw_fair_queues": True}, "waooaw_fair_queues is set, which needs Redis"),
        ({"url": RABBITMQ, "waooaw_priority_share": 0.1}, "waooaw_priority_share is set, which needs Redis"),
        ({"key": "from_agent", "waooaw_redis_transport": "kombu"}, "remove waooaw_redis_transport"),
        ({"waooaw_fair_weights": {"planner": 2}}, "set waooaw_fair_queues too"),
    ],
)
def test_a_worker_that_cannot_group_messages_does_not_start(settings: dict[str, Any], text: str) -> None:
    """The error says what to change."""
    with pytest.raises(ConfigurationError, match=text):
        check_groups(application(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"url": RABBITMQ},
        {"url": RABBITMQ, "key": "from_agent", **LEDGER},
        {"key": "from_agent", "waooaw_fair_queues": True, "waooaw_fair_weights": {"a": 2}},
    ],
)
def test_other_workers_start(settings: dict[str, Any]) -> None:
    """Those that group nothing, and those on Redis."""
    check_groups(application(**settings))


@pytest.mark.parametrize(("is_green", "has_loop"), [(True, False), (False, False)])
def test_a_worker_on_rabbitmq_needs_an_event_loop_for_keys(is_green: bool, has_loop: bool) -> None:
    """It holds messages there until it is their turn."""
    worker = SimpleNamespace(pool_cls=SimpleNamespace(is_green=is_green), use_eventloop=has_loop)
    check_key_pool(application(key="from_agent"), worker)
    check_key_pool(application(RABBITMQ), worker)
    with pytest.raises(ConfigurationError, match="start the worker with --pool prefork, threads or solo"):
        check_key_pool(application(RABBITMQ, key="from_agent", **LEDGER), worker)


def test_a_running_message_is_cancelled_by_one_thread_at_a_time() -> None:
    """However many later messages of its key arrive."""
    asked, go_on = list[str](), threading.Event()

    def get(message_id: str) -> Any:
        asked.append(message_id)
        go_on.wait(30)
        return SimpleNamespace(status=SimpleNamespace(final=True))

    app = SimpleNamespace(tasks={}, receipts=SimpleNamespace(get=get))
    groups = MessageGroups(app)
    for _ in range(20):
        groups._cancel("m")
    until(lambda: asked, "the first thread")
    go_on.set()
    until(lambda: not groups._cancelling, "its end")
    assert asked == ["m"]
    groups._cancel("m")
    until(lambda: len(asked) == 2, "another one")


def test_a_due_message_that_cannot_go_back_is_not_held(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lease ends, and the broker delivers it again."""

    def fail(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(message_groups, "requeue", fail)
    released = list[str]()
    channel: Any = object.__new__(Channel)
    channel._scripts_client, channel._qos = object(), SimpleNamespace(pop_held=released.extend)
    delivery = Delivery({"headers": {"eta": "2026-01-01T00:00:00+00:00"}})
    delivery.claim = Claim("tag", "agent.probe", "agent.probe", b"{}")
    request = SimpleNamespace(
        message=SimpleNamespace(channel=channel, _raw=delivery), name="probe.command", request_dict={}, id="m"
    )
    assert MessageGroups(application(key="from_agent")).returns_when_due(request)
    assert released == ["tag"]
    assert "goes back to its queue when its lease ends: away" in caplog.text
