"""Messages as a hostile publisher puts them into queues: past every check, on Redis and on RabbitMQ."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from amqp import basic_message
from amqp.exceptions import FrameSyntaxError

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.broker.incoming.delivery import as_item
from waooaw_celery.messages.queues import agent_queue


def real_messages(app: AgentApp, name: str, count: int) -> list[dict[str, Any]]:
    """Send messages to an agent that does not run, take them out of its queue, and return what travelled."""
    for number in range(count):
        MessageBus(app).send(Message(from_agent="tests", to_agent=name, payload={"number": number}))
    found = []
    with app.connection_for_write() as connection, connection.channel() as channel:
        queue = agent_queue(name)(channel)
        while (message := queue.get(no_ack=True)) is not None:
            told = {**message.properties, "delivery_info": message.delivery_info}
            told.pop("application_headers", None)
            way = message.content_type, message.content_encoding
            found.append(json.loads(as_item(message.body, *way, message.headers, told)))
    assert len(found) == count
    return found


def publishable(item: bytes) -> tuple[Any, dict[str, Any]] | None:
    """Return body and properties of an item of a Redis queue for RabbitMQ, or None for what cannot be there."""
    try:
        said = json.loads(item, parse_constant=int)  # RabbitMQ refuses NaN and infinity itself
        body, headers, properties = said["body"], said["headers"], said["properties"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
        elif properties.get("body_encoding") is not None:
            return None
        body = body.encode() if isinstance(body, str) else body
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if body is not None and not isinstance(body, bytes):
        return None
    way = {"content_type": said.get("content-type"), "content_encoding": said.get("content-encoding")}
    if not isinstance(headers, dict) or not all(isinstance(each, str | None) for each in way.values()):
        return None
    said_so = {"application_headers": headers, "priority": 3, **way}
    message: Any = basic_message.Message(body or b"", **said_so)
    try:
        message._serialize_properties()
    except (struct.error, ValueError, TypeError, FrameSyntaxError, RecursionError):  # too long, or too large
        return None
    return body or b"", said_so


def put(channel: Any, queue: str, body: bytes, properties: dict[str, Any]) -> None:
    """Put a message into a queue of RabbitMQ."""
    headers = dict(properties)
    application = headers.pop("application_headers")
    way = headers.pop("content_type"), headers.pop("content_encoding")
    message = channel.prepare_message(body, headers.pop("priority"), *way, application, headers)
    channel.basic_publish(message, exchange="", routing_key=queue)
