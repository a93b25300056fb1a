"""Turns messages that no consumer may see again into dead letters: entries of a stream, with the raw bytes."""

from __future__ import annotations

import json
from typing import Any

from celery.utils.dispatch import Signal

from waooaw_celery.broker.redis.scripts import DEAD_LETTER
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: The name of the stream, and of the queue on other brokers.
DEAD_LETTERS_KEY = "waooaw.dead"

#: Sent after a message became a dead letter. ``sender`` is what made it one, ``queue`` the queue's name, ``raw``
#: the message's bytes, ``message_id`` the id of its task or None, ``reason`` a sentence, ``worker`` a node name or
#: None.
dead_lettered = Signal(name="dead_lettered", providing_args=["queue", "raw", "message_id", "reason", "worker"])


def dead_letter(
    channel: Any,
    client: Any,
    tag: str | bytes,
    queue: str,
    raw: bytes,
    reason: str,
    claimed_at: bytes | str = "",
    worker: str | None = None,
) -> bool:
    """Make a dead letter of an unacknowledged message.

    Args:
        channel: The channel that found the message.
        client: The Redis client to use.
        tag: The message's delivery tag.
        queue: The queue that the message came from.
        raw: The message's bytes, or its entry among the unacknowledged messages.
        reason: Why the message died, a sentence.
        claimed_at: When its lease was last renewed. Empty for a message that the channel itself holds.
        worker: The node name of the worker, if known.

    Returns:
        Whether the message became a dead letter: False if another consumer has acknowledged or restored it, or
        renewed its lease.
    """
    keys = [*channel.keys.noted, channel.keys.dead_letters]
    done = bool(DEAD_LETTER(client, keys, [tag, queue, reason, claimed_at, channel.dead_letters_max]))
    if done:
        notify_dead_lettered(channel, queue, raw, reason, worker)
    return done


def notify_dead_lettered(sender: Any, queue: str, raw: bytes, reason: str, worker: str | None = None) -> None:
    """Log a dead letter, and send the signal ``dead_lettered``.

    Args:
        sender: What made it a dead letter, such as a channel.
        queue: The queue that the message came from.
        raw: The message's bytes.
        reason: Why the message died, a sentence.
        worker: The node name of the worker, if known.
    """
    message_id = read_message_id(raw)
    logger.error(
        "a message of %a became a dead letter: %s (id %a)",
        queue,
        reason,
        message_id,
        extra={"action": "message_dead_lettered"},
    )
    dead_lettered.send(sender=sender, queue=queue, raw=raw, message_id=message_id, reason=reason, worker=worker)


def read_message_id(raw: bytes) -> str | None:
    """Return the task id of a message, or of its entry among the unacknowledged messages; None if unreadable."""
    try:
        parsed = json.loads(raw)
        message = parsed[0] if isinstance(parsed, list) else parsed
        id_ = message["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return id_ if isinstance(id_, str) else None
