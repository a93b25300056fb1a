"""Kombu's transport for RabbitMQ, with bodies unpacked within bounds.

Kombu unpacks what arrives as soon as it arrives, with any codec and to any size. What cannot be read here is
handed on as it came, with its error: Kombu's consumer hands it to ``on_decode_error``, and decodes nothing.
"""

from __future__ import annotations

import sys
from typing import Any

from amqp.exceptions import IrrecoverableConnectionError
from kombu.transport import base, pyamqp

from waooaw_celery.errors import Unreadable
from waooaw_celery.transport.travel import without_compression
from waooaw_celery.wire.caps import Caps, header_bytes
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode


class Message(pyamqp.Message):
    """A message whose body was unpacked, and for a task decoded, when it arrived."""

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        properties = msg.properties
        headers = properties.get("application_headers") or {}
        body, decoded, error = msg.body, None, None
        try:
            body, decoded = _read(msg.body, properties, headers, channel.caps)
        except Unreadable:
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


class Transport(pyamqp.Transport):
    """Kombu's transport for RabbitMQ, with such connections."""

    Connection = Connection


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The same over TLS."""


def _read(body: Any, properties: Any, headers: dict[str, Any], caps: Caps) -> tuple[Any, Any]:
    """Return a body unpacked, and for a task decoded.

    Raises:
        Unreadable: it breaks a cap, or cannot be read.
    """
    size = header_bytes(headers)
    if size > caps.max_header_bytes:
        raise Unreadable(f"its headers have about {size} bytes, more than {caps.max_header_bytes}")
    if len(body or b"") > caps.max_body_bytes:
        raise Unreadable(f"its body has {len(body)} bytes, more than {caps.max_body_bytes}")
    codec = headers.get("compression")
    if codec is not None:
        if not isinstance(codec, str):
            raise Unreadable("its header 'compression' is no text")
        body = expand(body.encode() if isinstance(body, str) else body, codec, caps)
    if "task" not in headers:
        return body, None
    content_type = str(properties.get("content_type"))
    return body, decode(body or b"", content_type, properties.get("content_encoding"), caps)


#: The transports by the names that Kombu has for its own.
TRANSPORTS: dict[str, type[base.Transport]] = {
    "amqp": Transport,
    "pyamqp": Transport,
    "amqps": SSLTransport,
}
