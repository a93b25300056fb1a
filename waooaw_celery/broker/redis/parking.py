"""Dead letters: what no consumer may see any more, kept with its raw bytes in a stream of the broker."""

from __future__ import annotations

import json
import logging
from typing import Any

from celery.utils.dispatch import Signal

from waooaw_celery.broker.redis.scripts import PARK

logger = logging.getLogger(__name__)

#: The name of the stream, and on other brokers of the queue.
DEAD_KEY = "waooaw.dead"

#: Sent when a message became a dead letter: ``sender`` made it one, ``queue`` is the queue's name, ``raw`` the
#: message's bytes, ``message_id`` the id of its task or None, ``reason`` a sentence, ``worker`` a node name or
#: None.
dead_lettered = Signal(name="parked", providing_args=["queue", "raw", "message_id", "reason", "worker"])


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
    """Make a dead letter of an unacknowledged message, and return whether nobody was faster.

    Args:
        channel: that found it.
        client: over which to do it.
        tag: under which it is noted.
        queue: from which it came.
        raw: its bytes, or what is noted of it.
        reason: a sentence.
        claimed_at: when its lease was renewed last; empty for a message that the channel holds itself.
        worker: node name of the worker that does it, where that is known.
    """
    keys = [*channel.keys.noted, channel.keys.dead]
    done = bool(PARK(client, keys, [tag, queue, reason, claimed_at, channel.dead_letters_max]))
    if done:
        notify_dead_lettered(channel, queue, raw, reason, worker)
    return done


def notify_dead_lettered(sender: Any, queue: str, raw: bytes, reason: str, worker: str | None = None) -> None:
    """Tell the log, and whoever listens, of a dead letter.

    Args:
        sender: a channel, or whoever else made it one.
        queue: from which it came.
        raw: its bytes.
        reason: a sentence.
        worker: node name of the worker that tells it, where that is known.
    """
    id_ = id_of(raw)
    logger.error(
        "a message of %a became a dead letter: %s (id %a)", queue, reason, id_, extra={"action": "message_parked"}
    )
    dead_lettered.send(sender=sender, queue=queue, raw=raw, message_id=id_, reason=reason, worker=worker)


def id_of(raw: bytes) -> str | None:
    """Return the id of the task that a message, or a note of one, is of, where it can be read."""
    try:
        found = json.loads(raw)
        message = found[0] if isinstance(found, list) else found
        id_ = message["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return id_ if isinstance(id_, str) else None
