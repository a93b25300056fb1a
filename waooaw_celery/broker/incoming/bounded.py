"""Messages that are decoded with this package's formats and within the caps of their connection.

Kombu decodes with the registry of the process. It has no limits, and other applications use it too. So the
messages of an application of this package decode themselves.
"""

from __future__ import annotations

import sys
from functools import cache, cached_property
from typing import Any

from kombu.transport import base, virtual
from kombu.utils.encoding import ensure_bytes

from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.formats import decode_accepted


class BoundedDecoding:
    """Decodes the body of a Kombu message within the caps of its channel."""

    body: Any
    content_type: Any
    content_encoding: Any
    accept: Any
    channel: Any

    def _decode(self) -> Any:
        # ``Message.decode`` calls it once and keeps the result.
        caps = getattr(self.channel, "caps", None) or Caps()
        return decode_accepted(self.body, self.content_type, self.content_encoding, self.accept, caps)


class BoundedMessage(BoundedDecoding, virtual.Message):
    """A message of one of Kombu's own virtual transports. It is also decompressed within the caps."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        self._raw = payload
        properties, headers = payload["properties"], payload.get("headers") or {}
        body, error = payload.get("body"), None
        try:
            if body:
                body = ensure_bytes(channel.decode_body(body, properties.get("body_encoding")))
            if "compression" in headers:
                body = expand(body, headers["compression"], channel.caps)
                headers = without_compression(headers)
        except Exception:  # noqa: BLE001 - damaged data may raise anything, and here it would end the worker
            error = sys.exc_info()
        if error is not None:
            self.errors = [error]  # Kombu then decompresses nothing, and its consumer calls ``on_decode_error``
        # Not virtual.Message, which would unpack the body again, without a limit.
        super(virtual.Message, self).__init__(
            body=body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=headers,
            properties=properties,
            delivery_info=properties.get("delivery_info"),
            **kwargs,
        )


class _BoundedChannel:
    """A channel with the limits that the options of its connection name."""

    connection: Any
    Message = BoundedMessage

    @cached_property
    def caps(self) -> Caps:
        """The limits and formats that are accepted."""
        return Caps.of(self.connection.client.transport_options)


@cache
def bounded_transport(transport: type[base.Transport]) -> type[base.Transport]:
    """Return a subclass of one of Kombu's virtual transports whose messages are decoded within the caps.

    Args:
        transport: A transport class. One that is not virtual, or that has a message class of its own, is returned
            unchanged.
    """
    channel = getattr(transport, "Channel", None)
    if not isinstance(channel, type) or getattr(channel, "Message", None) is not virtual.Message:
        return transport
    bounded = type(channel.__name__, (_BoundedChannel, channel), {"__module__": __name__})
    return type(transport.__name__, (transport,), {"__module__": __name__, "Channel": bounded})


def without_compression(headers: dict[str, Any]) -> dict[str, Any]:
    """Return headers without ``compression``, for a message whose body is unpacked."""
    if "compression" not in headers:
        return headers
    return {name: value for name, value in headers.items() if name != "compression"}
