"""Has the next attempt of a message keep the place of the last one in its key."""

from __future__ import annotations

from typing import Any

from waooaw_celery.broker.redis.channel import Channel


def keep_place(request: Any) -> None:
    """Have the next attempt of a message take the place of this one in its key, when this one is acknowledged.

    Args:
        request: an AgentRequest whose handler is tried again.
    """
    message = request.message
    if isinstance(message.channel, Channel) and message.channel.groups is not None:
        unacked = message.channel.keys.noted[0]
        message.channel.acks.carry(message.delivery_tag, ("SADD", f"{unacked}:retried", message.delivery_tag))
