"""Puts unacknowledged messages back into their queues, also those of consumers that died."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kombu.utils.json import loads as kombu_loads
from redis.exceptions import RedisError

from waooaw_celery.broker.incoming.delivery import (
    DELIVERY_COUNT,
    LEASE_TAG_PREFIX,
    Claim,
    mark_redelivered,
    to_text,
)
from waooaw_celery.broker.redis.dead_lettering import dead_letter
from waooaw_celery.broker.redis.scripts import OVERDUE, RESTORE
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Overdue messages that are read together.
BATCH_SIZE = 10
#: Seconds after which a search for overdue messages stops, so that its thread can renew leases.
SEARCH_SECONDS = 1.0


def restore_overdue(channel: Any, client: Any, is_proof: Callable[[], bool]) -> bool:
    """Redeliver the messages whose lease has ended, because their consumer died.

    Args:
        channel: The channel whose options give the length of a lease.
        client: The Redis client to use.
        is_proof: Called after each reply of the server; returns whether an ended lease proves a dead consumer.

    Returns:
        Whether the search is complete: False if it stopped after ``SEARCH_SECONDS``.
    """
    if not channel.qos.tags() and not client.exists(channel.keys.index):
        is_proof()  # it learns that the server has answered
        return True
    stop_at = time.monotonic() + SEARCH_SECONDS
    limits = [channel.visibility_timeout, channel.foreign_visibility_timeout, LEASE_TAG_PREFIX, BATCH_SIZE]
    while time.monotonic() < stop_at:
        reply = OVERDUE(client, channel.keys.noted, limits)
        if not is_proof():
            return True
        moved = [redeliver(channel, client, *reply[start : start + 3]) for start in range(0, len(reply), 3)]
        if not any(moved) or len(reply) < 3 * BATCH_SIZE:
            return True
    return False


def redeliver(channel: Any, client: Any, tag: bytes, claimed_at: bytes, entry: bytes) -> bool:
    """Put back a message whose lease has ended, or make it a dead letter.

    Args:
        channel: A channel that knows the queues.
        client: The Redis client to use.
        tag: The message's delivery tag.
        claimed_at: When it was claimed or last renewed, by the server's clock.
        entry: The message's entry among the unacknowledged messages.

    Returns:
        Whether the message was moved.
    """
    try:
        return _redeliver(channel, client, tag, claimed_at, entry)
    except (RedisError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - anyone may write here, and a bad entry must not block the next ones
        return dead_letter(channel, client, tag, "", entry, f"it cannot be requeued: {error!r:.200}", claimed_at)


def _redeliver(channel: Any, client: Any, tag: bytes, claimed_at: bytes, entry: bytes) -> bool:
    message, exchange, routing_key = kombu_loads(entry)
    message["headers"] = headers = message.get("headers") or {}
    count = int(headers.get(DELIVERY_COUNT) or 0) + 1
    queues = [queue for queue in channel._lookup(exchange, routing_key) if isinstance(queue, str)]
    if count > channel.delivery_limit or not queues:
        reason = f"its consumer died {count} times" if queues else f"no queue is bound to {exchange!r} any more"
        return dead_letter(channel, client, tag, str(routing_key), entry, reason, claimed_at)
    headers[DELIVERY_COUNT] = count
    mark_redelivered(message)
    logger.warning(
        "message %a of %a is redelivered, because its consumer died (redelivery %d)",
        headers.get("id"),
        queues[0],
        count,
    )
    lists = [(queue, channel.keys.list_and_bell(queue, message)[0]) for queue in queues]
    return requeue(channel, client, tag, lists, to_text(message), front=True, claimed_at=claimed_at)


def requeue(
    channel: Any,
    client: Any,
    tag: str | bytes,
    lists: Sequence[tuple[str, str]],
    text: str,
    *,
    front: bool,
    claimed_at: bytes | str = "",
) -> bool:
    """Put an unacknowledged message back into its queues.

    Args:
        channel: The channel that names the keys.
        client: The Redis client to use.
        tag: The message's delivery tag.
        lists: The names of the queues, each with the key of the list to put the message into.
        text: The message as it travels; empty: as it was claimed.
        front: Whether it is the next message of its queue, or else the last.
        claimed_at: When its lease was last renewed. Empty for a message that the channel itself holds.

    Returns:
        Whether the message was put back: False if another consumer has acknowledged or restored it, or renewed its
        lease.
    """
    keys = [*channel.keys.noted, *(key for queue, list_ in lists for key in (list_, channel.keys.bell(queue)))]
    return bool(RESTORE(client, keys, [tag, lists[0][0], "front" if front else "back", text, claimed_at]))


def requeue_undelivered(channel: Any, claim: Claim) -> None:
    """Put a claimed message that was not delivered back to the front of its queue, unchanged."""
    withdraw_delivery(channel, claim)
    requeue(channel, channel.scripts_client, claim.tag, [(claim.queue, claim.list)], "", front=True)


def withdraw_delivery(channel: Any, claim: Claim | None) -> None:
    """Take back that a message is delivered, where its claim has recorded it and its handler does not begin.

    Args:
        channel: The channel that claimed it.
        claim: The claim; None: the message is a broadcast.
    """
    if claim is not None and claim.is_recorded and channel.deliveries is not None:
        channel.deliveries.withdraw(claim.raw)


def requeue_delivered(channel: Any, message: Any, *, front: bool) -> None:
    """Put a delivered message back into its queue, marked as redelivered."""
    delivery = message._raw
    claim: Claim | None = getattr(delivery, "claim", None)
    if claim is None:  # a broadcast, which was in no queue
        return
    channel.acks.carried.pop(claim.tag, None)  # it does not end here
    mark_redelivered(delivery)
    lists = [(claim.queue, claim.list)]
    requeue(channel, channel.scripts_client, claim.tag, lists, to_text(delivery), front=front)
