"""Names of handlers and queues, priority numbers, and the URL of the store."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection, Producer

from waooaw_celery import MessageType, Priority
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import (
    HandlerName,
    QueueDepth,
    agent_queue,
    broker_priority,
    check_ordered,
    driver_type,
    first_url,
    queue_depth,
    system_queue,
    takes_message,
)
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


def test_a_handler_takes_one_message_type() -> None:
    """The handler ``ack`` takes ACKs, and a method takes QUERYs."""
    assert HandlerName("a", "ack").message_type is MessageType.ACK
    assert HandlerName("a", "get_status").message_type is MessageType.QUERY


@pytest.mark.parametrize(("driver", "numbers"), [("redis", [0, 3, 6, 9]), ("amqp", [9, 6, 3, 0])])
def test_the_most_urgent_priority_has_the_number_that_the_broker_delivers_first(
    driver: str, numbers: list[int]
) -> None:
    """Redis delivers 0 first, RabbitMQ 9."""
    assert [broker_priority(priority, driver) for priority in Priority] == numbers


def test_the_queue_of_an_agent_has_its_name() -> None:
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


def test_the_handlers_of_events_and_types_take_messages() -> None:
    """A method takes parameters."""
    assert [takes_message(name) for name in ("command", "ack", "event.billing", "get_status")] == [
        True,
        True,
        True,
        False,
    ]
    assert HandlerName("a", "event.billing").message_type is MessageType.EVENT
    assert str(HandlerName("a", "event.billing")) == "a.event.billing"
    assert HandlerName.parse("a.event.billing") == ("a", "event.billing")


def test_the_system_has_a_queue_of_its_own() -> None:
    """No agent can have its name."""
    assert system_queue().name == "waooaw.system"
    assert system_queue() is system_queue()


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (None, None),
        ([], None),
        ((), None),
        ("redis://a", "redis://a"),
        ("redis://a;redis://b", "redis://a"),
        (["redis://a;redis://b", "amqp://c"], "redis://a"),
        (("amqp://c",), "amqp://c"),
        ([None], None),
    ],
)
def test_the_first_broker_of_several_is_found(urls: Any, expected: str | None) -> None:
    """Celery accepts one URL, a list, or several separated by semicolons."""
    assert first_url(urls) == expected


@pytest.mark.parametrize(
    ("url", "driver"),
    [("redis://h:1/2", "redis"), ("rediss://h", "redis"), ("amqp://h", "amqp"), ("memory://", "memory")],
)
def test_the_driver_of_a_url_is_kombus(url: str, driver: str) -> None:
    """Kombu's name for the kind of broker decides how messages are ordered."""
    assert driver_type(url) == driver


@pytest.mark.parametrize("url", ["localhost", "nonsense://h", "amqp//h"])
def test_a_url_that_kombu_cannot_use_is_refused(url: str) -> None:
    """The error shows a right one. It shows no text without a scheme, which may be anything."""
    with pytest.raises(ConfigurationError, match=r"(broker URL nonsense://h|broker_url ).*redis://localhost"):
        driver_type(url)


def test_the_error_of_a_url_hides_its_password() -> None:
    """It may be shown to anybody."""
    with pytest.raises(ConfigurationError) as caught:
        driver_type("nonsense://user:secret@h")
    assert "secret" not in str(caught.value)


def test_a_broker_that_ignores_priority_needs_a_setting() -> None:
    """Redis and RabbitMQ need none."""
    for driver in ("redis", "amqp"):
        check_ordered(driver, False)
    check_ordered("sqs", True)
    with pytest.raises(ConfigurationError, match="waooaw_allow_unordered"):
        check_ordered("sqs", False)


def test_the_depth_of_a_queue_is_counted() -> None:
    """A queue that does not exist is empty."""
    with Connection("memory://") as connection:
        queue = agent_queue("depth-probe")
        assert queue_depth(connection, queue) == QueueDepth(queue="agent.depth-probe", total=0, by_priority=None)
        channel = connection.channel()
        queue(channel).declare()
        for _ in range(3):
            Producer(channel).publish({}, routing_key=queue.name)
        assert queue_depth(connection, queue).total == 3
