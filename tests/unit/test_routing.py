"""Names of handlers and queues, priority numbers, and the URL of the store."""

from __future__ import annotations

import pytest

from waooaw_celery import MessageType, Priority
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import HandlerName, agent_queue, broker_priority
from waooaw_celery.store.connection import store_url


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("worker-1.get_status", ("worker-1", "get_status")),
        ("a.command", ("a", "command")),
        ("celery.backend_cleanup", None),
        ("waooaw.sweep", None),
        ("myproject.tasks.add", None),
        ("Worker.get", None),
        ("add", None),
        ("a.", None),
        (".b", None),
    ],
)
def test_a_task_name_is_parsed(task: str, expected: tuple[str, str] | None) -> None:
    """``<agent>.<handler>`` names a handler; the task names of Celery, this package and modules do not."""
    assert HandlerName.parse(task) == expected


def test_the_message_type_of_a_handler() -> None:
    """The handler ``ack`` takes ACKs, and a method takes QUERYs."""
    assert HandlerName("a", "ack").message_type is MessageType.ACK
    assert HandlerName("a", "get_status").message_type is MessageType.QUERY


@pytest.mark.parametrize(("driver", "numbers"), [("redis", [0, 3, 6, 9]), ("amqp", [9, 6, 3, 0])])
def test_the_most_urgent_priority_has_the_number_that_the_broker_delivers_first(
    driver: str, numbers: list[int]
) -> None:
    """Redis delivers 0 first, RabbitMQ 9."""
    assert [broker_priority(priority, driver) for priority in Priority] == numbers


def test_the_queue_of_an_agent() -> None:
    """It has its name, ten priorities, and needs no binding."""
    queue = agent_queue("worker-1")
    assert (queue.name, queue.exchange.name, queue.routing_key) == ("agent.worker-1", "", "agent.worker-1")
    assert queue.max_priority == 9
    assert queue.durable


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["redis://h:1/2"], "redis://h:1/2"),
        ([None, "db+sqlite://", "rediss://h"], "rediss://h"),
        ([None, "redis+socket:///run/v.sock?virtual_host=3"], "unix:///run/v.sock?db=3"),
        ([None, None, "redis+socket:///run/v.sock"], "unix:///run/v.sock?db=0"),
    ],
)
def test_the_store_is_the_first_redis(urls: list[str | None], expected: str) -> None:
    """The setting comes first, then the result backend, then the broker; sockets are converted."""
    assert store_url(*urls) == expected


def test_without_any_redis_the_error_names_the_setting() -> None:
    """A broker and a result backend that are not Redis need waooaw_redis_url."""
    with pytest.raises(ConfigurationError, match="set waooaw_redis_url"):
        store_url(None, "rpc://", "amqp://h")
