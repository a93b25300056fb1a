"""How complete messages are handed to the broker: as the tasks that they are, several in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from celery import signals
from celery.utils.nodenames import anon_nodename

from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import HandlerName, agent_queue, broker_priority, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import JSON
from waooaw_celery.wire.packer import PackedBody

#: What Celery, its logs and Flower show in place of the arguments, which may be confidential.
HIDDEN_ARGUMENTS = "…"

Batch = Sequence[tuple[HandlerName, Message]]


class PublishBatch:
    """Hands messages to the broker, without what Celery does anew for each single task.

    Args:
        app: the application, an AgentApp, whose settings count.
        driver: Kombu's name for the kind of broker.
        call: how the answers of requests are to come; None for one-way messages.
        reply_to: where a result backend that sends answers is to send them.
    """

    def __init__(self, app: Any, driver: str, call: ReplyTo | None = None, reply_to: str | None = None) -> None:
        self._app, self._driver, self.call = app, driver, call
        self._call = {REPLY_TO_HEADER: call.to_header()} if call is not None else {}
        # The result is what a request waits for; nothing else needs it.
        self._kept = call is not None and call.on_reply is None
        self._reply_to = reply_to
        # Looked up once, and not for each message: Celery's settings are many mappings.
        self._events = app.conf.task_send_sent_event
        self._origin = anon_nodename()
        self._written_as = lru_cache(maxsize=None)(app.written_as)

    def pack(self, batch: Batch) -> list[PackedBody]:
        """Write the bodies of a batch, before anything is done about it.

        Raises:
            EncodingFailed: one cannot be written in its format, or breaks a cap.
            ConfigurationError: there is no such format or codec.
        """
        pack, written_as, embed = self._app.packer.pack, self._written_as, self._task(*batch[0])[2][2]
        bodies: list[PackedBody] = []
        known: dict[tuple[object, ...], PackedBody] = {}  # the messages of an event have one payload, packed once
        for target, message in batch:
            way = written_as(target.agent, message.serializer, message.compression)
            key = id(message.payload), takes_message(target.handler), *way
            if message.event is None or key not in known:
                known[key] = pack((*_arguments(target, message), embed), *way, of_message=True)
            bodies.append(known[key])
        return bodies

    def declare(self, producer: Any, batch: Batch) -> None:
        """Make sure that the queues of all recipients are there."""
        policy = self._app.conf.task_publish_retry_policy
        for agent in dict.fromkeys(target.agent for target, _ in batch):
            producer.maybe_declare(agent_queue(agent), retry=True, **policy)

    def all_or_none(
        self, producer: Any, batch: Batch, bodies: Sequence[PackedBody], last_check: Callable[[], object]
    ) -> bool:
        """Hand over a batch with as few commands as it takes, or return False when this broker takes no batches.

        Args:
            producer: over which to hand them over.
            batch: the messages.
            bodies: theirs, as ``pack`` wrote them.
            last_check: called when they are ready; when it raises, nothing is handed over.

        Raises:
            BatchPublishError: whether the broker has them is not known.
        """
        if not producer.supports_batch_publish:
            return False
        if self._knows_the_way(producer):
            self._directly(producer.channel, batch, bodies, last_check)
            return True
        # A batch of this size hands nothing over before its end, and nothing at all when something fails.
        with producer.batch(len(batch) + 1):
            for target, message in batch:
                self.one(producer, target, message, retry=False)
            last_check()
        return True

    def one(self, producer: Any, target: HandlerName, message: Message, retry: bool | None = None) -> None:
        """Hand over one message.

        Args:
            producer: over which to hand it over.
            target: the handler that it is for.
            message: the message.
            retry: whether to try again when a connection is lost; None: as Celery's settings say.
        """
        serializer, compression = self._written_as(target.agent, message.serializer, message.compression)
        self._app.amqp.send_task_message(
            producer,
            str(target),
            self._task(target, message),
            serializer=serializer,
            compression=compression,
            headers={**envelope_headers(message, message.expires_at), **self._call},
            declare=[],
            retry=retry,
            **routing_options(target, message, self._driver),
        )

    def _task(self, target: HandlerName, message: Message) -> Any:
        return self._app.amqp.as_task_v2(
            message.message_id,
            str(target),
            *_arguments(target, message),
            reply_to=self._reply_to,
            root_id=message.conversation_id,
            parent_id=message.causation_id,
            argsrepr=HIDDEN_ARGUMENTS,
            kwargsrepr=HIDDEN_ARGUMENTS,
            ignore_result=not self._kept,
            create_sent_event=self._events,
            origin=self._origin,
        )

    def _knows_the_way(self, producer: Any) -> bool:
        """Whether nobody would notice that the messages do not pass through Celery and Kombu one by one."""
        listened = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
        return (
            isinstance(producer.channel, Channel)
            and not any(signal.receivers for signal in listened)
            and not self._events
            and self._app.conf.task_protocol == 2
        )

    def _directly(
        self, channel: Channel, batch: Batch, bodies: Sequence[PackedBody], last_check: Callable[[], object]
    ) -> None:
        """Hand over messages that differ from the first in no more than what is theirs."""
        headers, properties, *_ = self._task(*batch[0])
        commands = channel.create_publish_batch(len(batch) + 1)
        try:
            for (target, message), body in zip(batch, bodies, strict=True):
                theirs = {
                    "task": str(target),
                    "id": message.message_id,
                    "root_id": message.conversation_id,
                    "parent_id": message.causation_id,
                    **envelope_headers(message, message.expires_at),
                    **self._call,
                }
                if body.codec is not None:
                    theirs["compression"] = body.codec
                queue = agent_queue(target.agent)
                said = channel.prepare_message(
                    body.body,
                    broker_priority(message.priority, self._driver),
                    body.content_type,
                    body.content_encoding,
                    {**headers, **theirs},
                    {**properties, "correlation_id": message.message_id, "delivery_mode": 2},
                )
                commands.publish(said, exchange=queue.exchange.name, routing_key=queue.routing_key)
            last_check()
            commands.flush()
        finally:
            commands.close()


def _arguments(target: HandlerName, message: Message) -> tuple[tuple[JSON, ...], Any]:
    """Return the arguments of the task that a message is: its payload alone, or a method's parameters."""
    return ((message.payload,), {}) if takes_message(target.handler) else ((), message.payload)


def routing_options(target: HandlerName, message: Message, driver: str) -> dict[str, Any]:
    """Return where a message goes, and how urgently, as options of a publish."""
    queue = agent_queue(target.agent)
    options = {
        "queue": queue,
        # Said too, so that no entry of a project's task_routes can say otherwise.
        "exchange": queue.exchange.name,
        "routing_key": queue.routing_key,
        "priority": broker_priority(message.priority, driver),
    }
    # RabbitMQ says so when the queue is gone.
    return options | {"mandatory": True} if driver == "amqp" else options


def envelope_headers(message: Message, expires_at: datetime | None) -> dict[str, Any]:
    """Return the headers that a message has besides Celery's own.

    Args:
        message: the message.
        expires_at: when it expires: for a retry, when its first attempt would have.
    """
    return {
        ENVELOPE_HEADER: message.to_envelope(),
        "expires": expires_at.isoformat() if expires_at else None,
    }
