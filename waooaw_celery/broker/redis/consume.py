"""Delivers claimed messages to their consumers, after the guard has checked each of them."""

from __future__ import annotations

import time
from typing import Any

from waooaw_celery.broker.incoming.delivery import Claim
from waooaw_celery.broker.incoming.guard import Delivery, read_item
from waooaw_celery.broker.redis.dead_lettering import dead_letter
from waooaw_celery.broker.redis.leases.restore import requeue_undelivered, withdraw_delivery
from waooaw_celery.errors import DecodingFailed

#: Seconds for which one call delivers messages before it returns to the event loop.
SLICE_SECONDS = 0.01


def deliver_claimed(channel: Any) -> bool:
    """Deliver the messages that a channel has claimed, and return whether there were any.

    Under an event loop this delivers for ``SLICE_SECONDS``, because the loop has other work too. Without one it
    delivers one message.
    """
    claimed = channel.claimed
    ends_at = time.monotonic() + (SLICE_SECONDS if channel.connection.in_event_loop else 0.0)
    delivered = False
    while claimed:
        claim = claimed[0]
        try:
            _deliver_one(channel, claim)
        finally:
            # Not earlier: until it is delivered, its lease is renewed because it is in `claimed`. (A consumer that
            # was cancelled meanwhile has put it back.)
            if claimed and claimed[0] is claim:
                claimed.popleft()
        delivered = True
        if time.monotonic() >= ends_at:
            break
    return delivered


def _deliver_one(channel: Any, claim: Claim) -> None:
    if claim.queue not in channel.connection._callbacks:  # the consumer was cancelled after the claim
        requeue_undelivered(channel, claim)
        return
    delivery = read_claim(channel, claim)
    if delivery is None:
        return
    channel._queue_cycle.rotate(claim.queue)
    if claim.queue in channel.no_ack_queues:
        channel.acknowledge(claim.tag)
    channel.connection._deliver(delivery, claim.queue)


def read_claim(channel: Any, claim: Claim) -> Delivery | None:
    """Return the checked message of a claim. If it breaks a rule, make it a dead letter and return None."""
    try:
        delivery = read_item(claim.raw, channel.caps)
    except DecodingFailed as error:
        withdraw_delivery(channel, claim)
        dead_letter(channel, channel.scripts_client, claim.tag, claim.queue, claim.raw, str(error))
        return None
    delivery["properties"]["delivery_tag"] = claim.tag
    delivery.claim = claim
    return delivery
