"""Kombu's transport for RabbitMQ with the guard: messages are checked before anything is unpacked, as on Redis.

Kombu unpacks a message when it arrives, with any codec and to any size, and Celery trusts its contents. Here, a
message that breaks a rule is passed on unchanged together with its error. Kombu's consumer then calls
``on_decode_error``, and decodes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

from amqp import basic_message, method_framing
from kombu.transport import base, pyamqp

from waooaw_celery.broker.amqp.batch import AmqpPublishBatch, PartlyPublished
from waooaw_celery.broker.amqp.confirms import Confirms, check_connection
from waooaw_celery.broker.incoming.bounded import BoundedDecoding, without_compression
from waooaw_celery.broker.incoming.delivery import to_redis_item
from waooaw_celery.broker.incoming.guard import check_task_headers, decode_task
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.wire.caps import Caps, header_bytes
from waooaw_celery.wire.codecs import expand

logger = get_logger(__name__)

#: The type of the frame that carries a message's properties, and the length in bytes of what precedes them in it.
_HEADER_FRAME, _PROPERTIES_OFFSET = 2, 12


class Message(BoundedDecoding, pyamqp.Message):
    """A message that was checked, unpacked and, for a task, decoded when it arrived.

    Attributes:
        guarded: Whether the guard has checked everything that Celery relies on.
    """

    guarded = True

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        self._arrived = msg
        properties = msg.properties
        headers = properties.get("application_headers") or {}
        body, decoded, error = msg.body, None, None
        try:
            body, decoded = _unpack(msg.body, properties, headers, channel.caps)
        except Exception:  # noqa: BLE001 - any content encoding may raise anything, and here it would end the worker
            error = sys.exc_info()
        if error is not None:
            self.errors = [error]  # Kombu then unpacks nothing
        # Not pyamqp.Message, which would read everything from ``msg`` again.
        super(pyamqp.Message, self).__init__(
            body=body,
            channel=channel,
            delivery_tag=msg.delivery_tag,
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            delivery_info=msg.delivery_info,
            properties=properties,
            headers=headers if error is not None else without_compression(headers),
            **kwargs,
        )
        self._decoded_cache = decoded

    @property
    def item(self) -> bytes:
        """The message as it arrived, in the form in which messages travel on Redis."""
        properties = self._arrived.properties
        return to_redis_item(
            self._arrived.body,
            properties.get("content_type"),
            properties.get("content_encoding"),
            properties.get("application_headers") or {},
            properties,
        )


class Channel(pyamqp.Channel):
    """A channel with limits for what arrives, and with pipelined confirms for what is published.

    Attributes:
        declared_agents: the agents whose queues were declared over this channel.
    """

    Message = Message

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.declared_agents: set[str] = set()
        super().__init__(*args, **kwargs)

    def basic_publish_confirm(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Publish a message, and wait until RabbitMQ confirms it.

        Raises:
            ChannelError: no queue takes the message, which is ``mandatory``.
            MessageNacked: RabbitMQ refused the message.
            IrrecoverableConnectionError: RabbitMQ did not confirm the message in time: it hangs, or its memory is
                full and it reads nothing. Kombu would wait for an answer to its close and then publish again, so
                that RabbitMQ would have the message several times.
            RecoverableConnectionError: the connection was lost.
        """
        batch = AmqpPublishBatch(self, max_size=2)
        try:
            batch.publish(msg, *args, **kwargs)
            batch.flush()
        except PartlyPublished as error:
            cause = error.__cause__ or error
            raise cause from None

    @property
    def supports_batch_publish(self) -> bool:
        """Whether the messages of a batch are confirmed: ``confirm_publish`` is the default."""
        return self.connection is not None and bool(self.connection.confirm_publish)

    def create_publish_batch(self, max_size: int) -> AmqpPublishBatch:
        """Return a batch for Kombu's ``Producer.batch``.

        Args:
            max_size: how many messages are published at the latest.
        """
        return AmqpPublishBatch(self, max_size)

    @cached_property
    def confirms(self) -> Confirms:
        """The confirms of this channel, which is in confirm mode from the first use on."""
        return Confirms(self)

    def check_connection(self) -> None:
        """Close a connection that the server has closed while it was not used, so that a new one is opened."""
        if self.connection is not None:
            check_connection(self.connection)

    @property
    def caps(self) -> Caps:
        """The limits and formats that are accepted."""
        if self._caps is None:
            client = getattr(self.connection, "client", None)
            self._caps = Caps.of(client.transport_options if client is not None else {})
        return self._caps

    _caps: Caps | None = None


class Connection(pyamqp.Connection):
    """A connection with such channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"frame_handler": frame_handler, **kwargs})


class Transport(pyamqp.Transport):
    """A transport with such connections."""

    Connection = Connection
    implements = pyamqp.Transport.implements.extend(batch_publish=True)


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The same transport over TLS."""


def frame_handler(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return py-amqp's handler of frames, extended to frames whose properties py-amqp cannot read.

    Headers that are nested a thousand levels deep, or a time stamp out of range, would end the process, and then
    each process that receives the message after it. Here, such a message arrives without properties, and so not as
    a task.

    Args:
        connection: The connection that reads the frames.
        callback: Called with each method and its content.
    """
    read_frame = method_framing.frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        try:
            return read_frame(frame)
        except Exception as error:
            frame_type, channel, buffer = frame
            if frame_type != _HEADER_FRAME or _can_read(buffer):
                raise
            logger.warning(
                "a message has unreadable properties and becomes a dead letter: %a",
                error,
                extra={"action": "properties_unreadable"},
            )
            return read_frame((frame_type, channel, bytes(buffer[:_PROPERTIES_OFFSET]) + b"\0\0"))

    return on_frame


def _can_read(buffer: Any) -> bool:
    try:
        message: Any = basic_message.Message()
        message.inbound_header(buffer)
    except Exception:  # noqa: BLE001 - only whether there is an error matters
        return False
    return True


def _unpack(body: Any, properties: Any, headers: dict[str, Any], caps: Caps) -> tuple[Any, Any]:
    """Return the unpacked body, and for a task the decoded one.

    Raises:
        DecodingFailed: The message breaks a rule, exceeds a limit, or cannot be read.
    """
    try:
        size = header_bytes(headers)
    except (TypeError, ValueError, RecursionError) as error:
        raise DecodingFailed(f"its headers cannot be read: {error!r:.200}") from error
    if size > caps.max_header_bytes:
        raise DecodingFailed(f"its headers have about {size} bytes, more than {caps.max_header_bytes}")
    if len(body or b"") > caps.max_body_bytes:
        raise DecodingFailed(f"its body has {len(body)} bytes, more than {caps.max_body_bytes}")
    is_task = "task" in headers
    if is_task:
        check_task_headers(headers)
    codec = headers.get("compression")
    if codec is not None:
        if not isinstance(codec, str):
            raise DecodingFailed("its header 'compression' is not text")
        body = expand(body.encode() if isinstance(body, str) else body, codec, caps)
    if not is_task:
        return body, None
    return body, decode_task(body, properties.get("content_type"), properties.get("content_encoding"), caps)


#: The transports by Kombu's names for its own.
TRANSPORTS: dict[str, type[base.Transport]] = {
    "amqp": Transport,
    "pyamqp": Transport,
    "amqps": SSLTransport,
}
