"""Messages on their way: as text, as what a consumer has claimed, and as what it is given."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.json import dumps as kombu_dumps

from waooaw_celery.broker.incoming.guard import Delivery

#: How often a message was taken back from a consumer that died; RabbitMQ's name for the same.
DELIVERY_COUNT = "x-delivery-count"
#: How often a message is handed out again whose consumer died, unless the transport's option ``delivery_limit``
#: says otherwise; the next time it is a dead letter.
DELIVERY_LIMIT = 5

#: How the tags of leased messages begin: those that Kombu's own consumers note have no such thing.
TAG_SEPARATOR = "lease:"

#: What a dead letter keeps of a message's properties, besides its headers.
_KEPT_PROPERTIES = (
    "correlation_id",
    "reply_to",
    "priority",
    "delivery_mode",
    "delivery_info",
    "message_id",
    "type",
)

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
    """A message whose body was unpacked, and for a task decoded, when it was looked at.

    Attributes:
        guarded: whether everything of it that Celery would trust was checked.
    """

    guarded = False

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if not isinstance(payload, Delivery):
            super().__init__(payload, channel=channel, **kwargs)
            return
        self._raw = payload
        self.guarded = True
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


def as_item(
    body: Any, content_type: Any, content_encoding: Any, headers: Any, properties: Mapping[str, Any]
) -> bytes:
    """Return a message that came from another broker as it would travel on Redis.

    Args:
        body: text or bytes, as it came.
        content_type: its format.
        content_encoding: its content encoding.
        headers: the headers as they came.
        properties: the others of its properties.
    """
    data = bytes(body) if isinstance(body, bytes | bytearray | memoryview) else None
    item = {
        "body": body if data is None else b64encode(data).decode(),
        "content-type": content_type,
        "content-encoding": content_encoding,
        "headers": headers,
        "properties": {
            **{name: value for name, value in properties.items() if name in _KEPT_PROPERTIES},
            "body_encoding": None if data is None else "base64",
        },
    }
    item["properties"].setdefault("delivery_info", {})
    try:
        return to_text(item).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError, RecursionError):  # headers may hold what no JSON can say: they are told as text
        item["headers"], item["properties"] = (
            _told(headers),
            {"body_encoding": item["properties"]["body_encoding"]},
        )
        return to_text(item).encode("utf-8", "backslashreplace")


def _told(value: Any) -> str:
    try:
        return ascii(value)
    except RecursionError:
        return "nested too deeply"


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
