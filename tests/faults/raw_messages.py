"""Take messages out of a queue in the broker's form, and put changed ones back."""

from __future__ import annotations

import base64
import json
from typing import Any

import rawqueue
from kombu import Connection
from rawqueue import publishable

from faults.cluster import Cluster


def take(cluster: Cluster, count: int, patience: float = 10.0) -> list[dict[str, Any]]:
    """Take messages out of the queue of an agent without a worker, in the form in which Redis stores them."""
    cluster.until(lambda: cluster.waiting() >= count, f"{count} messages in the queue", patience)
    if not cluster.rabbitmq:
        client: Any = cluster.broker.client  # type: ignore[attr-defined]
        queue = cluster.stack.queue()
        found: list[dict[str, Any]] = []
        for list_ in (queue, *(f"{queue}\x06\x16{priority}" for priority in (3, 6, 9))):
            found += [json.loads(item) for item in reversed(client.lrange(list_, 0, -1))]
            client.delete(list_)
        return found
    taken: list[dict[str, Any]] = []
    with Connection(cluster.broker.url) as connection, connection.channel() as channel:
        while (message := channel.basic_get(cluster.stack.queue(), no_ack=True)) is not None:
            properties = dict(message.properties)
            taken.append(
                {
                    "body": base64.b64encode(_bytes(message.body)).decode(),
                    "headers": dict(message.headers),
                    "content-type": properties.get("content_type"),
                    "content-encoding": properties.get("content_encoding"),
                    "properties": {"body_encoding": "base64", "delivery_info": {}, "priority": 3},
                }
            )
    return taken


def put(cluster: Cluster, item: bytes) -> bool:
    """Put a raw item into the queue, or return False if this broker cannot carry it."""
    if not cluster.rabbitmq:
        client: Any = cluster.broker.client  # type: ignore[attr-defined]
        client.lpush(cluster.stack.queue(), item)
        return True
    found = publishable(item)
    if found is None:
        return False
    with Connection(cluster.broker.url) as connection, connection.channel() as channel:
        rawqueue.put(channel, cluster.stack.queue(), *found)
        channel.queue_declare(cluster.stack.queue(), passive=True)  # the answer means that it has arrived
    return True


def _bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
