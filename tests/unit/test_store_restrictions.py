"""Restrictions of senders without a server: what the cache asks, and what applies while the store is away."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from limit_helpers import MemoryRestrictions

from waooaw_celery import Message, RateLimiter, RateLimitExceeded
from waooaw_celery.errors import ConfigurationError, SenderPaused
from waooaw_celery.limits.admission_control import AdmissionControl
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.store import restrictions as module


class Refusals:
    """A receipt store that notes refusals."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str, int]] = []

    def refused(self, agent: str, rule: str, count: int) -> None:
        self.noted.append((agent, rule, count))


def messages(sender: str, count: int = 1) -> list[Message]:
    return [Message(from_agent=sender, to_agent="worker-1") for _ in range(count)]


def control(restrictions: MemoryRestrictions, limiter: Any, **options: Any) -> tuple[AdmissionControl, Refusals]:
    receipts: Any = Refusals()
    return AdmissionControl(lambda: limiter, receipts, restrictions, **options), receipts


def test_a_thousand_sends_within_a_second_read_the_store_once() -> None:
    """A process without a rate limit pays one read a second."""
    restrictions = MemoryRestrictions()
    admission, _ = control(restrictions, None, counts_all=False)
    for _ in range(1000):
        admission.admit(messages("boss"))
    assert restrictions.reads == 1


def test_a_paused_sender_is_refused_whatever_it_may_send() -> None:
    """The error says who paused it, since when, why, and how it may send again; the refusal is recorded."""
    restrictions = MemoryRestrictions()
    admission, refusals = control(restrictions, RateLimiter(MemoryStorage()), counts_all=True)
    restrictions.pause("boss", by="ada", reason="it sends in a circle")
    with pytest.raises(
        SenderPaused, match=r"'boss' may not send: ada paused it at .* UTC \(it sends in a circle\)"
    ) as error:
        admission.admit(messages("boss", 3), wait=30)
    assert "`waooaw limits resume boss` lets it send again" in str(error.value)
    assert refusals.noted == [("boss", "paused by ada", 3)]
    admission.admit(messages("other"))
    assert restrictions.resume("boss")
    assert not restrictions.resume("boss")
    admission.admit(messages("boss"))


def test_one_paused_sender_stops_a_batch_of_several() -> None:
    """All messages of a call pass, or none."""
    restrictions = MemoryRestrictions()
    limiter = RateLimiter(MemoryStorage(), "5/hour")
    admission, _ = control(restrictions, limiter)
    restrictions.pause("boss", by="ada")
    with pytest.raises(SenderPaused):
        admission.admit([*messages("other"), *messages("boss")])
    assert limiter.status("other")[0].used == 0


def test_a_quota_set_at_run_time_counts_where_no_limit_is_configured() -> None:
    """Only agents with such a quota are counted, and nobody any more once it is removed."""
    restrictions, storage = MemoryRestrictions(), MemoryStorage()
    limiter = RateLimiter(storage, restrictions=restrictions)
    admission, _ = control(restrictions, limiter, counts_all=False)
    limiter.set_quota("boss", "1/hour")
    admission.admit([*messages("boss"), *messages("other", 50)])
    with pytest.raises(RateLimitExceeded):
        admission.admit(messages("boss"))
    assert {agent for agent, _ in storage.counted_scopes()} == {"boss"}
    limiter.set_quota("boss", None)
    admission.admit(messages("boss", 50))


def test_a_limited_sender_is_refused_where_there_is_no_redis_to_count_in() -> None:
    """A quota that cannot be counted is not ignored; other senders are not touched."""

    def without_redis() -> RateLimiter:
        raise ConfigurationError("no Redis is configured")

    restrictions = MemoryRestrictions()
    restrictions.set_limited("boss", True)
    receipts: Any = Refusals()
    admission = AdmissionControl(without_redis, receipts, restrictions, counts_all=False)
    admission.admit(messages("other"))
    with pytest.raises(ConfigurationError):
        admission.admit(messages("boss"))


def test_what_was_known_applies_while_the_store_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pause stays, the log has one warning, and the store is not asked again at once."""
    restrictions = MemoryRestrictions()
    restrictions.pause("boss", by="ada")
    assert set(restrictions.known().pauses) == {"boss"}
    monkeypatch.setattr(module, "CACHE_SECONDS", 0.0)
    restrictions.set_limited("other", True)  # drops what is cached
    restrictions.is_available = False
    for _ in range(100):
        with pytest.raises(SenderPaused):
            restrictions.check(["boss"])
    assert restrictions.reads == 2
    assert [record.__dict__["action"] for record in caplog.records] == ["restrictions_not_read"]


def test_the_error_of_a_paused_sender_can_be_pickled() -> None:
    """It travels between the processes of a pool."""
    restrictions = MemoryRestrictions()
    restrictions.pause("boss", by="ada", reason="why")
    with pytest.raises(SenderPaused) as raised:
        restrictions.check(["boss"])
    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - it was made here
    assert (str(copy), copy.agent, copy.by) == (str(raised.value), "boss", "ada")
