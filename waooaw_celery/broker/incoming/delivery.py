"""The forms of a message on its way: the text that travels, the claim of a consumer, and the delivered message."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu.transport import virtual
from kombu.utils.json import dumps as kombu_dumps

from waooaw_celery.broker.incoming.bounded import BoundedMessage, without_compression
from waooaw_celery.broker.incoming.guard import Delivery

#: The header that counts how often a message was redelivered after its consumer died. RabbitMQ uses the same name.
DELIVERY_COUNT = "x-delivery-count"
#: The default of the transport option ``delivery_limit``: how often a message is redelivered after its consumer
#: died, before it becomes a dead letter.
DELIVERY_LIMIT = 5

#: The prefix of the delivery tags of leased messages. Kombu's own consumers use other tags.
LEASE_TAG_PREFIX = "lease:"

#: The properties that a dead letter keeps, in addition to the headers.
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
        tag: Its delivery tag.
        queue: The name of its queue.
        list: The key of the list that it was in.
        raw: Its bytes.
        is_recorded: Whether the claim has recorded its delivery in its receipt.
        is_dropped: Whether it is not to be handled: a message with its key is handled or waits already.
    """

    tag: str
    queue: str
    list: str
    raw: bytes
    is_recorded: bool = False
    is_dropped: bool = False


class Message(BoundedMessage):
    """A message that the guard has checked, unpacked and, for a task, decoded.

    Attributes:
        guarded: Whether the guard has checked everything that Celery relies on.
    """

    guarded = False

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if not isinstance(payload, Delivery):
            super().__init__(payload, channel=channel, **kwargs)
            return
        self._raw = payload
        self.guarded = True
        properties = payload["properties"]
        # Not Kombu's virtual.Message, which would unpack the body again.
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
    """Return a message as it travels on Redis."""
    try:
        return _encode(message)
    except (TypeError, ValueError):  # its headers have values that only Kombu's encoder can write
        return str(kombu_dumps(message))


def to_redis_item(
    body: Any, content_type: Any, content_encoding: Any, headers: Any, properties: Mapping[str, Any]
) -> bytes:
    """Return a message of another broker in the form in which it would travel on Redis.

    Args:
        body: The body as it arrived, text or bytes.
        content_type: The content type.
        content_encoding: The content encoding.
        headers: The headers as they arrived. Headers that JSON cannot express become text.
        properties: The message's other properties.
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
    except (TypeError, ValueError, RecursionError):
        item["headers"] = _describe(headers)
        item["properties"] = {"body_encoding": item["properties"]["body_encoding"]}
        return to_text(item).encode("utf-8", "backslashreplace")


def _describe(value: Any) -> str:
    try:
        return ascii(value)
    except RecursionError:
        return "nested too deeply"


def mark_redelivered(message: Any) -> None:
    """Mark a message, in the form in which it travels, as delivered before."""
    message["headers"]["redelivered"] = True
    properties = message.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"]["redelivered"] = True
