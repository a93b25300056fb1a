"""Publishes messages and requests as Celery tasks, many of them with few broker commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from celery import signals
from celery.utils.nodenames import anon_nodename

from waooaw_celery.app.publication import HIDDEN_ARGUMENTS, Batch, envelope_headers, routing_options
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.queues import HandlerName, agent_queue, broker_priority, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import JSON
from waooaw_celery.wire.packer import PackedBody


class PublishBatch:
    """Complete messages or requests, published without what Celery repeats for each single task.

    Args:
        app: the application, an AgentApp.
        batch: the messages, each with its handler.
        reply_to: how the answers of requests arrive; None for one-way messages.
        bodies: the bodies, when they are written already.
    """

    def __init__(
        self, app: Any, batch: Batch, reply_to: ReplyTo | None = None, bodies: Sequence[PackedBody] | None = None
    ) -> None:
        self.batch = batch
        self._app, self._reply_to, self._bodies = app, reply_to, bodies
        self._driver: str = app.driver
        self._reply_to_header = {REPLY_TO_HEADER: reply_to.to_header()} if reply_to is not None else {}
        # A result is stored only when a request waits for it.
        self._stores_result = reply_to is not None and reply_to.on_reply is None
        self._result_queue = app.result_collector.reply_to if reply_to is not None else None
        # Read once for all messages: Celery's settings are several mappings.
        self._sends_events = app.conf.task_send_sent_event
        self._origin = anon_nodename()
        self._wire_format = lru_cache(maxsize=None)(app.wire_format)

    def check_bodies(self) -> None:
        """Encode the bodies to check them. See `Publication.check_bodies`."""
        if self._bodies is None:
            self._bodies = list(self._write_bodies()) if self.batch else []

    def options(self) -> Mapping[str, PublishOptions]:
        """Return the publish options of each message that has any."""
        return options_of_messages((message for _, message in self.batch), self._reply_to)

    def parts(self, size: int) -> Iterator[PublishBatch]:
        """Split the batch."""
        self.check_bodies()
        if len(self.batch) <= size:
            yield self
            return
        bodies = self._bodies or []
        for start in range(0, len(self.batch), size):
            part = slice(start, start + size)
            yield PublishBatch(self._app, self.batch[part], self._reply_to, bodies[part])

    def producer(self) -> AbstractContextManager[Any]:
        """Return a producer from the application's pool."""
        producer: AbstractContextManager[Any] = self._app.producer_or_acquire()
        return producer

    def publish_together(self, producer: Any, when_ready: Callable[[], object]) -> bool:
        """Publish all messages with as few commands as possible. See `Publication.publish_together`."""
        self._declare_queues(producer)
        if not producer.supports_batch_publish:
            return False
        if self._may_bypass_celery(producer):
            self._publish_directly(producer.channel, when_ready)
            return True
        # A batch of this size publishes nothing before its end, and nothing at all when something fails.
        with producer.batch(len(self.batch) + 1):
            for target, message in self.batch:
                self._publish_as_task(producer, target, message, retry=False)
            when_ready()
        return True

    def publish_one(self, producer: Any, target: HandlerName, message: Message) -> None:
        """Publish one message, and try again when a connection is lost, as Celery's settings say."""
        self._publish_as_task(producer, target, message)

    def _write_bodies(self) -> Iterator[PackedBody]:
        pack, embed = self._app.packer.pack, self._task(*self.batch[0])[2][2]
        known: dict[tuple[object, ...], PackedBody] = {}  # the messages of an event share one payload
        for target, message in self.batch:
            wire_format = self._wire_format(target.agent, message.serializer, message.compression)
            key = id(message.payload), takes_message(target.handler), *wire_format
            if message.event is None or key not in known:
                known[key] = pack((*_arguments(target, message), embed), *wire_format, of_message=True)
            yield known[key]

    def _declare_queues(self, producer: Any) -> None:
        policy = self._app.conf.task_publish_retry_policy
        for agent in dict.fromkeys(target.agent for target, _ in self.batch):
            producer.maybe_declare(agent_queue(agent), retry=True, **policy)

    def _publish_as_task(
        self, producer: Any, target: HandlerName, message: Message, retry: bool | None = None
    ) -> None:
        serializer, compression = self._wire_format(target.agent, message.serializer, message.compression)
        self._app.amqp.send_task_message(
            producer,
            str(target),
            self._task(target, message),
            serializer=serializer,
            compression=compression,
            headers={**envelope_headers(message, message.expires_at), **self._reply_to_header},
            declare=[],
            retry=retry,
            **routing_options(target, message, self._driver),
        )

    def _task(self, target: HandlerName, message: Message) -> Any:
        return self._app.amqp.as_task_v2(
            message.message_id,
            str(target),
            *_arguments(target, message),
            reply_to=self._result_queue,
            root_id=message.conversation_id,
            parent_id=message.causation_id,
            argsrepr=HIDDEN_ARGUMENTS,
            kwargsrepr=HIDDEN_ARGUMENTS,
            ignore_result=not self._stores_result,
            create_sent_event=self._sends_events,
            origin=self._origin,
        )

    def _may_bypass_celery(self, producer: Any) -> bool:
        """Whether nobody listens to the single publishes of Celery and Kombu."""
        signals_of_publish = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
        return (
            isinstance(producer.channel, Channel)
            and not any(signal.receivers for signal in signals_of_publish)
            and not self._sends_events
            and self._app.conf.task_protocol == 2
        )

    def _publish_directly(self, channel: Channel, when_ready: Callable[[], object]) -> None:
        """Publish messages that share the headers and properties of the first, but for their own."""
        headers, properties, *_ = self._task(*self.batch[0])
        commands = channel.create_publish_batch(len(self.batch) + 1)
        try:
            for (target, message), body in zip(self.batch, self._bodies or [], strict=True):
                own = {
                    "task": str(target),
                    "id": message.message_id,
                    "root_id": message.conversation_id,
                    "parent_id": message.causation_id,
                    **envelope_headers(message, message.expires_at),
                    **self._reply_to_header,
                }
                if body.codec is not None:
                    own["compression"] = body.codec
                queue = agent_queue(target.agent)
                prepared = channel.prepare_message(
                    body.body,
                    broker_priority(message.priority, self._driver),
                    body.content_type,
                    body.content_encoding,
                    {**headers, **own},
                    {**properties, "correlation_id": message.message_id, "delivery_mode": 2},
                )
                commands.publish(prepared, exchange=queue.exchange.name, routing_key=queue.routing_key)
            when_ready()
            commands.flush()
        finally:
            commands.close()


def _arguments(target: HandlerName, message: Message) -> tuple[tuple[JSON, ...], Any]:
    """Return the arguments of a message's task: its payload alone, or the parameters of a method."""
    return ((message.payload,), {}) if takes_message(target.handler) else ((), message.payload)
