"""Messages on their way: as text, as what a consumer has claimed, and as what it is given."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.json import dumps as kombu_dumps

from waooaw_celery.transport.guard import Delivery

#: How often a message was taken back from a consumer that died; RabbitMQ's name for the same.
DELIVERY_COUNT = "x-delivery-count"

#: How the tags of leased messages begin: those that Kombu's own consumers note have no such thing.
TAG_MARK = "lease:"

_encode = json.JSONEncoder().encode


class Claim(NamedTuple):
    """An item of a queue that a consumer has claimed.

    Attributes:
        tag: under which it is noted as unacknowledged.
        queue: name of its queue.
        list: key of the list in which it was.
        raw: its bytes.
    """

    tag: str
    queue: str
    list: str
    raw: bytes


class Message(virtual.Message):
    """A message whose body was unpacked, and for a task decoded, when it was looked at."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if not isinstance(payload, Delivery):
            super().__init__(payload, channel=channel, **kwargs)
            return
        self._raw = payload
        properties = payload["properties"]
        # Kombu's virtual message would unpack the body once more.
        super(virtual.Message, self).__init__(
            body=payload.body,
            channel=channel,
            delivery_tag=properties["delivery_tag"],
            content_type=payload.get("content-type"),
            content_encoding=payload.get("content-encoding"),
            headers=without_compression(payload["headers"]),
            properties=properties,
            delivery_info=properties["delivery_info"],
            **kwargs,
        )
        self._decoded_cache = payload.decoded


def to_text(message: Any) -> str:
    """Return a message as it travels."""
    try:
        return _encode(message)
    except (TypeError, ValueError):  # values that Kombu wraps, in its headers
        return str(kombu_dumps(message))


def mark_redelivered(message: Any) -> None:
    """Mark a message, as it travels, as one that was delivered before."""
    message["headers"]["redelivered"] = True
    properties = message.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"]["redelivered"] = True


def without_compression(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers of a message whose body was unpacked."""
    if "compression" not in headers:
        return headers
    return {name: value for name, value in headers.items() if name != "compression"}
