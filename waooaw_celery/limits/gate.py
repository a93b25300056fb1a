"""The limit in the door: what is about to be sent is counted, or refused before anything is written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from waooaw_celery.errors import RateLimitExceeded, StoreUnavailable
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.rules import Demand, demands
from waooaw_celery.limits.waiting import Wait, limit_wait
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.store.clock_reading import local_now

logger = logging.getLogger(__name__)


class AdmissionControl:
    """Lets messages through to the broker, or not.

    Args:
        limiter: what counts.
        receipts: where it is written down that messages were refused.
        now: tells the time by which messages expire.
    """

    def __init__(
        self, limiter: RateLimiter, receipts: ReceiptStore, now: Callable[[], datetime] = local_now
    ) -> None:
        self._limiter = limiter
        self._now = now
        self._receipts = receipts

    def admit(self, messages: Sequence[Message], wait: Wait = None) -> None:
        """Count messages that are about to be sent, all or none.

        Messages of several senders are counted sender by sender, when all of them may send: only when somebody
        else sends at that very moment can it be that some are counted although none is sent.

        Args:
            messages: what is about to be sent.
            wait: seconds to wait for their turn; no longer than until the first of them expires.

        Raises:
            RateLimitExceeded: they may not be sent now.
            StoreUnavailable: the limit cannot be checked, and is not set to let messages pass then.
        """
        wanted = _by_sender(messages)
        turn = limit_wait(wait)
        turn.end_before(_first_end(messages), self._now())
        while True:
            try:
                return self._charge(wanted)
            except RateLimitExceeded as error:
                try:
                    pause = turn.pause(error)
                except RateLimitExceeded:
                    self._write_down(error)
                    raise
            turn.rest(pause)

    def _charge(self, wanted: Mapping[str, Sequence[Demand]]) -> None:
        if len(wanted) > 1:
            for sender, demanded in wanted.items():
                self._limiter.check(sender, demanded)
        for sender, demanded in wanted.items():
            self._limiter.charge(sender, demanded)

    def _write_down(self, error: RateLimitExceeded) -> None:
        try:
            self._receipts.refused(error.agent, error.rule, error.n)
        except StoreUnavailable as failure:  # that they were refused is what the sender must hear
            logger.warning("%s; not written down: %s", error, failure, extra={"action": "refusal_not_recorded"})


def _by_sender(messages: Sequence[Message]) -> dict[str, list[Demand]]:
    senders: dict[str, list[Message]] = {}
    for message in messages:
        senders.setdefault(message.from_agent, []).append(message)
    return {
        sender: demands((one.to_agent, one.message_type, one.priority, 1) for one in theirs)
        for sender, theirs in senders.items()
    }


def _first_end(messages: Sequence[Message]) -> datetime | None:
    """Return when the first of them expires: what has expired need not be sent."""
    return min((message.expires_at for message in messages if message.expires_at is not None), default=None)
