"""The rate limiter: quotas, scopes, status, the reserve, and an unavailable storage."""

from __future__ import annotations

import logging
import math
import pickle
from typing import Any

import pytest
from limit_helpers import Clock, limiter_at, passing

from waooaw_celery import MessageType, Priority, RateLimiter, RateLimitExceeded
from waooaw_celery.errors import ConfigurationError, InvalidMessage, StoreUnavailable
from waooaw_celery.limits import limiter as limiter_module
from waooaw_celery.limits.configured import configured_limiter
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.redis import RedisStorage
from waooaw_celery.settings import WaooawSettings


def test_more_messages_than_the_limit_never_pass() -> None:
    """Eleven messages at once never pass ten per second, so the call does not wait."""
    limits = limiter_at(Clock(), "10/second")
    with pytest.raises(
        RateLimitExceeded, match="10/second never allows 'a' to send 11 messages at once"
    ) as caught:
        limits.acquire("a", 11, wait=math.inf)
    assert math.isinf(caught.value.retry_after)
    assert limits.status("a")[0].used == 0


def test_a_share_is_reserved_for_urgent_messages() -> None:
    """With a reserve of a fifth, other messages may use 8 of 10, and URGENT ones all 10."""
    clock = Clock()
    limits = limiter_at(clock, "10/second; 100/hour burst 10", urgent_reserve=0.2)
    assert passing(limits, "a") == 8
    assert limits.status("a")[0].remaining == 2
    assert passing(limits, "a", priority=Priority.URGENT) == 2
    assert passing(limiter_at(clock, "1/second", urgent_reserve=0.9), "b") == 1  # one message is never reserved
    clock.advance(3600)
    with pytest.raises(RateLimitExceeded):
        limits.check_limit("a", 9)
    limits.check_limit("a", 9, priority=Priority.URGENT)


def test_rules_can_limit_recipients_and_types() -> None:
    """A named recipient has its own rule, every other one the ``to *`` rule; a type counts across recipients."""
    limits = limiter_at(Clock(), "2/hour to *; 3/hour to boss; 4/hour of query")
    assert passing(limits, "a", to="boss") == 3
    assert passing(limits, "a", to="x") == 2
    assert passing(limits, "a", to="y") == 2
    assert passing(limits, "a", to="z", message_type=MessageType.QUERY) == 2
    assert passing(limits, "a", to="u", message_type=MessageType.QUERY) == 2
    assert passing(limits, "a", to="v", message_type=MessageType.QUERY) == 0
    assert passing(limits, "a", to="v", message_type=MessageType.COMMAND) == 2
    assert {status.scope for status in limits.status("a", to="x")} == {"to:boss", "of:query", "to:x"}
    assert "2/hour to x" in {status.rule for status in limits.near()}


def test_a_quota_set_at_run_time_overrides_the_agents_and_the_default() -> None:
    """A change keeps the counts, and removing a quota restores the configured one."""
    limits = limiter_at(Clock(), "1/hour", {"a": "2/hour"})
    assert (passing(limits, "a"), passing(limits, "b")) == (2, 1)
    limits.set_quota("a", "5/hour")
    assert passing(limits, "a") == 3
    limits.set_quota("b", "unlimited")
    limits.acquire("b", 1000)
    assert {name: (str(quota), source) for name, (quota, source) in limits.quotas().items()} == {
        "*": ("1/hour", "default"),
        "a": ("5/hour", "set"),
        "b": ("unlimited", "set"),
    }
    assert str(limits.set_quota("a", None)) == "2/hour"
    assert passing(limits, "a") == 0
    limits.reset("a")
    assert passing(limits, "a") == 2


def test_each_agent_has_its_own_count() -> None:
    """Messages of one agent do not count for another."""
    limits = limiter_at(Clock(), "3/hour")
    assert [passing(limits, name) for name in ("a", "b", "a")] == [3, 3, 0]


def test_checks_count_nothing() -> None:
    """check_limit, status and near change nothing, however often they are called."""
    limits = limiter_at(Clock(), "3/hour")
    for _ in range(10):
        limits.check_limit("a", 3)
        assert limits.status("a")[0].remaining == 3
        assert limits.near() == []
    limits.acquire("a", 3)
    for _ in range(2):
        with pytest.raises(RateLimitExceeded):
            limits.check_limit("a")
    assert [(status.agent, status.used) for status in limits.near()] == [("a", 3)]


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (("Not Ok",), {}, "agent must be"),
        (("a", 0), {}, "n must be a whole number from 1 to"),
        (("a", 10**400), {}, "n must be a whole number from 1 to"),
        (("a", 1.5), {}, "n must be a whole number"),
        (("a",), {"to": "Not Ok"}, "to must be"),
        (("a",), {"priority": 0}, "priority must be one of"),
        (("a",), {"wait": -1}, "wait must be None or a number"),
        (("a",), {"wait": "soon"}, "wait must be None or a number"),
        (("a",), {"wait": math.nan}, "wait must be None or a number"),
    ],
)
def test_invalid_arguments_raise(arguments: tuple[Any, ...], options: dict[str, Any], reason: str) -> None:
    """The error names the argument, and nothing is counted."""
    limits = limiter_at(Clock(), "3/hour")
    with pytest.raises(InvalidMessage, match=reason):
        limits.acquire(*arguments, **options)
    assert not list(limits.storage.counted_scopes())


def test_the_error_keeps_its_attributes_when_pickled() -> None:
    """Agent, rule, seconds, number and the ids of messages sent before survive."""
    error = RateLimitExceeded("a", "100/hour burst 20", 12.5, 3)
    error.message_ids = ("m",)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.agent, again.rule, again.retry_after, again.n) == ("a", "100/hour burst 20", 12.5, 3)
    assert again.message_ids == ("m",)
    assert str(again) == "'a' has reached its rate limit 100/hour burst 20: try again in 12.500 s"


class UnavailableStorage(MemoryStorage):
    """A storage that does not answer."""

    def decide(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")


def test_an_unavailable_storage_refuses_or_admits_as_configured(caplog: pytest.LogCaptureFixture) -> None:
    """By default it refuses; with ``fail_open`` it admits, with one warning a minute."""
    with pytest.raises(StoreUnavailable):
        RateLimiter(UnavailableStorage(), "1/hour").acquire("a")
    limits = RateLimiter(UnavailableStorage(), "1/hour", fail_open=True)
    for _ in range(10):
        limits.acquire("a")
    assert [record.message for record in caplog.records] == ["sent without a limit: away"]


def test_the_largest_number_of_messages_is_a_billion() -> None:
    """One more is an invalid argument, and so is none."""
    limits = limiter_at(Clock(), "unlimited")
    limits.acquire("a", 1_000_000_000)
    for n in (1_000_000_001, 0, True):
        with pytest.raises(InvalidMessage, match="n must be"):
            limits.acquire("a", n)


def test_the_status_gives_what_remains_and_when_the_next_message_passes() -> None:
    """With a reserve, the next message is one that is not URGENT."""
    clock = Clock()
    limits = limiter_at(clock, "2/hour", {"b": "4/hour"})
    assert (limits.status("a")[0].remaining, limits.status("a")[0].retry_after) == (2, 0)
    limits.acquire("a", 2)
    [status] = limits.status("a")
    assert (status.agent, status.scope, status.limit, status.used, status.remaining) == ("a", "", 2, 2, 0)
    assert status.retry_after == pytest.approx(3600.144, abs=0.145)
    reserved = limiter_at(clock, "4/hour", urgent_reserve=0.5)
    reserved.acquire("a")
    assert reserved.status("a")[0].retry_after == 0
    reserved.acquire("a")
    assert (reserved.status("a")[0].remaining, reserved.status("a")[0].retry_after > 0) == (2, True)


def test_the_status_of_a_recipient_is_given_once() -> None:
    """A recipient without a rule of its own is counted by ``to *``; the rule for each is not shown by itself."""
    limits = limiter_at(Clock(), "1/hour to boss; 2/hour to *; 3/hour")
    assert [one.rule for one in limits.status("a")] == ["1/hour to boss", "3/hour"]
    assert [one.rule for one in limits.status("a", to="boss")] == ["1/hour to boss", "3/hour"]
    assert [one.rule for one in limits.status("a", to="x")] == ["1/hour to boss", "3/hour", "2/hour to x"]


def test_the_rules_near_their_limits_are_sorted() -> None:
    """From a share of 80 % on, or when a message must wait; the least remaining first, then by agent and rule."""
    limits = limiter_at(Clock(), "10/hour", {"d": "10/minute burst 1; 1000/hour", "e": "10/day; 10/hour"})
    for agent, n in (("a", 7), ("b", 8), ("c", 9), ("d", 1), ("e", 8)):
        limits.acquire(agent, n)
    assert [(one.agent, one.rule) for one in limits.near()] == [
        ("d", "10/minute burst 1"),
        ("c", "10/hour"),
        ("b", "10/hour"),
        ("e", "10/day"),
        ("e", "10/hour"),
    ]
    reserved = limiter_at(Clock(), "10/hour", urgent_reserve=0.5)
    reserved.acquire("a", 4)
    assert reserved.near() == []
    reserved.acquire("a")
    assert [one.remaining for one in reserved.near()] == [5]


def test_the_error_has_the_rule_with_the_longest_wait() -> None:
    """Never is longer than any wait; of equal waits the first rule counts."""
    clock = Clock()
    for quota, n, rule, never in (
        ("5/minute; 10/hour", 6, "5/minute", True),
        ("10/hour; 5/minute", 6, "5/minute", True),
        ("10/hour; 10/hour of query", 1, "10/hour", False),
        ("6/hour of query; 5/hour", 11, "5/hour", True),
    ):
        limits = limiter_at(clock, quota)
        if not never:
            limits.acquire("a", 10, message_type=MessageType.QUERY)
        elif "10/hour" in quota:
            limits.acquire("a", 5)
        with pytest.raises(RateLimitExceeded) as caught:
            limits.acquire("a", n, message_type=MessageType.QUERY)
        assert (caught.value.rule, math.isinf(caught.value.retry_after)) == (rule, never)
        assert (caught.value.n, caught.value.agent) == (n, "a")


def test_the_reserve_is_a_share_in_thousandths() -> None:
    """With a reserve of 0.9, a hundred of a thousand messages need not be URGENT."""
    limits = limiter_at(Clock(), "1000/hour", urgent_reserve=0.9)
    with pytest.raises(RateLimitExceeded):
        limits.acquire("a", 101)
    limits.acquire("a", 100)
    limits.acquire("a", 900, priority=Priority.URGENT)


def test_a_warning_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the storage does not answer and messages pass anyway, one warning a minute is enough."""
    now = [5000.0]
    monkeypatch.setattr(limiter_module.time, "monotonic", lambda: now[0])

    limits = RateLimiter(UnavailableStorage(), "1/hour", fail_open=True)
    warnings = []
    for second in (0, 1, 59.5, 60, 60.5, 119.5, 120):
        now[0] = 5000.0 + second
        limits.acquire("a")
        warnings.append(len(caplog.records))
    assert warnings == [1, 1, 1, 2, 2, 2, 3]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_the_settings_make_a_limiter() -> None:
    """The storage, the quotas, the reserve and fail_open come from the settings; an error names its setting."""
    read = WaooawSettings.read
    memory = {"waooaw_rate_limit_storage": "memory"}
    limits = configured_limiter(
        read(
            memory
            | {
                "waooaw_rate_limit": "8/hour",
                "waooaw_rate_limits": {"b": "2/hour"},
                "waooaw_urgent_reserve": 0.5,
                "waooaw_rate_limit_fail_open": True,
            },
            environ={},
        )
    )
    assert isinstance(limits.storage, MemoryStorage)
    assert [str(limits.quota(agent)) for agent in "ab"] == ["8/hour", "2/hour"]
    with pytest.raises(RateLimitExceeded):
        limits.acquire("a", 5)
    assert limits._fail_open
    assert str(configured_limiter(read(memory, environ={})).quota("a")) == "unlimited"
    redis = configured_limiter(read({"waooaw_rate_limit": "1/hour"}, environ={}), None, "redis://127.0.0.1:1/0")
    assert isinstance(redis.storage, RedisStorage)
    redis.close()
    with pytest.raises(ConfigurationError, match=r"^waooaw_rate_limits\['b'\]: rate limit 'x'"):
        configured_limiter(read(memory | {"waooaw_rate_limits": {"b": "x"}}, environ={}))
