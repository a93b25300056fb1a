"""What is published: messages to agents, each with its publish options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from waooaw_celery.app.publishing.large_payloads import LargePayloads
from waooaw_celery.messages.log.hiding import HIDDEN
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.queues import HandlerName, agent_queue, broker_priority

#: Messages, each with the handler that it is for.
Batch: TypeAlias = Sequence[tuple[HandlerName, Message]]


def shown_arguments(app: Any) -> str | None:
    """Return what Celery, its logs and Flower show in place of arguments, which may be confidential.

    Args:
        app: the application, an AgentApp.

    Returns:
        None if the setting ``waooaw_log_payloads`` says that they show the arguments themselves.
    """
    return None if app.settings.log_payloads else HIDDEN


class Publication(Protocol):
    """Messages that are published together. There are two kinds: `PublishBatch` and `TaskPublication`."""

    batch: Batch

    def check_bodies(self) -> None:
        """Encode the bodies to check them, before anything is recorded or published.

        Raises:
            EncodingFailed: a body cannot be written in its format, or exceeds a cap.
            ConfigurationError: a format or codec is not installed.
        """

    def is_large(self, large: LargePayloads) -> bool:
        """Return whether a message travels by reference. Call it after ``check_bodies``.

        Args:
            large: decides that.
        """

    def store_large_payloads(self, large: LargePayloads, session: Any, event: Message | None) -> Message | None:
        """Store the large payloads. Their messages then carry references, and so does the event.

        Args:
            large: stores them.
            session: the SQLAlchemy Session whose transaction records the messages; None: there is none.
            event: the event that the messages deliver; None: they deliver none.

        Returns:
            The event, with a reference if its payload is large.

        Raises:
            ReferenceStoreUnavailable: the store does not answer; nothing was recorded and nothing published.
            PayloadMissing: a message carries a reference already, and its payload is not there any more.
        """

    def payload_texts(self) -> Mapping[str, str]:
        """Return payloads that are encoded as JSON already, by message id."""

    def options(self) -> Mapping[str, PublishOptions]:
        """Return the publish options of each message that has any, by message id."""

    def parts(self, size: int) -> Iterator[Publication]:
        """Split the publication into parts of at most this many messages."""

    def producer(self) -> AbstractContextManager[Any]:
        """Return a producer from the application's pool; None where Celery takes one itself."""

    def publish_together(self, producer: Any, when_ready: Callable[[], object]) -> bool:
        """Publish all messages with as few commands as possible, or none of them.

        Args:
            producer: the producer.
            when_ready: called when the commands are ready; when it raises, nothing is published.

        Returns:
            False when this broker cannot publish several messages at once; nothing was published.

        Raises:
            BatchPublishError: it is not known whether the broker has the messages.
        """

    def publish_one(self, producer: Any, target: HandlerName, message: Message) -> None:
        """Publish one message."""


def routing_options(target: HandlerName, message: Message, driver: str) -> dict[str, Any]:
    """Return the options of a publish that name the queue and the priority of a message.

    Args:
        target: the handler that the message is for.
        message: the message.
        driver: Kombu's name for the kind of broker.
    """
    queue = agent_queue(target.agent)
    options = {
        "queue": queue,
        # Named too, so that no entry of a project's task_routes changes them.
        "exchange": queue.exchange.name,
        "routing_key": queue.routing_key,
        "priority": broker_priority(message.priority, driver),
    }
    # RabbitMQ then reports that the queue is gone.
    return options | {"mandatory": True} if driver == "amqp" else options


def envelope_headers(message: Message, expires_at: datetime | None) -> dict[str, Any]:
    """Return this package's headers of a message.

    Args:
        message: the message.
        expires_at: when it expires. A retry expires when its first attempt would have.
    """
    return {
        **(message.trace or {}),
        ENVELOPE_HEADER: message.to_envelope(),
        "expires": expires_at.isoformat() if expires_at else None,
    }


def ids_of(batch: Batch) -> set[str]:
    """Return the ids of the messages of a batch."""
    return {message.message_id for _, message in batch}
