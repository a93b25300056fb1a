"""How an unacknowledged message comes back into its queue, and who does it when its consumer died."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from kombu.utils.json import loads as kombu_loads
from redis.exceptions import RedisError

from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT, TAG_SEPARATOR, Claim, mark_redelivered, to_text
from waooaw_celery.broker.redis.parking import dead_letter
from waooaw_celery.broker.redis.scripts import OVERDUE, RESTORE

logger = logging.getLogger(__name__)

#: Overdue messages looked at together.
BATCH = 10


def restore_overdue(channel: Any, client: Any, is_steady: Callable[[], bool]) -> None:
    """Put back the messages whose lease is over: their consumer died.

    Args:
        channel: whose options say how long a lease is.
        client: over which to do it.
        is_steady: asked after each answer of the server: whether it has answered for so long that a lease that is
            over proves something.
    """
    limits = [channel.visibility_timeout, channel.foreign_visibility_timeout, TAG_SEPARATOR, BATCH]
    while True:
        found = OVERDUE(client, channel.keys.noted, limits)
        if not is_steady():
            return
        moved = [redeliver(channel, client, *found[start : start + 3]) for start in range(0, len(found), 3)]
        if not any(moved) or len(found) < 3 * BATCH:
            return


def redeliver(channel: Any, client: Any, tag: bytes, claimed_at: bytes, noted: bytes) -> bool:
    """Put back a message whose lease is over, or make it a dead letter; return whether that was done.

    Args:
        channel: that knows the queues.
        client: over which to do it.
        tag: under which the message is noted.
        claimed_at: when it was claimed or last renewed, by the server's clock.
        noted: what is noted of it.
    """
    try:
        return _hand_out_again(channel, client, tag, claimed_at, noted)
    except (RedisError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - others note here, and what stops one would stop all behind it
        return dead_letter(channel, client, tag, "", noted, f"it cannot be put back: {error!r:.200}", claimed_at)


def _hand_out_again(channel: Any, client: Any, tag: bytes, claimed_at: bytes, noted: bytes) -> bool:
    message, exchange, routing_key = kombu_loads(noted)
    message["headers"] = headers = message.get("headers") or {}
    count = int(headers.get(DELIVERY_COUNT) or 0) + 1
    queues = [queue for queue in channel._lookup(exchange, routing_key) if isinstance(queue, str)]
    if count > channel.delivery_limit or not queues:
        reason = f"{count} consumers died with it" if queues else f"no queue is bound to {exchange!r} any more"
        return dead_letter(channel, client, tag, str(routing_key), noted, reason, claimed_at)
    headers[DELIVERY_COUNT] = count
    mark_redelivered(message)
    logger.warning(
        "message %a of %a is handed out again: its consumer died (%d)", headers.get("id"), queues[0], count
    )
    lists = [(queue, channel.keys.place(queue, message)[0]) for queue in queues]
    return put_back(channel, client, tag, lists, to_text(message), front=True, claimed_at=claimed_at)


def put_back(
    channel: Any,
    client: Any,
    tag: str | bytes,
    lists: Sequence[tuple[str, str]],
    text: str,
    *,
    front: bool,
    claimed_at: bytes | str = "",
) -> bool:
    """Put an unacknowledged message back, and return whether nobody was faster.

    Args:
        channel: whose keys they are.
        client: over which to do it.
        tag: under which it is noted.
        lists: names of queues, and keys of the lists to put it into.
        text: the message; empty: as it is noted.
        front: whether it is to be the next one, and not the last.
        claimed_at: when its lease was renewed last; empty for a message that the channel holds itself.
    """
    keys = [*channel.keys.noted, *(key for queue, list_ in lists for key in (list_, channel.keys.bell(queue)))]
    return bool(RESTORE(client, keys, [tag, lists[0][0], "front" if front else "back", text, claimed_at]))


def put_back_unread(channel: Any, claim: Claim) -> None:
    """Put a message that nobody saw back to the front of its queue, as it was."""
    put_back(channel, channel.scripts_client, claim.tag, [(claim.queue, claim.list)], "", front=True)


def put_back_message(channel: Any, message: Any, *, front: bool) -> None:
    """Put a message that was delivered back into its queue, marked as redelivered."""
    said = message._raw
    claim: Claim | None = getattr(said, "claim", None)
    if claim is None:  # a broadcast, which was in no queue
        return
    mark_redelivered(said)
    put_back(channel, channel.scripts_client, claim.tag, [(claim.queue, claim.list)], to_text(said), front=front)
