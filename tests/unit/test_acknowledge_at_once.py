"""When a worker acknowledges a message: at once on RabbitMQ and Redis, later on Kombu's own transports."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery

from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.worker.consumer import AgentConsumer


class Hub:
    """An event loop that only notes what it is to call."""

    def __init__(self) -> None:
        self.later: list[object] = []

    def call_soon(self, callback: object) -> object:
        self.later.append(callback)
        return callback


def consumer(driver: str, channel: object = None) -> AgentConsumer:
    """Return a consumer of a plain Celery application, whose event loop belongs to this thread."""
    found: Any = object.__new__(AgentConsumer)
    found.app, found.hub, found.strategies, found.on_task_message = Celery("plain"), Hub(), {}, set()
    found.connection = SimpleNamespace(transport=SimpleNamespace(driver_type=driver))
    found.initial_prefetch_count, found.task_consumer = 1, SimpleNamespace(channel=channel)
    found.create_task_handler()
    return cast("AgentConsumer", found)


def test_a_message_of_rabbitmq_is_acknowledged_at_once() -> None:
    """The loop may wait for events before its next turn, and RabbitMQ waits for the acknowledgement."""
    done: list[str] = []
    worker = consumer("amqp")
    worker.call_soon_ack(done.append, "acknowledged")
    assert done == ["acknowledged"]
    assert worker.hub.later == []


def test_another_thread_leaves_it_to_the_loop() -> None:
    """A connection belongs to the thread of the loop."""
    done: list[str] = []
    worker = consumer("amqp")
    thread = threading.Thread(target=worker.call_soon_ack, args=(done.append, "acknowledged"))
    thread.start()
    thread.join(10)
    assert done == []
    assert len(worker.hub.later) == 1


def test_on_redis_it_is_only_noted_for_the_next_claim() -> None:
    """To wait for the next turn of the loop would only cost time."""
    done: list[str] = []
    worker = consumer("redis", object.__new__(Channel))
    worker.call_soon_ack(done.append, "acknowledged")
    assert done == ["acknowledged"]
    assert worker.hub.later == []


def test_on_kombus_own_transport_it_is_left_to_the_loop() -> None:
    """There it is a command, which waits for the server."""
    done: list[str] = []
    worker = consumer("redis")
    worker.call_soon_ack(done.append, "acknowledged")
    assert done == []
    assert len(worker.hub.later) == 1


def test_an_error_is_logged_and_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Its message is redelivered."""

    def fail() -> None:
        raise OSError("no connection")

    consumer("amqp").call_soon_ack(fail)
    assert "a message could not be acknowledged" in caplog.text
