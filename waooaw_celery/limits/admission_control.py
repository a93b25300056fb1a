"""Admission control: before anything is recorded, paused senders are refused, and messages are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from waooaw_celery.errors import QueueFull, RateLimitExceeded, SenderPaused, StoreUnavailable, WaooawError
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.limits.queue_limit import QueueLimit
from waooaw_celery.limits.rules import Demand, demands_by_scope
from waooaw_celery.limits.waiting import LimitWait, Wait, limit_wait
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import ReceiptStore
from waooaw_celery.store.clock_reading import local_now
from waooaw_celery.store.restrictions import Restrictions

logger = get_logger(__name__)

#: Counts messages and sends them. It returns False if it cannot, and raises RateLimitExceeded as the limiter does.
CountAndSend: TypeAlias = Callable[[Sequence[Demand]], bool]


class AdmissionControl:
    """Admits messages to the broker, or refuses them.

    Args:
        limiter: Returns what counts the messages. It is called when somebody's messages are counted.
        receipts: Records the refusals.
        restrictions: Who is paused, and whose quota was set at run time.
        now: Returns the time by which messages expire.
        counts_all: Whether a rate limit is configured, so that every message is counted. Otherwise those of agents
            are counted whose quota was set at run time.
        queue_limits: Refuse messages to full queues.
    """

    def __init__(
        self,
        limiter: Callable[[], RateLimiter],
        receipts: ReceiptStore,
        restrictions: Restrictions,
        now: Callable[[], datetime] = local_now,
        *,
        counts_all: bool = True,
        queue_limits: Sequence[QueueLimit] = (),
    ) -> None:
        self._queue_limits = queue_limits
        self._limiter = limiter
        self._restrictions = restrictions
        self._counts_all = counts_all
        self._now = now
        self._receipts = receipts

    def admit(self, messages: Sequence[Message], wait: Wait = None, send: CountAndSend | None = None) -> bool:
        """Refuse messages of paused senders, and count the others: all of them, or none.

        Messages of several senders are first checked, then counted sender by sender. If another process uses up
        a limit between the two steps, some messages may be counted although none is sent.

        Args:
            messages: The messages that are about to be sent.
            wait: Seconds to wait for the rate limit. The wait ends when the first message expires.
            send: Counts the messages of a single sender and sends them, if it can.

        Returns:
            Whether ``send`` has sent the messages.

        Raises:
            SenderPaused: A sender is paused.
            QueueFull: The queue of a recipient has no room for them within ``wait``.
            RateLimitExceeded: The limit does not let them pass within ``wait``.
            StoreUnavailable: The limit cannot be checked, and ``waooaw_rate_limit_fail_open`` is not set.
            ConfigurationError: A sender has a quota that was set at run time, and there is no Redis to count in.
        """
        senders = {message.from_agent for message in messages}
        try:
            self._restrictions.check(senders)
        except SenderPaused as error:
            self._record_refusal(error, error.agent, f"paused by {error.by}", len(messages))
            raise
        for limit in self._queue_limits:
            wait = self._wait_for_room(limit, messages, wait)
        if not self._counts_all:
            counted = senders & self._restrictions.known().limited
            messages = [message for message in messages if message.from_agent in counted]
        return self._count(messages, wait, send) if messages else False

    def _wait_for_room(self, limit: QueueLimit, messages: Sequence[Message], wait: Wait) -> LimitWait:
        """Wait until the recipients' queues have room, and return the wait, which may go on."""
        waiter = limit_wait(wait)
        waiter.cap_at(_earliest_expiry(messages), self._now())
        while True:
            try:
                limit.check(messages)
            except QueueFull as error:
                try:
                    seconds = waiter.seconds_until_retry(error)
                except QueueFull:
                    whose = "" if error.sender is None else " of each sender"
                    rule = f"at most {error.limit}{whose} waiting for {error.agent}"
                    for sender, sent in Counter(message.from_agent for message in messages).items():
                        self._record_refusal(error, sender, rule, sent)
                    raise
            else:
                return waiter
            waiter.sleep(seconds)

    def _count(self, messages: Sequence[Message], wait: Wait, send: CountAndSend | None) -> bool:
        demands = _demands_by_sender(messages)
        waiter = limit_wait(wait)
        waiter.cap_at(_earliest_expiry(messages), self._now())
        while True:
            try:
                if send is not None and len(demands) == 1 and send(*demands.values()):
                    return True
                self._acquire(demands)
            except RateLimitExceeded as error:
                try:
                    seconds = waiter.seconds_until_retry(error)
                except RateLimitExceeded:
                    self._record_refusal(error, error.agent, error.rule, error.n)
                    raise
            else:
                return False
            waiter.sleep(seconds)

    def _acquire(self, demands: Mapping[str, Sequence[Demand]]) -> None:
        limiter = self._limiter()
        if len(demands) > 1:
            for sender, wanted in demands.items():
                limiter.check_demands(sender, wanted)
        for sender, wanted in demands.items():
            limiter.acquire_demands(sender, wanted)

    def _record_refusal(self, error: WaooawError, agent: str, rule: str, n: int) -> None:
        try:
            self._receipts.refused(agent, rule, n)
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
