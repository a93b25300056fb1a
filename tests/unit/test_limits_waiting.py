"""Waiting for a rate limit, and admission control."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from limit_helpers import Clock, MemoryRestrictions, limiter_at

from waooaw_celery import Message, Priority, RateLimiter, RateLimitExceeded
from waooaw_celery.errors import InvalidMessage, StoreUnavailable
from waooaw_celery.limits import waiting as waiting_module
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.waiting import AsyncLimitWait, LimitWait, limit_wait


class RefusalLog:
    """A receipt store that notes refusals."""

    def __init__(self) -> None:
        self.refusals: list[tuple[str, str, int]] = []

    def refused(self, agent: str, rule: str, count: int) -> None:
        self.refusals.append((agent, rule, count))


def admission_control(limiter: RateLimiter, receipts: Any, **options: Any) -> AdmissionControl:
    """Return an admission control without restrictions."""
    return AdmissionControl(lambda: limiter, receipts, MemoryRestrictions(), **options)


def test_a_caller_waits_for_the_limit_only_if_the_wait_is_long_enough() -> None:
    """``wait`` sleeps as long as needed; when that is longer than allowed, the call raises at once."""
    limits = RateLimiter(MemoryStorage(), "10/second burst 2")
    limits.acquire("a", 2)
    limits.acquire("a", wait=5)
    slow = RateLimiter(MemoryStorage(), "1/hour")
    slow.acquire("a")
    with pytest.raises(RateLimitExceeded):
        slow.acquire("a", wait=60)
    error = RateLimitExceeded("a", "1/hour", 10.0)
    assert LimitWait(11).seconds_until_retry(error) == 10.0
    with pytest.raises(RateLimitExceeded):
        LimitWait(9).seconds_until_retry(error)


def test_a_batch_of_several_senders_passes_as_a_whole() -> None:
    """When the second sender is at its limit, nothing is counted for the first; the refusal is recorded."""
    limits = limiter_at(Clock(), "3/hour", {"b": "1/hour"})
    receipts: Any = RefusalLog()
    gate = admission_control(limits, receipts)

    def messages(*senders: str) -> list[Message]:
        return [Message(from_agent=sender, to_agent="c") for sender in senders]

    gate.admit(messages("a", "b"))
    with pytest.raises(RateLimitExceeded, match="'b'"):
        gate.admit(messages("a", "b"))
    assert limits.status("a")[0].used == 1
    with pytest.raises(RateLimitExceeded, match="has reached its rate limit"):
        gate.admit(messages("a", "a", "a"))
    gate.admit(messages("a", "a"))
    assert receipts.refusals == [("b", "1/hour", 1), ("a", "3/hour", 3)]


def test_urgent_messages_of_a_batch_use_the_reserve() -> None:
    """With two of ten reserved, seven messages and three URGENT ones pass; nine and one do not."""
    receipts: Any = RefusalLog()

    def batch(normal: int, urgent: int) -> list[Message]:
        priorities = [Priority.LOW] * normal + [Priority.URGENT] * urgent
        return [Message(from_agent="a", to_agent="b", priority=priority) for priority in priorities]

    with pytest.raises(RateLimitExceeded):
        admission_control(limiter_at(Clock(), "10/hour", urgent_reserve=0.2), receipts).admit(batch(9, 1))
    admission_control(limiter_at(Clock(), "10/hour", urgent_reserve=0.2), receipts).admit(batch(7, 3))


def test_no_message_waits_longer_than_its_expiry() -> None:
    """When the message would expire before the limit lets it pass, the call raises at once."""
    limits = RateLimiter(MemoryStorage(), "1/minute")
    receipts: Any = RefusalLog()
    gate = admission_control(limits, receipts)
    gate.admit([Message(from_agent="a", to_agent="b")])
    with pytest.raises(RateLimitExceeded):
        gate.admit([Message(from_agent="a", to_agent="b", ttl_seconds=5)], wait=3600)


def test_a_wait_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry at the deadline is worth waiting for; one after it is not, and neither is any without a wait."""
    now = [5000.0]
    monkeypatch.setattr(waiting_module.time, "monotonic", lambda: now[0])

    def error(retry_after: float) -> RateLimitExceeded:
        return RateLimitExceeded("a", "1/hour", retry_after)

    wait = LimitWait(10)
    assert wait.seconds_until_retry(error(10.0)) == 10.0
    with pytest.raises(RateLimitExceeded):
        wait.seconds_until_retry(error(10.001))
    now[0] += 4
    assert wait.seconds_until_retry(error(6.0)) == 6.0
    with pytest.raises(RateLimitExceeded):
        wait.seconds_until_retry(error(6.001))
    wait.cap_at(None, datetime.now(UTC))
    assert wait.seconds_until_retry(error(6.0)) == 6.0
    wait.cap_at(datetime.now(UTC) + timedelta(seconds=3600), datetime.now(UTC))
    assert wait.seconds_until_retry(error(6.0)) == 6.0
    wait.cap_at(datetime.now(UTC) + timedelta(seconds=3), datetime.now(UTC))
    assert wait.seconds_until_retry(error(2.5)) == 2.5
    with pytest.raises(RateLimitExceeded):
        wait.seconds_until_retry(error(3.1))
    for seconds in (None, 0, 0.0):
        with pytest.raises(RateLimitExceeded):
            LimitWait(seconds).seconds_until_retry(error(0.0))
    with pytest.raises(RateLimitExceeded):
        LimitWait(math.inf).seconds_until_retry(error(math.inf))
    with pytest.raises(InvalidMessage, match="wait must be None or a number of seconds, not True"):
        LimitWait(True)


def test_an_asynchronous_wait_raises_instead_of_sleeping() -> None:
    """The caller awaits the seconds and calls again with the same wait."""
    wait = AsyncLimitWait(5)
    assert limit_wait(wait) is wait
    assert type(limit_wait(5)) is LimitWait
    with pytest.raises(waiting_module.RetryAfter, match=r"retry in 1\.500 s") as caught:
        wait.sleep(1.5)
    assert caught.value.seconds == 1.5


class Receipts:
    """A receipt store that counts refusals, or is unavailable."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.refusals = 0

    def refused(self, agent: str, rule: str, count: int) -> None:
        if self.error is not None:
            raise self.error
        self.refusals += 1


def test_a_message_that_waited_is_not_recorded_as_refused() -> None:
    """Admission control sleeps and tries again; only the final refusal is recorded."""
    receipts: Any = Receipts()
    control = admission_control(RateLimiter(MemoryStorage(), "10/second burst 1"), receipts)
    for _ in range(3):
        control.admit([Message(from_agent="a", to_agent="b")], wait=5)
    assert receipts.refusals == 0
    with pytest.raises(RateLimitExceeded):
        control.admit([Message(from_agent="a", to_agent="b")])
    assert receipts.refusals == 1


def test_a_refusal_that_cannot_be_recorded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The sender gets the refusal, not the error of the store."""
    receipts: Any = Receipts(StoreUnavailable("away"))
    control = admission_control(RateLimiter(MemoryStorage(), "1/hour"), receipts)
    control.admit([Message(from_agent="a", to_agent="b")])
    with pytest.raises(RateLimitExceeded):
        control.admit([Message(from_agent="a", to_agent="b")])
    assert [record.message.endswith("; refusal not recorded: away") for record in caplog.records] == [True]


def test_the_first_message_to_expire_ends_the_wait() -> None:
    """Messages without an expiry do not shorten it."""
    receipts: Any = Receipts()
    control = admission_control(RateLimiter(MemoryStorage(), "4/minute"), receipts)
    control.admit([Message(from_agent="a", to_agent="b")] * 4)
    batch = [Message(from_agent="a", to_agent="b", ttl_seconds=ttl) for ttl in (None, 3600, 5)]
    with pytest.raises(RateLimitExceeded):
        control.admit(batch, wait=3600)
