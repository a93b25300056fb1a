"""How what was claimed reaches its consumer: looked at first, for a moment at a time."""

from __future__ import annotations

import time
from typing import Any

from waooaw_celery.broker.incoming.delivery import Claim
from waooaw_celery.broker.incoming.guard import Delivery, read
from waooaw_celery.broker.redis.leases.restore import put_back_unread
from waooaw_celery.broker.redis.parking import dead_letter
from waooaw_celery.errors import DecodingFailed

#: Seconds for which messages that were claimed together are delivered before the event loop has its turn.
SLICE_SECONDS = 0.01


def deliver_claimed(channel: Any) -> bool:
    """Deliver what a channel has claimed; return whether there was anything.

    In an event loop, for a moment: it has other things to do too. Whoever waits for a message gets one.
    """
    claimed = channel.claimed
    ends_at = time.monotonic() + (SLICE_SECONDS if channel.connection.in_event_loop else 0.0)
    delivered = False
    while claimed:
        claim = claimed[0]
        try:
            _deliver_one(channel, claim)
        finally:
            # Only now, or a lease could be without anybody who renews it. (A consumer that was cancelled
            # meanwhile has put it back.)
            if claimed and claimed[0] is claim:
                claimed.popleft()
        delivered = True
        if time.monotonic() >= ends_at:
            break
    return delivered


def _deliver_one(channel: Any, claim: Claim) -> None:
    if claim.queue not in channel.connection._callbacks:  # cancelled while it was on its way
        put_back_unread(channel, claim)
        return
    delivery = read_claim(channel, claim)
    if delivery is None:
        return
    channel._queue_cycle.rotate(claim.queue)
    if claim.queue in channel.unacknowledged_queues:
        channel.acknowledge(claim.tag)
    channel.connection._deliver(delivery, claim.queue)


def read_claim(channel: Any, claim: Claim) -> Delivery | None:
    """Return what was claimed, or make a dead letter of it and return None."""
    try:
        delivery = read(claim.raw, channel.caps)
    except DecodingFailed as error:
        dead_letter(channel, channel.scripts_client, claim.tag, claim.queue, claim.raw, str(error))
        return None
    delivery["properties"]["delivery_tag"] = claim.tag
    delivery.claim = claim
    return delivery
