"""The algorithm in memory: windows, bursts, groups, clocks that are set back, and a reference model."""

from __future__ import annotations

import random
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from limit_helpers import START, Clock, check_pace, limiter_at, paced_rules, passing
from limit_model import Model, rules_of

from waooaw_celery import MessageType, Priority, RateLimitExceeded
from waooaw_celery.limits import memory
from waooaw_celery.limits import memory as memory_module
from waooaw_celery.limits.algorithm import RateCounter
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.rules import Quota, Rule, demands_by_scope


def test_a_burst_is_followed_by_the_rate() -> None:
    """100 an hour with a burst of 20: 20 at once, then one every 36 s, until 100 in an hour are reached."""
    clock = Clock()
    limits = limiter_at(clock, "100/hour burst 20")
    assert passing(limits, "a") == 20
    clock.advance(36)
    assert passing(limits, "a") == 1
    clock.advance(360)
    assert passing(limits, "a") == 10
    clock.advance(3000)  # longer than the bucket takes to refill
    assert passing(limits, "a") == 20


def test_a_window_slides() -> None:
    """Messages count for a minute from when they were sent: no minute, wherever it begins, holds more than ten."""
    clock = Clock()
    limits = limiter_at(clock, "10/minute")
    clock.advance(59)
    assert passing(limits, "a") == 10
    clock.advance(2)
    assert passing(limits, "a") == 0
    clock.advance(58.01)
    assert passing(limits, "a") == 10


def test_nothing_is_counted_unless_all_rules_pass() -> None:
    """The first rule does not count what the second refuses; the error has the longest wait."""
    clock = Clock()
    limits = limiter_at(clock, "10/second; 12/minute")
    limits.acquire("a", 10)
    clock.advance(1.1)
    with pytest.raises(RateLimitExceeded, match="12/minute") as caught:
        limits.acquire("a", 5)
    assert caught.value.retry_after == pytest.approx(58.9, abs=0.01)
    limits.acquire("a", 2)
    used = {status.rule: status.used for status in limits.status("a")}
    assert used == {"10/second": 2, "12/minute": 12}


def test_retry_after_is_exact_to_the_microsecond() -> None:
    """It holds for windows, for bursts, and for several messages at once."""
    clock = Clock()
    for quota, n in (("7/second", 3), ("100/hour burst 20", 1), ("100/hour burst 20", 13), ("1000/minute", 30)):
        limits = limiter_at(clock, quota)
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


def test_a_lowered_limit_counts_earlier_messages() -> None:
    """From ten thousand to ten an hour and back, the agent never exceeds the current rule."""
    clock = Clock()
    limits = limiter_at(clock, "10000/hour")
    limits.acquire("a", 500)
    limits.set_quota("a", "10/hour")
    assert passing(limits, "a") == 0
    clock.advance(3601)
    assert passing(limits, "a") == 10
    limits.set_quota("a", "10000/hour")
    assert limits.status("a")[0].used == 10
    limits.acquire("a", 9990)
    assert passing(limits, "a") == 0


def test_a_high_limit_is_never_exceeded_and_nearly_reached() -> None:
    """With 1,234 a minute each timestamp stands for 13 messages: at most 12 fewer pass, never one more."""
    clock = Clock()
    limits = limiter_at(clock, "1234/minute")
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


def test_a_clock_set_back_neither_blocks_nor_exceeds_the_limit() -> None:
    """When the clock is set back by a day, the agent waits a minute and not a day, and no count is lost."""
    clock = Clock()
    limits = limiter_at(clock, "10/minute burst 10")
    assert passing(limits, "a") == 10
    clock.advance(-86_400)
    with pytest.raises(RateLimitExceeded) as caught:
        limits.acquire("a", 10)
    assert caught.value.retry_after == pytest.approx(60, abs=0.1)
    clock.advance(caught.value.retry_after)
    assert passing(limits, "a") == 10
    clock.advance(-5)
    clock.advance(30)
    assert passing(limits, "a") == 0


def test_threads_share_one_count() -> None:
    """Eight threads that send as fast as they can send fifty messages together."""
    limits = limiter_at(Clock(), "50/hour")
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(passing(limits, "a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 50


def test_expired_counters_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters whose windows have passed are deleted; those that still count are not."""
    clock = Clock()
    monkeypatch.setattr(memory, "_PRUNE_FROM", 10)
    limits = limiter_at(clock, "1/minute")
    for number in range(1000):
        limits.acquire(f"agent-{number}")
        clock.advance(10)
    assert len(list(limits.storage.counted_scopes())) <= 20
    assert passing(limits, "agent-999") == 0


def test_counters_are_pruned_when_their_number_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only counters whose longest window has passed are deleted."""
    monkeypatch.setattr(memory_module, "_PRUNE_FROM", 4)
    clock = Clock()
    limits = limiter_at(clock, "1/second; 1/minute")

    def send(*agents: str) -> set[str]:
        for agent in agents:
            limits.acquire(agent)
        return {agent for agent, _ in limits.storage.counted_scopes()}

    assert send(*"abcd") == set("abcd")
    clock.now += 30_000_000
    assert send("e") == set("abcde")  # none has expired; the next time is at eight
    clock.now += 60_100_000
    assert send("f") == set("abcdef")
    assert send("g", "h") == set("abcdefgh")
    assert send("i") == set("fghi")


QUOTAS = [
    parse_quota(text)
    for text in (
        "3/minute",
        "5/minute; 8/hour burst 3",
        "10/minute burst 2; 40/hour; 90/day burst 7",
        "6/minute to *; 2/minute burst 1 to x; 12/hour",
        "4/minute of query; 9/minute burst 4",
        "100/minute burst 33",
        "unlimited",
    )
]


@pytest.mark.parametrize("seed", range(60))
def test_the_memory_storage_decides_like_the_model(seed: int) -> None:
    """With random sends, pauses, quotas and clocks set back: the same decisions and counts, and exact waits."""
    rng = random.Random(seed)  # noqa: S311 - nothing here is secret
    now, reserve, quota, model = START, rng.choice((0, 250)), rng.choice(QUOTAS), Model()
    storage = MemoryStorage(lambda: now)
    for _ in range(60):
        action = rng.random()
        if action < 0.05:
            quota = rng.choice(QUOTAS)
        elif action < 0.1:
            now -= rng.randrange(100_000_000)
        elif action < 0.4:
            now += rng.choice((rng.randrange(3000), rng.randrange(70_000_000), rng.randrange(4_000_000_000), 2400))
        storage.set_quota("a", quota)
        to, type_ = rng.choice((None, "x", "y")), rng.choice((None, MessageType.QUERY))
        n = rng.choice((1, 1, 2, rng.randrange(1, 7)))
        demands = demands_by_scope([(to, type_, rng.choice((Priority.URGENT, Priority.LOW)), n)])
        numbers = {demand.scope: (demand.n, demand.non_urgent) for demand in demands}
        charge = rng.random() < 0.9
        refusal = storage.decide("a", demands, Quota(), reserve, charge=charge)
        assert (refusal is None) == model.passes(quota, numbers, reserve, now)
        if refusal is not None and refusal.wait_us is None:
            assert not model.passes(quota, numbers, reserve, now, 400 * 86_400_000_000)
        elif refusal is not None and refusal.wait_us is not None:
            assert model.passes(quota, numbers, reserve, now, refusal.wait_us)
            assert not model.passes(quota, numbers, reserve, now, refusal.wait_us - 1)
        elif charge:
            model.send(quota, numbers, now)
        scopes = [scope for scope in ("", "to:x", "to:y", "of:query") if rules_of(quota, scope)]
        used = [model.used(scope, rule, now) for scope in scopes for rule in rules_of(quota, scope)]
        assert [status.used for status in storage.status("a", scopes, Quota(), reserve)] == used


def test_groups_keep_their_newest_timestamp() -> None:
    """With 250 a minute, three messages share a timestamp; a window that is lowered and raised keeps its count."""
    clock = Clock()
    limits = limiter_at(clock, "250/minute")
    limits.acquire("a", 4)
    clock.now += 30_000_000
    limits.acquire("a", 4)
    assert limits.status("a")[0].used == 8
    clock.now += 30_100_000  # the first group of three is over; the second became newer when it was filled
    assert limits.status("a")[0].used == 5
    limits.set_quota("a", "100/minute")
    limits.acquire("a")
    assert limits.status("a")[0].used == 6
    limits.set_quota("a", "900/minute")
    limits.acquire("a", 2)
    assert limits.status("a")[0].used == 8
    clock.now += 30_000_000
    limits.set_quota("a", None)
    assert 3 <= limits.status("a")[0].used <= 8


def test_a_window_is_regrouped_when_the_limit_is_raised() -> None:
    """So that it never stores more than 100 timestamps; a lowered limit keeps the groups until they expire."""
    low, high = Rule(100, 60), Rule(1000, 60)
    counter = RateCounter()
    for number in range(95):
        counter.count(counter.snapshot([low], START + number * 2400), 1)
    now = START + 95 * 2400
    [(_, window)] = counter.snapshot([high], now).windows
    first = START // 2400
    assert (window.used, window.group_size, window.newest_group) == (95, 10, 5)
    assert window.slots == [first + 9, *range(first + 19, first + 90, 10), first + 94]
    counter.count(counter.snapshot([high], now), 6)
    [(_, window)] = counter.snapshot([low], now).windows
    assert (window.used, window.group_size, window.newest_group, len(window.slots)) == (101, 10, 1, 11)
    [(_, window)] = counter.snapshot([low], now + 61_000_000).windows
    assert (window.used, window.group_size, window.slots) == (0, 1, [])


def test_a_bucket_refills_at_the_rate() -> None:
    """A burst of three at ten an hour: each six minutes bring one message, and never more than three are held."""
    clock = Clock()
    limits = limiter_at(clock, "10/hour burst 3")
    limits.acquire("a", 3)
    with pytest.raises(RateLimitExceeded) as caught:
        limits.acquire("a")
    assert caught.value.retry_after == 360
    clock.now += 719_999_999
    assert limits.status("a")[0].remaining == 1
    clock.now += 1
    assert limits.status("a")[0].remaining == 2
    clock.now += 7_200_000_000
    assert limits.status("a")[0].remaining == 3


@pytest.mark.parametrize(("quota", "rate"), [("864000/day burst 10", 10), ("86400/day burst 1", 1)])
def test_a_small_burst_of_a_long_window_does_not_slow_the_pace(quota: str, rate: int) -> None:
    """A sender that waits as long as it is told sends at the rate of the rule."""
    clock = Clock()
    limits = limiter_at(clock, quota)
    passing(limits, "a")
    start = clock.now
    for _ in range(100 * rate):
        with pytest.raises(RateLimitExceeded) as caught:
            limits.acquire("a")
        assert caught.value.retry_after <= 1 / rate
        clock.advance(caught.value.retry_after)
        limits.acquire("a")
    assert clock.now - start == 100_000_000


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rule=paced_rules(), gaps=st.lists(st.floats(0, 3) | st.floats(0, 1e5), min_size=1, max_size=15))
def test_the_pace_holds_for_every_limit_and_burst(rule: Rule, gaps: list[float]) -> None:
    """However the sender pauses, each message passes at the microsecond at which the rate allows it."""
    clock = Clock()
    check_pace(MemoryStorage(clock), clock, rule, gaps)
