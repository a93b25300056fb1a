"""Rate limits without a server: how they are written, and what one process counts."""

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from waooaw_celery import Message, MessageType, Priority, RateLimiter, RateLimitExceeded
from waooaw_celery.errors import ConfigurationError, InvalidMessage, StoreUnavailable
from waooaw_celery.limits import memory
from waooaw_celery.limits.gate import AdmissionControl
from waooaw_celery.limits.grammar import read_quota
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.rules import MAX_LIMIT, Quota, Rule
from waooaw_celery.limits.waiting import LimitWait
from waooaw_celery.settings import WaooawSettings


class Clock:
    """A clock that a test sets, in microseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Callable[..., RateLimiter]:
    """Make a limiter that goes by the test's clock."""
    return lambda *quota, **options: RateLimiter(MemoryStorage(clock), *quota, **options)


def passed(limiter: RateLimiter, agent: str, **about: Any) -> int:
    """Return how many messages pass until one is refused."""
    count = 0
    while True:
        try:
            limiter.acquire(agent, **about)
        except RateLimitExceeded:
            return count
        count += 1


@pytest.mark.parametrize(
    ("text", "rules", "written"),
    [
        ("10/second", [Rule(10, 1)], "10/second"),
        ("10/s;100 / h  burst 20", [Rule(10, 1), Rule(100, 3600, 20)], "10/second; 100/hour burst 20"),
        ("5/2 minutes", [Rule(5, 120)], "5/2 minutes"),
        ("5/90 SECONDS", [Rule(5, 90)], "5/90 seconds"),
        ("3/day to worker-1; 4/day to *;", [Rule(3, 86400, to="worker-1"), Rule(4, 86400, to="*")], None),
        ("3/day to 9-lives", [Rule(3, 86400, to="9-lives")], "3/day to 9-lives"),
        ("3/min burst 1 of Query", [Rule(3, 60, 1, of=MessageType.QUERY)], "3/minute burst 1 of query"),
        (f"{MAX_LIMIT}/366 days", [Rule(MAX_LIMIT, 366 * 86400)], f"{MAX_LIMIT}/366 days"),
        ("unlimited", [], "unlimited"),
    ],
)
def test_a_quota_is_read_and_written(text: str, rules: list[Rule], written: str | None) -> None:
    """Each form of the grammar means these rules, and what they write can be read again."""
    quota = read_quota(text)
    assert quota == Quota(tuple(rules))
    assert written is None or str(quota) == written
    assert read_quota(str(quota)) == quota


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("10/secnd", 4, "did you mean second?"),
        ("10/fortnight", 4, "expected second, minute, hour or day"),
        ("ten/second", 1, "a whole number"),
        ("1.5/second", 2, "expected '/'"),
        ("10 second", 4, "expected '/'"),
        ("10/second; 0/hour", 12, f"from 1 to {MAX_LIMIT}"),
        ("-1/hour", 1, "a whole number"),
        ("10/0 hours", 4, f"from 1 to {MAX_LIMIT}"),
        (f"{MAX_LIMIT + 1}/day", 1, f"from 1 to {MAX_LIMIT}"),
        ("9" * 5000 + "/day", 1, f"from 1 to {MAX_LIMIT}"),
        ("10/367 days", 4, "the longest window is 366 days"),
        ("10/hour burst 0", 15, "from 1"),
        ("10/hour burst 11", 15, "no more than that pass"),
        ("10/hour burst", 14, "how many may come at once"),
        ("10/hour to Boss", 12, "the recipient must be"),
        ("10/hour to", 11, "the recipient must be"),
        ("10/hour of gossip", 12, "command, query, event"),
        ("10/hour to boss of query", 17, "not both"),
        ("10/hour 5/minute", 9, "';' or the end"),
        ("10/hour; 5/60 minutes", 10, "limit the same: keep one"),
        ("unlimited; 10/hour", 1, "a whole number"),
        ("", 1, "a number of messages"),
        ("10/hour;;", 9, "a number of messages"),
        ("\uff11\uff10/hour", 1, "a whole number"),
    ],
)
def test_what_cannot_be_read_is_shown_where_it_is(text: str, at: int, why: str) -> None:
    """The sentence gives the character, counted from 1, and what was expected there."""
    with pytest.raises(ConfigurationError) as caught:
        read_quota(text)
    assert f"at character {at} (" in str(caught.value)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        Quota((Rule(100, 3600, burst=20),)),
        Rule(100, 3600, 20),
        [Rule(100, 3600, 20)],
        {"limit": 100, "period": 3600, "burst": 20},
        [{"limit": 100, "period": 3600, "burst": 20}],
    ],
)
def test_a_quota_may_be_given_as_rules(value: Any) -> None:
    """The structured forms mean what the text means."""
    assert read_quota(value) == read_quota("100/hour burst 20")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"limit": 0, "period": 1}, "limit must be a whole number from 1"),
        ({"limit": True, "period": 1}, "limit must be a whole number"),
        ({"limit": 1, "period": 0.5}, "period must be a whole number"),
        ({"limit": 1, "period": 1, "of": "gossip"}, "gossip"),
        ({"limit": 1, "perod": 1}, "perod"),
        ([5], "a rule has limit, period"),
        (5, "a rate limit is a text such as"),
        ([{"limit": 1, "period": 1}, {"limit": 2, "period": 1}], "keep one of them"),
    ],
)
def test_wrong_rules_are_one_clear_sentence(value: Any, why: str) -> None:
    """What is wrong with a structured form is said too."""
    with pytest.raises(ConfigurationError, match=why):
        read_quota(value)


def test_settings_take_quotas_of_single_agents_as_json() -> None:
    """WAOOAW_RATE_LIMITS is a JSON object; anything else is one sentence."""
    settings = WaooawSettings.read({}, environ={"WAOOAW_RATE_LIMITS": '{"worker-1": "10/second"}'})
    assert settings.rate_limits == {"worker-1": "10/second"}
    assert settings.limited
    assert not WaooawSettings.read({}, environ={}).limited
    for wrong in ("worker-1=10/second", "[1]", '{"Not Ok": "1/second"}'):
        with pytest.raises(ConfigurationError, match="WAOOAW_RATE_LIMITS"):
            WaooawSettings.read({}, environ={"WAOOAW_RATE_LIMITS": wrong})
    with pytest.raises(ConfigurationError, match="WAOOAW_URGENT_RESERVE"):
        WaooawSettings.read({}, environ={"WAOOAW_URGENT_RESERVE": "1"})


def test_a_burst_is_followed_by_the_pace(limiter: Callable[..., RateLimiter], clock: Clock) -> None:
    """100 an hour with a burst of 20: 20 at once, then one every 36 s, until 100 in an hour are reached."""
    limits = limiter("100/hour burst 20")
    assert passed(limits, "a") == 20
    clock.advance(36)
    assert passed(limits, "a") == 1
    clock.advance(360)
    assert passed(limits, "a") == 10
    clock.advance(3000)  # the bucket is full long since
    assert passed(limits, "a") == 20


def test_a_window_is_exact_and_not_fixed_to_the_hour(limiter: Callable[..., RateLimiter], clock: Clock) -> None:
    """What was sent late in one stretch counts in the next: no window of a minute holds more than ten."""
    limits = limiter("10/minute")
    clock.advance(59)
    assert passed(limits, "a") == 10
    clock.advance(2)
    assert passed(limits, "a") == 0
    clock.advance(58.01)
    assert passed(limits, "a") == 10


def test_all_rules_pass_or_none_counts(limiter: Callable[..., RateLimiter], clock: Clock) -> None:
    """What the second rule refuses is not counted by the first; the longest wait is the one that is told."""
    limits = limiter("10/second; 12/minute")
    limits.acquire("a", 10)
    clock.advance(1.1)
    with pytest.raises(RateLimitExceeded, match="12/minute") as caught:
        limits.acquire("a", 5)
    assert caught.value.retry_after == pytest.approx(58.9, abs=0.01)
    limits.acquire("a", 2)
    used = {status.rule: status.used for status in limits.status("a")}
    assert used == {"10/second": 2, "12/minute": 12}


def test_waiting_retry_after_is_enough_and_anything_less_is_not(
    limiter: Callable[..., RateLimiter], clock: Clock
) -> None:
    """To the microsecond, for windows, for bursts, and for several messages at once."""
    for quota, n in (("7/second", 3), ("100/hour burst 20", 1), ("100/hour burst 20", 13), ("1000/minute", 30)):
        limits = limiter(quota)
        for gap in (0, 0.013, 0.4, 1.7) * 40:
            clock.advance(gap)
            try:
                limits.acquire("a", n)
            except RateLimitExceeded as error:
                clock.now += round(error.retry_after * 1_000_000) - 1
                with pytest.raises(RateLimitExceeded):
                    limits.acquire("a", n)
                clock.now += 1
                limits.acquire("a", n)


def test_more_than_ever_passes_is_told_as_such(limiter: Callable[..., RateLimiter]) -> None:
    """There is no moment at which eleven pass ten a second, and no waiting for it."""
    limits = limiter("10/second")
    with pytest.raises(
        RateLimitExceeded, match="10/second never allows 'a' to send 11 messages at once"
    ) as caught:
        limits.acquire("a", 11, wait=math.inf)
    assert math.isinf(caught.value.retry_after)
    assert limits.status("a")[0].used == 0


def test_a_share_is_kept_for_urgent_messages(limiter: Callable[..., RateLimiter], clock: Clock) -> None:
    """With a reserve of a fifth, 8 of 10 are for whatever is sent, and URGENT ones may use all 10."""
    limits = limiter("10/second; 100/hour burst 10", urgent_reserve=0.2)
    assert passed(limits, "a") == 8
    assert limits.status("a")[0].remaining == 2
    assert passed(limits, "a", priority=Priority.URGENT) == 2
    assert passed(limiter("1/second", urgent_reserve=0.9), "b") == 1  # a limit is never all reserve
    clock.advance(3600)
    with pytest.raises(RateLimitExceeded):
        limits.check_limit("a", 9)
    limits.check_limit("a", 9, priority=Priority.URGENT)


def test_rules_may_be_for_a_recipient_or_a_type(limiter: Callable[..., RateLimiter]) -> None:
    """A named recipient has its own rule, each other one the rule for each, and a type one across recipients."""
    limits = limiter("2/hour to *; 3/hour to boss; 4/hour of query")
    assert passed(limits, "a", to="boss") == 3
    assert passed(limits, "a", to="x") == 2
    assert passed(limits, "a", to="y") == 2
    assert passed(limits, "a", to="z", message_type=MessageType.QUERY) == 2
    assert passed(limits, "a", to="u", message_type=MessageType.QUERY) == 2
    assert passed(limits, "a", to="v", message_type=MessageType.QUERY) == 0
    assert passed(limits, "a", to="v", message_type=MessageType.COMMAND) == 2
    assert {status.scope for status in limits.status("a", to="x")} == {"to:boss", "of:query", "to:x"}
    assert "2/hour to x" in {status.rule for status in limits.near()}


def test_quotas_come_from_run_time_then_from_the_agent_then_from_the_default(
    limiter: Callable[..., RateLimiter],
) -> None:
    """The nearest one holds, a change counts what was sent before, and removing it brings back the next."""
    limits = limiter("1/hour", {"a": "2/hour"})
    assert (passed(limits, "a"), passed(limits, "b")) == (2, 1)
    limits.set_quota("a", "5/hour")
    assert passed(limits, "a") == 3
    limits.set_quota("b", "unlimited")
    limits.acquire("b", 1000)
    assert {name: (str(quota), whence) for name, (quota, whence) in limits.quotas().items()} == {
        "*": ("1/hour", "default"),
        "a": ("5/hour", "set"),
        "b": ("unlimited", "set"),
    }
    assert str(limits.set_quota("a", None)) == "2/hour"
    assert passed(limits, "a") == 0
    limits.reset("a")
    assert passed(limits, "a") == 2


def test_a_limit_that_is_lowered_counts_what_was_sent(limiter: Callable[..., RateLimiter], clock: Clock) -> None:
    """From ten thousand to ten an hour, and back, without anybody getting more than the rule of the moment."""
    limits = limiter("10000/hour")
    limits.acquire("a", 500)
    limits.set_quota("a", "10/hour")
    assert passed(limits, "a") == 0
    clock.advance(3601)
    assert passed(limits, "a") == 10
    limits.set_quota("a", "10000/hour")
    assert limits.status("a")[0].used == 10
    limits.acquire("a", 9990)
    assert passed(limits, "a") == 0


def test_high_limits_are_never_exceeded_and_nearly_reached(
    limiter: Callable[..., RateLimiter], clock: Clock
) -> None:
    """With 1,234 a minute each moment stands for 13 messages: at most 12 fewer pass, never one more."""
    limits = limiter("1234/minute")
    sent: list[int] = []
    for number in range(6000):
        clock.advance(0.021 if number % 1000 < 700 else 0.09)
        try:
            limits.acquire("a")
        except RateLimitExceeded:
            continue
        sent.append(clock.now)
    first = 0
    fullest = 0
    for last, at in enumerate(sent):
        while sent[first] < at - 60_000_000:
            first += 1
        fullest = max(fullest, last - first + 1)
    assert 1234 - 12 <= fullest <= 1234


def test_a_clock_set_back_neither_blocks_nor_lets_more_through(
    limiter: Callable[..., RateLimiter], clock: Clock
) -> None:
    """Set back by a day, the agent waits a minute and not a day; nothing that was counted is forgotten."""
    limits = limiter("10/minute burst 10")
    assert passed(limits, "a") == 10
    clock.advance(-86_400)
    with pytest.raises(RateLimitExceeded) as caught:
        limits.acquire("a", 10)
    assert caught.value.retry_after == pytest.approx(60, abs=0.1)
    clock.advance(caught.value.retry_after)
    assert passed(limits, "a") == 10
    clock.advance(-5)
    clock.advance(30)
    assert passed(limits, "a") == 0


def test_agents_do_not_count_for_each_other(limiter: Callable[..., RateLimiter]) -> None:
    """Each agent has its own quota."""
    limits = limiter("3/hour")
    assert [passed(limits, name) for name in ("a", "b", "a")] == [3, 3, 0]


def test_asking_counts_nothing(limiter: Callable[..., RateLimiter]) -> None:
    """check_limit, status and near may be called as often as one likes."""
    limits = limiter("3/hour")
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
    ("arguments", "about", "why"),
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
def test_wrong_arguments_are_refused(
    limiter: Callable[..., RateLimiter], arguments: tuple[Any, ...], about: dict[str, Any], why: str
) -> None:
    """One sentence says what is wrong, and nothing is counted."""
    limits = limiter("3/hour")
    with pytest.raises(InvalidMessage, match=why):
        limits.acquire(*arguments, **about)
    assert not list(limits.storage.counted())


def test_threads_share_a_quota_exactly(limiter: Callable[..., RateLimiter]) -> None:
    """Eight threads that take as much as they can get take fifty together."""
    limits = limiter("50/hour")
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(passed(limits, "a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 50


def test_names_that_come_and_go_leave_nothing(
    limiter: Callable[..., RateLimiter], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters whose windows are over are forgotten, those that still count are not."""
    monkeypatch.setattr(memory, "_CROWD", 10)
    limits = limiter("1/minute")
    for number in range(1000):
        limits.acquire(f"agent-{number}")
        clock.advance(10)
    assert len(list(limits.storage.counted())) <= 20
    assert passed(limits, "agent-999") == 0


def test_waiting_for_a_turn_ends_with_it_or_is_refused_at_once(limiter: Callable[..., RateLimiter]) -> None:
    """``wait`` sleeps as long as it must, and not at all when that is longer than it may."""
    limits = RateLimiter(MemoryStorage(), "2/second")
    limits.acquire("a", 2)
    limits.acquire("a", wait=5)
    slow = RateLimiter(MemoryStorage(), "1/hour")
    slow.acquire("a")
    with pytest.raises(RateLimitExceeded):
        slow.acquire("a", wait=60)
    error = RateLimitExceeded("a", "1/hour", 10.0)
    assert LimitWait(11).pause(error) == 10.0
    with pytest.raises(RateLimitExceeded):
        LimitWait(9).pause(error)


def test_the_error_says_it_all_and_travels() -> None:
    """Agent, rule, seconds and number are there, also after pickling, with the ids of what was sent before."""
    error = RateLimitExceeded("a", "100/hour burst 20", 12.5, 3)
    error.message_ids = ("m",)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.agent, again.rule, again.retry_after, again.n) == ("a", "100/hour burst 20", 12.5, 3)
    assert again.message_ids == ("m",)
    assert str(again) == "'a' has reached its rate limit 100/hour burst 20: try again in 12.500 s"


class Broken(MemoryStorage):
    """A storage that does not answer."""

    def decide(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")


def test_without_an_answer_messages_are_refused_or_pass_as_set(caplog: pytest.LogCaptureFixture) -> None:
    """Closed by default; open with one warning a minute."""
    with pytest.raises(StoreUnavailable):
        RateLimiter(Broken(), "1/hour").acquire("a")
    limits = RateLimiter(Broken(), "1/hour", fail_open=True)
    for _ in range(10):
        limits.acquire("a")
    assert [record.message for record in caplog.records] == ["sent without a limit: away"]


class Refused:
    """Stands for the keeper of receipts: notes what was refused."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def refused(self, agent: str, rule: str, count: int) -> None:
        self.told.append((agent, rule, count))


def test_a_batch_of_several_senders_passes_whole_or_counts_nothing(limiter: Callable[..., RateLimiter]) -> None:
    """When the second sender is at its limit, the first has lost nothing; it is told who was refused."""
    limits = limiter("3/hour", {"b": "1/hour"})
    receipts: Any = Refused()
    gate = AdmissionControl(limits, receipts)

    def messages(*senders: str) -> list[Message]:
        return [Message(from_agent=sender, to_agent="c") for sender in senders]

    gate.admit(messages("a", "b"))
    with pytest.raises(RateLimitExceeded, match="'b'"):
        gate.admit(messages("a", "b"))
    assert limits.status("a")[0].used == 1
    with pytest.raises(RateLimitExceeded, match="has reached its rate limit"):
        gate.admit(messages("a", "a", "a"))
    gate.admit(messages("a", "a"))
    assert receipts.told == [("b", "1/hour", 1), ("a", "3/hour", 3)]


def test_urgent_and_other_messages_of_one_batch_are_told_apart(limiter: Callable[..., RateLimiter]) -> None:
    """With eight of ten for whatever is sent, seven and three URGENT ones pass, nine and an URGENT one do not."""
    receipts: Any = Refused()

    def batch(ordinary: int, urgent: int) -> list[Message]:
        priorities = [Priority.LOW] * ordinary + [Priority.URGENT] * urgent
        return [Message(from_agent="a", to_agent="b", priority=priority) for priority in priorities]

    with pytest.raises(RateLimitExceeded):
        AdmissionControl(limiter("10/hour", urgent_reserve=0.2), receipts).admit(batch(9, 1))
    AdmissionControl(limiter("10/hour", urgent_reserve=0.2), receipts).admit(batch(7, 3))


def test_no_message_waits_longer_than_it_lives(limiter: Callable[..., RateLimiter]) -> None:
    """A turn that comes after the message has expired is none."""
    limits = RateLimiter(MemoryStorage(), "1/minute")
    receipts: Any = Refused()
    gate = AdmissionControl(limits, receipts)
    gate.admit([Message(from_agent="a", to_agent="b")])
    with pytest.raises(RateLimitExceeded):
        gate.admit([Message(from_agent="a", to_agent="b", ttl_seconds=5)], wait=3600)
