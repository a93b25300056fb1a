"""A batch of a producer on RabbitMQ: all messages are written before the first confirm is waited for."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import AMQPError, RecoverableConnectionError
from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old

from waooaw_celery.broker.amqp.confirms import Publishing
from waooaw_celery.broker.amqp.encoding import publish_frames

#: The code with which RabbitMQ returns a message that no queue takes.
NO_ROUTE = 312


class PartlyPublished(BatchPublishError):
    """RabbitMQ has not confirmed every message of a batch.

    Attributes:
        confirmed: ids of the messages that it has.
        refused: why it does not have a message, by id. It is unknown whether it has the others.
        returned: ids of those of the refused ones that no queue takes.
    """

    def __init__(self, text: str, publishing: Publishing) -> None:
        super().__init__(text)
        self.confirmed, self.refused = frozenset(publishing.confirmed), dict(publishing.refused)
        self.returned = {
            id_ for id_, reason in self.refused.items() if getattr(reason, "reply_code", 0) == NO_ROUTE
        }


class AmqpPublishBatch:
    """Collects messages, and publishes them together.

    Args:
        channel: the channel, in confirm mode.
        max_size: how many messages are published at the latest.

    Attributes:
        channel: the channel. Kombu checks that it stays the same.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._messages: list[tuple[str, bytes]] = []
        self._timeout: float | None = None

    def publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Add a prepared message to the batch. The arguments are those of ``basic_publish``.

        Raises:
            FrameSyntaxError: a header has a type that AMQP cannot express.
            ValueError: the properties exceed one frame.
            RecoverableConnectionError: the connection was lost before.
            PartlyPublished: the batch was full, and RabbitMQ has not confirmed all of it.
        """
        connection = self.channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel is closed")
        address = exchange, routing_key, mandatory
        frames = publish_frames(self.channel.channel_id, message, *address, connection.frame_max)
        id_ = message.properties.get("correlation_id")
        # RabbitMQ returns messages by their properties: without an id, only one may be on its way.
        is_alone = mandatory and not id_
        if is_alone:
            self.flush()
        self._messages.append((str(id_ or f"{len(self._messages)} without an id"), frames))
        self._timeout = confirm_timeout or timeout or self._timeout
        if is_alone or len(self._messages) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Publish the collected messages, each once.

        Raises:
            PartlyPublished: RabbitMQ has not confirmed all of them. The error says which it has, and which not.
        """
        messages, self._messages = self._messages, []
        if not messages:
            return
        publishing = Publishing()
        try:
            self.channel.confirms.publish(publishing, messages, self._timeout)
        except (AMQPError, OSError) as error:
            count = len(messages) - len(publishing.confirmed)
            text = f"RabbitMQ has not confirmed {count} of {len(messages)} messages: {error}"
            raise PartlyPublished(text, publishing) from error
        if publishing.refused:
            cause = next(iter(publishing.refused.values()))
            text = f"RabbitMQ refused {len(publishing.refused)} of {len(messages)} messages: {cause}"
            refusal = PartlyPublished(text, publishing)
            if refusal.returned:
                self._forget_queues()
            raise refusal from cause

    def _forget_queues(self) -> None:
        """Have the next publish declare its queue, as one may be gone."""
        self.channel.declared_agents.clear()
        client = getattr(self.channel.connection, "client", None)
        if client is not None:
            client.declared_entities.clear()

    def discard(self) -> None:
        """Drop the messages that were not published yet."""
        self._messages = []

    def close(self) -> None:
        """Drop the messages that were not published yet."""
        self.discard()
