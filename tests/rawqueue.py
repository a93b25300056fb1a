"""Puts messages into queues as a hostile publisher would, past every check, on Redis and on RabbitMQ."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from amqp import basic_message
from amqp.exceptions import FrameSyntaxError

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.broker.incoming.delivery import to_redis_item
from waooaw_celery.messages.queues import agent_queue


def real_messages(app: AgentApp, name: str, count: int) -> list[dict[str, Any]]:
    """Send messages to an agent without a worker, and return them as they travelled."""
    for number in range(count):
        # On a busy computer a whole corpus takes more than the usual five minutes.
        sent = Message(from_agent="tests", to_agent=name, payload={"number": number}, ttl_seconds=3600)
        MessageBus(app).send(sent)
    found = []
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = agent_queue(name)(channel)
        while (message := queue.get(no_ack=True)) is not None:
            properties = {**message.properties, "delivery_info": message.delivery_info}
            properties.pop("application_headers", None)
            content = message.content_type, message.content_encoding
            found.append(json.loads(to_redis_item(message.body, *content, message.headers, properties)))
    assert len(found) == count
    return found


def publishable(item: bytes) -> tuple[Any, dict[str, Any]] | None:
    """Return the body and properties of a Redis queue's item for RabbitMQ, or None if impossible there."""
    try:
        parsed = json.loads(item, parse_constant=int)  # RabbitMQ refuses NaN and infinity itself
        body, headers, properties = parsed["body"], parsed["headers"], parsed["properties"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
        elif properties.get("body_encoding") is not None:
            return None
        body = body.encode() if isinstance(body, str) else body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if body is not None and not isinstance(body, bytes):
        return None
    content = {"content_type": parsed.get("content-type"), "content_encoding": parsed.get("content-encoding")}
    if not isinstance(headers, dict) or not all(isinstance(each, str | None) for each in content.values()):
        return None
    amqp_properties = {"application_headers": headers, "priority": 3, **content}
    message: Any = basic_message.Message(body or b"", **amqp_properties)
    try:
        message._serialize_properties()
    except (struct.error, ValueError, TypeError, FrameSyntaxError, RecursionError):  # too long, or too large
        return None
    return body or b"", amqp_properties


def put(channel: Any, queue: str, body: bytes, properties: dict[str, Any]) -> None:
    """Publish a message to a queue of RabbitMQ."""
    headers = dict(properties)
    application = headers.pop("application_headers")
    content = headers.pop("content_type"), headers.pop("content_encoding")
    message = channel.prepare_message(body, headers.pop("priority"), *content, application, headers)
    channel.basic_publish(message, exchange="", routing_key=queue)
