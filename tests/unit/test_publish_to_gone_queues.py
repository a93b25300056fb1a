"""What a sender on RabbitMQ knows when a queue is gone, and the server goes too while it is declared again."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ChannelError, MessageNacked

from waooaw_celery.app.publishing.brokers.amqp import Prepared, publish_together
from waooaw_celery.broker.amqp.batch import AmqpPublishBatch, PartlyPublished
from waooaw_celery.broker.amqp.confirms import Publishing

NO_ROUTE = ChannelError("NO_ROUTE", reply_code=312)


class Channel:
    """A channel on which each publish ends as one of some outcomes says: ids that are confirmed, and refusals."""

    def __init__(self, *outcomes: tuple[list[str], dict[str, Exception]]) -> None:
        self._outcomes = list(outcomes)
        self.channel_id, self.declared_agents = 1, {"a"}
        client = SimpleNamespace(declared_entities={"a queue"})
        self.connection = SimpleNamespace(frame_max=131072, client=client)
        self.confirms = self

    def create_publish_batch(self, max_size: int) -> AmqpPublishBatch:
        return AmqpPublishBatch(self, max_size)

    def publish(self, publishing: Publishing, messages: Any, timeout: float | None = None) -> None:
        confirmed, refused = self._outcomes.pop(0)
        publishing.confirmed += confirmed
        publishing.refused |= refused


def prepared(declare: Callable[[], None], *ids: str) -> list[Prepared]:
    """Return messages to one queue."""
    bound = SimpleNamespace(declare=declare)

    class Queue:
        name, exchange, routing_key = "q", SimpleNamespace(name="q"), "q"

        def __call__(self, channel: Any) -> Any:
            return bound

    message = SimpleNamespace(body=b"x", properties={"correlation_id": "x"}, _serialize_properties=lambda: b"")
    queue: Any = Queue()
    return [Prepared(id_, queue, message) for id_ in ids]


@pytest.fixture(autouse=True)
def _no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waooaw_celery.broker.amqp.batch.publish_frames", lambda *_: b"")


def test_what_was_confirmed_is_known_when_the_server_goes() -> None:
    """The declaration fails: the error has the ids that RabbitMQ has, and the cause."""
    lost = ConnectionResetError("reset")

    def declare() -> None:
        raise lost

    channel: Any = Channel((["m1"], {"m2": NO_ROUTE}))
    with pytest.raises(PartlyPublished) as failed:
        publish_together(channel, prepared(declare, "m1", "m2"), lambda: None)
    assert failed.value.confirmed == {"m1"}
    assert failed.value.__cause__ is lost


def test_a_second_refusal_keeps_what_was_confirmed_first() -> None:
    """The messages are published twice at most."""
    channel: Any = Channel((["m1"], {"m2": NO_ROUTE, "m3": NO_ROUTE}), (["m3"], {"m2": NO_ROUTE}))
    with pytest.raises(PartlyPublished) as failed:
        publish_together(channel, prepared(lambda: None, "m1", "m2", "m3"), lambda: None)
    assert failed.value.confirmed == {"m1", "m3"}


@pytest.mark.parametrize(("refusal", "forgets"), [(NO_ROUTE, True), (MessageNacked("full"), False)])
def test_only_a_queue_that_is_gone_is_forgotten(refusal: Exception, forgets: bool) -> None:
    """A full queue still exists: the next publish need not declare it."""
    channel: Any = Channel(([], {"m1": refusal}))
    batch = AmqpPublishBatch(channel, 10)
    batch._messages = [("m1", b"")]
    with pytest.raises(PartlyPublished):
        batch.flush()
    assert (not channel.declared_agents, not channel.connection.client.declared_entities) == (forgets, forgets)
