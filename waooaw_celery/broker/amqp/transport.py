"""Kombu's transport for RabbitMQ, with what arrives looked at before anything is unpacked, as on Redis.

Kombu unpacks what arrives as soon as it arrives, with any codec and to any size, and Celery trusts what it says.
What breaks a rule here is handed on as it came, with its error: Kombu's consumer hands it to ``on_decode_error``,
and decodes nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from amqp import basic_message, method_framing
from amqp.exceptions import IrrecoverableConnectionError
from kombu.transport import base, pyamqp

from waooaw_celery.broker.incoming.delivery import as_item, without_compression
from waooaw_celery.broker.incoming.guard import check_task_headers, decode_task
from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import Caps, header_bytes
from waooaw_celery.wire.codecs import expand

logger = logging.getLogger(__name__)

#: The kind of frame that has a message's properties, and how many of its bytes stand before these.
_HEADER_FRAME, _BEFORE_PROPERTIES = 2, 12


class Message(pyamqp.Message):
    """A message that was looked at, unpacked, and for a task decoded, when it arrived.

    Attributes:
        guarded: whether everything of it that Celery would trust was checked.
    """

    guarded = True

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        self._arrived = msg
        properties = msg.properties
        headers = properties.get("application_headers") or {}
        body, decoded, error = msg.body, None, None
        try:
            body, decoded = _read(msg.body, properties, headers, channel.caps)
        except Exception:  # noqa: BLE001 - a content encoding alone may raise anything, and here it ends the worker
            error = sys.exc_info()
        if error is not None:
            self.errors = [error]  # Kombu unpacks nothing then
        # Kombu's message of RabbitMQ would take everything from ``msg`` again.
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
        """The message as it came, in the form in which messages travel on Redis."""
        properties = self._arrived.properties
        return as_item(
            self._arrived.body,
            properties.get("content_type"),
            properties.get("content_encoding"),
            properties.get("application_headers") or {},
            properties,
        )


class Channel(pyamqp.Channel):
    """A channel whose messages are bounded by its connection's caps, and whose publishes end in time."""

    Message = Message

    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        """Publish a message, and wait until RabbitMQ has it.

        Raises:
            IrrecoverableConnectionError: it did not say so in time: it froze, or its memory is full and it reads
                nothing. Kombu would publish again, and RabbitMQ would have the message several times afterwards;
                before that, it would wait for an answer to its good-bye.
        """
        connection = self.connection
        try:
            return super().basic_publish_confirm(*args, **kwargs)
        except TimeoutError as error:
            connection.collect()
            raise IrrecoverableConnectionError(f"RabbitMQ confirmed nothing in time: {error}") from error

    @property
    def caps(self) -> Caps:
        """What is accepted."""
        if self._caps is None:
            client = getattr(self.connection, "client", None)
            self._caps = Caps.of(client.transport_options if client is not None else {})
        return self._caps

    _caps: Caps | None = None


class Connection(pyamqp.Connection):
    """A connection of such channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"frame_handler": frame_handler, **kwargs})


class Transport(pyamqp.Transport):
    """Kombu's transport for RabbitMQ, with such connections."""

    Connection = Connection


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The same over TLS."""


def frame_handler(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return what reads the frames of a connection: as py-amqp's does, also those whose properties it cannot read.

    Headers that are nested a thousand deep, or that hold a moment beyond all calendars, would end its process, and
    then the next one that meets them. Such a message arrives without properties, and so as no task.
    """
    read = method_framing.frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        try:
            return read(frame)
        except Exception as error:
            kind, channel, buffer = frame
            if kind != _HEADER_FRAME or _can_read(buffer):
                raise
            logger.warning(
                "the properties of a message cannot be read: %a", error, extra={"action": "properties_unreadable"}
            )
            return read((kind, channel, bytes(buffer[:_BEFORE_PROPERTIES]) + b"\0\0"))

    return on_frame


def _can_read(buffer: Any) -> bool:
    try:
        message: Any = basic_message.Message()
        message.inbound_header(buffer)
    except Exception:  # noqa: BLE001 - which one does not matter: it is asked whether there is any
        return False
    return True


def _read(body: Any, properties: Any, headers: dict[str, Any], caps: Caps) -> tuple[Any, Any]:
    """Return a body unpacked, and for a task decoded.

    Raises:
        DecodingFailed: it breaks a rule or a cap, or cannot be read.
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
            raise DecodingFailed("its header 'compression' is no text")
        body = expand(body.encode() if isinstance(body, str) else body, codec, caps)
    if not is_task:
        return body, None
    return body, decode_task(body, properties.get("content_type"), properties.get("content_encoding"), caps)


#: The transports by the names that Kombu has for its own.
TRANSPORTS: dict[str, type[base.Transport]] = {
    "amqp": Transport,
    "pyamqp": Transport,
    "amqps": SSLTransport,
}
