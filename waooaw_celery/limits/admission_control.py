"""Admission control: the publisher counts messages against the rate limit before it records anything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from waooaw_celery.errors import RateLimitExceeded, StoreUnavailable
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.rules import Demand, demands_by_scope
from waooaw_celery.limits.waiting import Wait, limit_wait
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.store.clock_reading import local_now

logger = logging.getLogger(__name__)


class AdmissionControl:
    """Admits messages to the broker, or refuses them.

    Args:
        limiter: Counts the messages.
        receipts: Records the refusals.
        now: Returns the time by which messages expire.
    """

    def __init__(
        self, limiter: RateLimiter, receipts: ReceiptStore, now: Callable[[], datetime] = local_now
    ) -> None:
        self._limiter = limiter
        self._now = now
        self._receipts = receipts

    def admit(self, messages: Sequence[Message], wait: Wait = None) -> None:
        """Count messages that are about to be sent: all of them, or none.

        Messages of several senders are first checked, then counted sender by sender. If another process uses up
        a limit between the two steps, some messages may be counted although none is sent.

        Args:
            messages: The messages that are about to be sent.
            wait: Seconds to wait for the rate limit. The wait ends when the first message expires.

        Raises:
            RateLimitExceeded: The limit does not let them pass within ``wait``.
            StoreUnavailable: The limit cannot be checked, and ``waooaw_rate_limit_fail_open`` is not set.
        """
        demands = _demands_by_sender(messages)
        waiter = limit_wait(wait)
        waiter.cap_at(_earliest_expiry(messages), self._now())
        while True:
            try:
                return self._acquire(demands)
            except RateLimitExceeded as error:
                try:
                    seconds = waiter.seconds_until_retry(error)
                except RateLimitExceeded:
                    self._record_refusal(error)
                    raise
            waiter.sleep(seconds)

    def _acquire(self, demands: Mapping[str, Sequence[Demand]]) -> None:
        if len(demands) > 1:
            for sender, wanted in demands.items():
                self._limiter.check_demands(sender, wanted)
        for sender, wanted in demands.items():
            self._limiter.acquire_demands(sender, wanted)

    def _record_refusal(self, error: RateLimitExceeded) -> None:
        try:
            self._receipts.refused(error.agent, error.rule, error.n)
        except StoreUnavailable as failure:  # the caller must see the refusal, not this error
            logger.warning(
                "%s; refusal not recorded: %s", error, failure, extra={"action": "refusal_not_recorded"}
            )


def _demands_by_sender(messages: Sequence[Message]) -> dict[str, list[Demand]]:
    senders: dict[str, list[Message]] = {}
    for message in messages:
        senders.setdefault(message.from_agent, []).append(message)
    return {
        sender: demands_by_scope((message.to_agent, message.message_type, message.priority, 1) for message in sent)
        for sender, sent in senders.items()
    }


def _earliest_expiry(messages: Sequence[Message]) -> datetime | None:
    return min((message.expires_at for message in messages if message.expires_at is not None), default=None)
