"""When a worker acknowledges a message: at once on RabbitMQ, in the next turn of the event loop elsewhere."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery

from waooaw_celery.worker.consumer import AgentConsumer


class Hub:
    """An event loop that only notes what it is to call."""

    def __init__(self) -> None:
        self.later: list[object] = []

    def call_soon(self, callback: object) -> object:
        self.later.append(callback)
        return callback


def consumer(driver: str) -> AgentConsumer:
    """Return a consumer of a plain Celery application, whose event loop belongs to this thread."""
    found: Any = object.__new__(AgentConsumer)
    found.app, found.hub, found.strategies, found.on_task_message = Celery("plain"), Hub(), {}, set()
    found.connection = SimpleNamespace(transport=SimpleNamespace(driver_type=driver))
    found.initial_prefetch_count, found.task_consumer = 1, SimpleNamespace(channel=None)
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


def test_on_redis_it_travels_with_the_next_claim() -> None:
    """So it is left to the loop."""
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
