"""Sends over RabbitMQ: all messages are written before the first confirm is waited for.

A queue may be deleted while a sender believes that it has declared it. RabbitMQ then returns the messages to it.
Their queue is declared again, and they are published once more: RabbitMQ has none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from amqp.exceptions import AMQPError
from kombu import Queue

from waooaw_celery.broker.amqp.batch import PartlyPublished
from waooaw_celery.broker.amqp.transport import Channel
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


class Prepared(NamedTuple):
    """A message as RabbitMQ gets it.

    Attributes:
        message_id: its id.
        queue: the queue of its recipient.
        message: what py-amqp publishes.
    """

    message_id: str
    queue: Queue
    message: Any


def publish_together(channel: Channel, messages: Sequence[Prepared], when_ready: Callable[[], object]) -> None:
    """Publish messages, each once, and declare a queue again that is gone.

    Args:
        channel: the channel.
        messages: the messages.
        when_ready: called when the messages are written to memory; when it raises, nothing is published.

    Raises:
        PartlyPublished: RabbitMQ has not confirmed all of them.
    """
    try:
        _publish(channel, messages, when_ready)
    except PartlyPublished as error:
        returned = [each for each in messages if each.message_id in error.returned]
        if len(returned) + len(error.confirmed) < len(messages):
            raise
        try:
            for name, queue in {each.queue.name: each.queue for each in returned}.items():
                logger.warning(
                    "queue %s was gone, and is declared again", name, extra={"action": "queue_declared"}
                )
                queue(channel).declare()
            _publish(channel, returned, lambda: None)
        except PartlyPublished as again:
            again.confirmed |= error.confirmed
            raise
        except (AMQPError, OSError) as failure:  # RabbitMQ has the others, and the caller must know which
            raise error from failure


def _publish(channel: Channel, messages: Sequence[Prepared], when_ready: Callable[[], object]) -> None:
    commands = channel.create_publish_batch(len(messages) + 1)
    try:
        for _, queue, message in messages:
            # With `mandatory`, RabbitMQ returns a message whose queue is gone.
            commands.publish(message, queue.exchange.name, queue.routing_key, mandatory=True)
        when_ready()
        commands.flush()
    finally:
        commands.close()
