"""Publishes messages and requests as Celery tasks, many of them with few broker commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache, partial
from typing import Any

from celery import signals
from celery.utils.nodenames import anon_nodename

from waooaw_celery.app.publishing.brokers import amqp as amqp_send
from waooaw_celery.app.publishing.brokers.amqp import Prepared
from waooaw_celery.app.publishing.large_payloads import REFERENCE_ENCODING, LargePayloads
from waooaw_celery.app.publishing.publication import Batch, envelope_headers, routing_options, shown_arguments
from waooaw_celery.app.publishing.publish_settings import PublishSettings
from waooaw_celery.app.publishing.task_templates import own_values
from waooaw_celery.broker.amqp import transport as amqp
from waooaw_celery.broker.incoming.delivery import to_text
from waooaw_celery.broker.redis.batch import push_now
from waooaw_celery.broker.redis.channel import Channel
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.queues import HandlerName, agent_queue, broker_priority, takes_message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import JSON
from waooaw_celery.wire.packer import EncodedBody, EncodedTask, Encoding, PackedBody

#: What Celery calls around each publish, when somebody listens.
_SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)


class PublishBatch:
    """Complete messages or requests, published without what Celery repeats for each single task.

    Args:
        app: the application, an AgentApp.
        batch: the messages, each with its handler.
        reply_to: how the answers of requests arrive; None for one-way messages.
        bodies: the bodies, when they are written already.
    """

    def __init__(
        self, app: Any, batch: Batch, reply_to: ReplyTo | None = None, bodies: Sequence[EncodedBody] | None = None
    ) -> None:
        self.batch = batch
        self._app, self._reply_to, self._bodies = app, reply_to, bodies
        self._driver: str = app.driver
        self._reply_to_header = {REPLY_TO_HEADER: reply_to.to_header()} if reply_to is not None else {}
        # A result is stored only when a request waits for it.
        self._stores_result = reply_to is not None and reply_to.on_reply is None
        self._result_queue = app.result_collector.reply_to if reply_to is not None else None
        self._settings: PublishSettings = app.components.publish_settings.read()
        self._origin = _origin(os.getpid())
        self._shown_arguments = shown_arguments(app)
        # One message needs no cache, and a thousand to one agent ask for the same.
        self._wire_format = app.wire_format if len(batch) == 1 else lru_cache(maxsize=None)(app.wire_format)

    def check_bodies(self) -> None:
        """Encode the bodies to check them. See `Publication.check_bodies`."""
        if self._bodies is None:
            self._bodies = list(self._write_bodies()) if self.batch else []

    def is_large(self, large: LargePayloads) -> bool:
        """Return whether a message travels by reference. See `Publication.is_large`."""
        if any(message.reference is not None for _, message in self.batch):
            return True
        return large.is_on and any(map(large.is_above, self._bodies or []))

    def store_large_payloads(self, large: LargePayloads, session: Any, event: Message | None) -> Message | None:
        """Store the large payloads. See `Publication.store_large_payloads`."""
        messages = [message for _, message in self.batch]
        if any(message.reference is not None for message in messages):  # a replay, or a retried dead letter
            large.share(messages if event is None else [*messages, event], session)
        bodies = self._bodies or []
        if not large.is_on or not any(map(large.is_above, bodies)):
            return event
        users: dict[int, tuple[EncodedBody, list[Message]]] = {}
        for (_, message), body in zip(self.batch, bodies, strict=True):
            if message.reference is None and large.is_above(body):
                users.setdefault(id(body), (body, []))[1].append(message)  # the deliveries of an event share one
        stored = [(body, sharers if event is None else [*sharers, event]) for body, sharers in users.values()]
        references = dict(zip(users, large.put(stored, session), strict=True))
        self.batch = [
            (target, message.filled_in(reference=references[id(body)]) if id(body) in references else message)
            for (target, message), body in zip(self.batch, bodies, strict=True)
        ]
        kept = {id(message): body for (_, message), body in zip(self.batch, bodies, strict=True)}
        self._bodies = list(self._write_bodies(kept))
        self.__dict__.pop("_encoded", None)
        return event if event is None else event.filled_in(reference=next(iter(references.values())))

    def payload_texts(self) -> Mapping[str, str]:
        """Return the payloads that are encoded as JSON. See `Publication.payload_texts`."""
        encoded = zip(self.batch, self._bodies or [], strict=True)
        texts = {message.message_id: body.payload_text for (_, message), body in encoded}
        return {id_: text for id_, text in texts.items() if text is not None}

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
        if isinstance(producer.channel, amqp.Channel):
            producer.channel.check_connection()
        self.declare_queues(producer)
        if not producer.supports_batch_publish:
            return False
        channel = producer.channel
        if isinstance(channel, Channel) and self.may_bypass_celery():
            self._publish_directly(channel, when_ready)
            return True
        if isinstance(channel, amqp.Channel) and self.may_bypass_celery():
            amqp_send.publish_together(channel, list(self._prepared(channel)), when_ready)
            return True
        # A batch of this size publishes nothing before its end, and nothing at all when something fails.
        with producer.batch(len(self.batch) + 1):
            for target, message in self.batch:
                self._publish_as_task(producer, target, message, retry=False)
            when_ready()
        return True

    @cached_property
    def _encoded(self) -> dict[str, EncodedBody]:
        """The bodies that are written already, by message id."""
        if self._bodies is None:
            return {}
        return {message.message_id: body for (_, message), body in zip(self.batch, self._bodies, strict=True)}

    def publish_one(self, producer: Any, target: HandlerName, message: Message) -> None:
        """Publish one message, and try again when a connection is lost, as Celery's settings say."""
        self._publish_as_task(producer, target, message)

    def _write_bodies(self, kept: Mapping[int, EncodedBody] | None = None) -> Iterator[EncodedBody]:
        """Encode the bodies.

        Args:
            kept: the bodies that are encoded already, by the identity of their message. Messages with a reference
                have new ones.
        """
        packer, large = self._app.packer, self._app.components.large_payloads
        options = self._app.components.task_templates.options_of(lambda: self._task(*self.batch[0]))
        known: dict[tuple[object, ...], EncodedBody] = {}  # the messages of an event share one payload
        settings = self._app.settings
        special = {*settings.agent_serializers, *settings.agent_compressions}
        encodings: dict[tuple[object, ...], Encoding] = {}
        for target, message in self.batch:
            if kept is not None and message.reference is None:
                yield kept[id(message)]
                continue
            agent = target.agent if target.agent in special else None
            choice = agent, message.serializer, message.compression, message.reference is None
            encoding = encodings.get(choice)
            if encoding is None:
                wire_format = self._wire_format_of(target, message)
                encoding = encodings[choice] = packer.encoding(*wire_format, may_be_stored=large.is_on)
            if message.event is None:
                yield packer.encode_task(*_arguments(target, message), options, encoding)
                continue
            key = id(message.reference or message.payload), takes_message(target.handler), choice
            if key not in known:
                known[key] = packer.encode_task(*_arguments(target, message), options, encoding)
            yield known[key]

    def _wire_format_of(self, target: HandlerName, message: Message) -> tuple[str, str | None]:
        """Return the serializer and the compression of a message."""
        if message.reference is not None:
            return REFERENCE_ENCODING
        wire_format: tuple[str, str | None]
        wire_format = self._wire_format(target.agent, message.serializer, message.compression)
        return wire_format

    def is_declared(self, channel: Any) -> bool:
        """Return whether the queues of the agents were declared over a channel.

        Args:
            channel: the channel.
        """
        if not isinstance(channel, Channel | amqp.Channel):
            return False
        declared = channel.declared_agents
        return all(target.agent in declared for target, _ in self.batch)

    def declare_queues(self, producer: Any) -> None:
        """Declare the queues of the agents, unless that was done over this channel.

        Args:
            producer: the producer.
        """
        if self.is_declared(producer.channel):
            return
        agents = {target.agent for target, _ in self.batch}
        policy = self._app.conf.task_publish_retry_policy
        for agent in agents:
            producer.maybe_declare(agent_queue(agent), retry=True, **policy)
        if isinstance(channel := producer.channel, Channel | amqp.Channel):  # it may be a new one
            channel.declared_agents |= agents

    def _publish_as_task(
        self, producer: Any, target: HandlerName, message: Message, retry: bool | None = None
    ) -> None:
        serializer, compression = self._wire_format_of(target, message)
        task = self._task(target, message)
        encoded = self._encoded.get(message.message_id)
        # A receiver of the signal may change the arguments.
        if encoded is not None and not signals.before_task_publish.receivers:
            task = task._replace(body=EncodedTask.of(task.body, encoded))
        self._app.amqp.send_task_message(
            producer,
            str(target),
            task,
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
            argsrepr=self._shown_arguments,
            kwargsrepr=self._shown_arguments,
            ignore_result=not self._stores_result,
            create_sent_event=self._settings.send_sent_event,
            origin=self._origin,
        )

    def may_bypass_celery(self) -> bool:
        """Return whether nobody listens to the single publishes of Celery and Kombu."""
        return (
            not self._settings.send_sent_event
            and not any(signal.receivers for signal in _SIGNALS)
            and self._settings.protocol == 2
        )

    def texts(self, channel: Channel) -> Iterator[tuple[str, str, str]]:
        """Write the messages as they travel on Redis.

        Args:
            channel: the channel that is to publish them.

        Returns:
            For each message the key of its list, the key of its queue's doorbell, and its text.
        """
        fill, others = self._app.components.task_templates.text, self._shared_values
        reply_to = to_text(self._reply_to_header[REPLY_TO_HEADER]) if self._reply_to_header else None
        write = partial(self._written, channel)
        for (target, message), encoded in zip(self.batch, self._bodies or [], strict=True):
            body = encoded.packed
            list_, bell = channel.keys.of_priority(
                agent_queue(target.agent).name, broker_priority(message.priority, self._driver)
            )
            text = None
            if self._shown_arguments is not None:  # or else the headers of each message show its own arguments
                text = fill(target, message, body, channel.next_delivery_tag(), reply_to, others, write)
            yield list_, bell, to_text(write(target, message, body)) if text is None else text

    def shared_text(self, channel: Channel) -> tuple[list[str], tuple[int, ...]] | None:
        """Return the text that the messages share if they deliver one event. See `TaskTemplates.pieces`.

        Args:
            channel: the channel that is to publish them.

        Returns:
            None if they have different bodies or events, or if their headers show the payload.
        """
        target, message = self.batch[0]
        bodies = self._bodies or []
        if (
            self._shown_arguments is None
            or any(body is not bodies[0] for body in bodies)
            or any(each.event is not message.event for _, each in self.batch)
        ):
            return None
        pieces = self._app.components.task_templates.pieces
        shared: tuple[list[str], tuple[int, ...]] | None
        shared = pieces(target, message, bodies[0].packed, self._shared_values, partial(self._written, channel))
        return shared

    def own_values(self, channel: Channel) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Return what stands between the pieces of the shared text in each message.

        Args:
            channel: the channel that is to publish them.

        Returns:
            For each message the key of its list, the key of its queue's doorbell, and its values.
        """
        priority = broker_priority(self.batch[0][1].priority, self._driver)
        for target, message in self.batch:
            queue = agent_queue(target.agent).name
            values = own_values(target, message, queue, channel.next_delivery_tag())
            yield *channel.keys.of_priority(queue, priority), values

    @property
    def _shared_values(self) -> tuple[Any, ...]:
        """What the texts depend on beside their messages."""
        return self._origin, self._shown_arguments, self._stores_result, self._result_queue

    def _written(
        self, channel: Channel, target: HandlerName, message: Message, body: PackedBody
    ) -> dict[str, Any]:
        """Write one message as Celery and Kombu do."""
        headers, properties, *_ = self._task(target, message)
        headers |= {**envelope_headers(message, message.expires_at), **self._reply_to_header}
        if body.codec is not None:
            headers["compression"] = body.codec
        written: dict[str, Any] = channel.prepare_message(
            body.body,
            broker_priority(message.priority, self._driver),
            body.content_type,
            body.content_encoding,
            headers,
            {**properties, "delivery_mode": 2},
        )
        queue = agent_queue(target.agent)
        channel.complete_message(written, queue.exchange.name, queue.routing_key)
        return written

    def _publish_directly(self, channel: Channel, when_ready: Callable[[], object]) -> None:
        """Publish the messages with as few commands as possible."""
        lists: dict[tuple[str, str], list[str]] = {}
        for list_, bell, text in self.texts(channel):
            lists.setdefault((list_, bell), []).append(text)
        when_ready()
        push_now(channel, lists)

    def _prepared(self, channel: amqp.Channel) -> Iterator[Prepared]:
        """Write the messages as RabbitMQ gets them: they share headers and properties, but for their own."""
        headers, properties, *_ = self._task(*self.batch[0])
        for (target, message), encoded in zip(self.batch, self._bodies or [], strict=True):
            body = encoded.packed
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
            prepared = channel.prepare_message(
                body.body,
                broker_priority(message.priority, self._driver),
                body.content_type,
                body.content_encoding,
                {**headers, **own},
                {**properties, "correlation_id": message.message_id, "delivery_mode": 2},
            )
            yield Prepared(message.message_id, agent_queue(target.agent), prepared)


@lru_cache(maxsize=1)
def _origin(_: int) -> str:
    """Return Celery's name for this process as a client; it has its process id, and is another after a fork."""
    return anon_nodename()


def _arguments(target: HandlerName, message: Message) -> tuple[tuple[JSON, ...], Any]:
    """Return the arguments of a message's task: its payload alone, or the parameters of a method."""
    if message.reference is not None:
        return (message.reference,), {}
    return ((message.payload,), {}) if takes_message(target.handler) else ((), message.payload)
