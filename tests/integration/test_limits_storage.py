"""Rate limits in Redis decide like those in memory and like an independent model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from limit_helpers import Clock, check_pace, paced_rules
from limit_model import Model, is_exact, rules_of
from redis import Redis
from redis.exceptions import ResponseError
from support import until

from waooaw_celery import MessageType, Priority, RateLimiter, RateLimitExceeded
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.limits.grammar import parse_quota
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.limits.redis import DEADLINE_SECONDS, PAUSE_SECONDS, RedisStorage
from waooaw_celery.limits.rules import MAX_PERIOD, Demand, Quota, Rule, demands_by_scope
from waooaw_celery.limits.storage import LimitStorage
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import free_port, valkey

#: Windows of a minute and longer: Redis expires counters by its own clock, which these tests cannot move.
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
        "230/minute; 1000/hour burst 150",
    )
]
RESERVE = 250
_url = ""


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    """Start a server for this module alone: some tests list or delete all of its keys."""
    global _url
    with valkey() as url:
        _url = store_url(url)
        yield


@pytest.fixture
def client() -> Iterator[Any]:
    client = connect(_url)
    client.flushall()
    yield client
    client.flushall()
    client.close()


@pytest.fixture(params=["memory", "redis"])
def storage(request: pytest.FixtureRequest, client: Any) -> LimitStorage:
    """Each storage, with its own clock."""
    return MemoryStorage() if request.param == "memory" else RedisStorage(client)


class Limits(RuleBasedStateMachine):
    """Both storages and the model always decide alike, and each wait is exact to the microsecond."""

    @initialize(start=st.integers(1_600_000_000_000_000, 1_900_000_000_000_000), default=st.sampled_from(QUOTAS))
    def begin(self, start: int, default: Any) -> None:
        self.time, self.default = start, default
        self.client: Any = connect(_url)
        self.client.flushall()
        self.storages: list[LimitStorage] = [
            MemoryStorage(lambda: self.time),
            RedisStorage(self.client, lambda: self.time),
        ]
        self.models = {"a": Model(), "b": Model()}
        #: Agents that had a quota whose limits are too high for the model to be exact.
        self.inexact: set[str] = set() if is_exact(default) else {"a", "b"}
        self.set: dict[str, Any] = {}

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()

    @rule(
        agent=st.sampled_from("ab"),
        to=st.sampled_from([None, "x", "y"]),
        type_=st.sampled_from([None, MessageType.QUERY, MessageType.COMMAND]),
        priority=st.sampled_from([Priority.URGENT, Priority.LOW]),
        n=st.integers(1, 6) | st.integers(1, 120),
        charge=st.integers(0, 9).map(bool),
    )
    def send(
        self, agent: str, to: str | None, type_: MessageType | None, priority: Priority, n: int, charge: bool
    ) -> None:
        wanted = demands_by_scope([(to, type_, priority, n)])
        refusals = [
            storage.decide(agent, wanted, self.default, RESERVE, charge=charge) for storage in self.storages
        ]
        assert refusals[0] == refusals[1]
        quota, model = self.set.get(agent, self.default), self.models[agent]
        numbers = {demand.scope: (demand.n, demand.non_urgent) for demand in wanted}
        model_passes = model.passes(quota, numbers, RESERVE, self.time)
        passes = refusals[0] is None
        if agent not in self.inexact:
            assert passes == model_passes
            if refusals[0] is not None:
                self.check_wait(model, quota, numbers, refusals[0].wait_us)
        elif passes:
            assert model_passes, "groups admit fewer messages, never more"
        if passes and charge:
            model.send(quota, numbers, self.time)

    @rule(
        agent=st.sampled_from("ab"),
        to=st.sampled_from([None, "x", "y"]),
        type_=st.sampled_from([None, MessageType.QUERY]),
        priority=st.sampled_from([Priority.URGENT, Priority.LOW]),
        n=st.integers(1, 3),
        gaps=st.lists(st.sampled_from([0, 1, 2399, 2400, 700_000, 6_000_000, 25_000_000]), max_size=15),
    )
    def send_some(
        self,
        agent: str,
        to: str | None,
        type_: MessageType | None,
        priority: Priority,
        n: int,
        gaps: list[int],
    ) -> None:
        for gap in gaps:
            self.time += gap
            self.send(agent, to, type_, priority, n, charge=True)

    def check_wait(self, model: Model, quota: Any, numbers: Any, wait: int | None) -> None:
        if wait is None:
            assert not model.passes(quota, numbers, RESERVE, self.time, 400 * 86_400_000_000)
        else:
            assert wait > 0
            assert model.passes(quota, numbers, RESERVE, self.time, wait)
            assert not model.passes(quota, numbers, RESERVE, self.time, wait - 1)

    @rule(
        by=st.integers(0, 3_000)
        | st.integers(0, 70_000_000)
        | st.integers(0, 90_000_000_000)
        | st.sampled_from([2400, 60_000_000, 60_002_400, 3_600_000_000, 3_600_144_000])
    )
    def advance(self, by: int) -> None:
        self.time += by

    @rule(by=st.integers(1, 100_000_000) | st.integers(1, 200_000_000_000))
    def set_the_clock_back(self, by: int) -> None:
        self.time -= by

    @rule(agent=st.sampled_from("ab"), quota=st.sampled_from([*QUOTAS, None]))
    def set_quota(self, agent: str, quota: Any) -> None:
        for storage in self.storages:
            storage.set_quota(agent, quota)
        self.set[agent] = self.default if quota is None else quota
        if not is_exact(self.set[agent]):
            self.inexact.add(agent)
        assert self.storages[0].quotas() == self.storages[1].quotas()

    @rule(agent=st.sampled_from("ab"))
    def reset(self, agent: str) -> None:
        for storage in self.storages:
            storage.reset(agent)
        self.models[agent] = Model()
        if is_exact(self.set.get(agent, self.default)):
            self.inexact.discard(agent)

    @rule(agent=st.sampled_from("ab"))
    def check_status(self, agent: str) -> None:
        scopes = ["", "to:x", "to:y", "of:query"]
        statuses = [storage.status(agent, scopes, self.default, RESERVE) for storage in self.storages]
        assert statuses[0] == statuses[1]
        assert sorted(self.storages[0].counted_scopes()) == sorted(self.storages[1].counted_scopes())
        if agent not in self.inexact:
            quota, model = self.set.get(agent, self.default), self.models[agent]
            used = [model.used(scope, rule_, self.time) for scope in scopes for rule_ in rules_of(quota, scope)]
            assert [status.used for status in statuses[0]] == used

    @rule()
    @precondition(lambda self: hasattr(self, "client"))
    def flush_scripts(self) -> None:
        self.client.script_flush()


TestLimits = Limits.TestCase
TestLimits.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(limit=paced_rules(), gaps=st.lists(st.floats(0, 3) | st.floats(0, 1e5), min_size=1, max_size=15))
def test_the_pace_holds_for_every_limit_and_burst_on_redis(limit: Rule, gaps: list[float]) -> None:
    """The script computes with doubles, and is exact to the microsecond up to the largest limit and window."""
    clock, client = Clock(), connect(_url)
    client.flushall()
    check_pace(RedisStorage(client, clock), clock, limit, gaps)
    client.close()


def test_the_largest_burst_refills_to_the_microsecond(client: Any) -> None:
    """A wait that is longer than a whole number of microseconds by a billionth of one is rounded up."""
    limit, period_us = 999_999_937, MAX_PERIOD * 1_000_000  # a prime number, so that every remainder occurs
    inverse = pow(period_us, -1, limit)
    n = next(n for n in (inverse * rest % limit for rest in range(1, 1000)) if n <= limit // 2)
    clock, quota, demands = Clock(), Quota((Rule(limit, MAX_PERIOD, n),)), [Demand("", n, 0)]
    for storage in (MemoryStorage(clock), RedisStorage(client, clock)):
        assert storage.decide("a", demands, quota, 0, charge=True) is None
        refusal = storage.decide("a", demands, quota, 0, charge=True)
        assert refusal is not None
        assert refusal.wait_us == n * period_us // limit + 1
        clock.now += refusal.wait_us - 1
        assert storage.decide("a", demands, quota, 0, charge=True) is not None
        clock.now += 1
        assert storage.decide("a", demands, quota, 0, charge=True) is None


@pytest.mark.slow
def test_retry_after_is_exact_on_a_real_clock(storage: LimitStorage) -> None:
    """After retry_after the next message passes; 5 % earlier it is refused. Five times in a row."""
    limits = RateLimiter(storage, "2/second; 90/minute burst 10")
    limits.acquire("a", 2)
    for _ in range(5):
        with pytest.raises(RateLimitExceeded) as caught:
            limits.acquire("a", 2)
        refused_at = time.monotonic()
        wait = caught.value.retry_after
        time.sleep(0.95 * wait - 0.01)  # a little less, because this process may be delayed
        if time.monotonic() - refused_at < 0.97 * wait:
            with pytest.raises(RateLimitExceeded):
                limits.acquire("a", 2)
        time.sleep(max(refused_at + wait - time.monotonic(), 0))
        limits.acquire("a", 2)


def test_a_decision_is_one_round_trip(client: Any) -> None:
    """A decision by several rules sends one command, and so does a batch with many recipients."""
    limits = RateLimiter(RedisStorage(client), "1000/second; 1000/hour; 100/hour to *; 50/minute of query")
    limits.acquire("a")
    before = client.info("commandstats")
    limits.acquire("a", to="x", message_type=MessageType.QUERY)
    limits.storage.decide(
        "a",
        demands_by_scope((f"agent-{n}", None, Priority.LOW, 1) for n in range(900)),
        parse_quota("unlimited"),
        0,
        charge=True,
    )
    after = client.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert calls["cmdstat_evalsha"] == 2
    assert {name for name, count in calls.items() if count} <= {
        *("cmdstat_evalsha", "cmdstat_info", "cmdstat_time", "cmdstat_hmget", "cmdstat_get", "cmdstat_set"),
    }


def test_a_counter_expires_and_is_small(client: Any) -> None:
    """A counter expires after its longest window, and takes less than 1 KB when four windows are full."""
    name, now = "an-agent-with-a-name-of-usual-length", [1_700_000_000_000_000]
    limits = RateLimiter(RedisStorage(client, lambda: now[0]), "10/second; 100/minute; 1000/hour; 10000/day")
    for calls, n, seconds in ((900, 10, 76_000), (90, 10, 3360), (9, 10, 56), (10, 1, 0.9)):
        # Earlier messages have left the next shorter window.
        now[0] += round(max(seconds / 15, 1.0) * 1_000_000)
        for _ in range(calls):
            now[0] += round(seconds / calls * 1_000_000)
            limits.acquire(name, n)
    assert [status.remaining for status in limits.status(name)] == [0, 0, 0, 0]
    [key] = client.keys("waooaw:limit:*")
    assert 86_000_000 < client.pttl(key) <= 86_404_000
    assert 600 < client.memory_usage(key) < 1024
    limits.reset(name)
    assert client.keys("*") == []


def test_a_quota_applies_to_all_processes_at_once(client: Any) -> None:
    """The next decision of another process uses it, and its text is read back as it was set."""
    first, second = (RateLimiter(RedisStorage(connect(_url)), "1/hour") for _ in range(2))
    second.acquire("a")
    with pytest.raises(RateLimitExceeded):
        second.acquire("a")
    first.set_quota("a", "3/hour; 2/minute to boss")
    second.acquire("a", to="boss")
    assert str(second.quota("a")) == "3/hour; 2/minute to boss"
    assert [str(quota) for quota, _ in second.quotas().values()] == ["1/hour", "3/hour; 2/minute to boss"]
    first.set_quota("a", None)
    with pytest.raises(RateLimitExceeded):
        second.acquire("a")
    for limiter in (first, second):
        limiter.close()


def test_agents_near_their_limits_are_listed(storage: LimitStorage) -> None:
    """One entry for each rule, the most used first."""
    limits = RateLimiter(storage, "10/hour; 4/hour to *")
    for name, n in (("idle", 1), ("busy", 8), ("full", 10)):
        limits.acquire(name, n)
    limits.acquire("idle", 4, to="x")
    assert [(status.agent, status.rule, status.used) for status in limits.near(0.8)] == [
        ("full", "10/hour", 10),
        ("idle", "4/hour to x", 4),
        ("busy", "10/hour", 8),
    ]


def test_a_decision_uses_keys_of_one_cluster_slot() -> None:
    """Everything works on a server in cluster mode, which refuses commands with keys of several slots."""
    port = free_port()
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    with valkey(port=port, options=options) as url:
        client = connect(store_url(url))
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")), "the cluster")
        with pytest.raises(ResponseError, match="same slot"):
            client.mget("a", "b")
        limits = RateLimiter(RedisStorage(client), "5/hour; 2/hour to *; 3/hour of query")
        limits.acquire("a", 2, to="x", message_type=MessageType.QUERY)
        with pytest.raises(RateLimitExceeded, match="2/hour to x"):
            limits.acquire("a", to="x")
        limits.set_quota("a", "1/hour")
        assert [status.agent for status in limits.near()] == ["a"]
        limits.reset("a")
        limits.acquire("a")
        limits.close()


@pytest.fixture
def own_server() -> Iterator[tuple[str, int]]:
    """Start a server for one test; return its URL and process id."""
    with valkey() as url:
        with Redis.from_url(store_url(url)) as client:
            pid = int(client.info("server")["process_id"])
        yield store_url(url), pid
        os.kill(pid, signal.SIGCONT)


def disable(how: str, client: Any, pid: int) -> None:
    """Make a server unable to count."""
    {
        "frozen": lambda: os.kill(pid, signal.SIGSTOP),
        "read-only": lambda: client.replicaof("127.0.0.1", 1),
        "full": lambda: client.config_set("maxmemory", 1),
        "gone": lambda: os.kill(pid, signal.SIGKILL),
    }[how]()


@pytest.mark.parametrize("how", ["frozen", "read-only", "full", "gone"])
def test_an_unavailable_redis_refuses_or_admits_as_configured(own_server: tuple[str, int], how: str) -> None:
    """The first call returns within the deadline, later ones at once: with an error, or admitted if fail_open."""
    url, pid = own_server
    closed = RateLimiter(RedisStorage(connect(url, DEADLINE_SECONDS, once=True)), "10/hour")
    opened = RateLimiter(RedisStorage(connect(url, DEADLINE_SECONDS, once=True)), "10/hour", fail_open=True)
    closed.acquire("a")
    disable(how, connect(url), pid)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="rate limit of 'a'"):
        closed.acquire("a")
    opened.acquire("b", 10)
    assert time.monotonic() - began < 2 * DEADLINE_SECONDS + 1.5
    began = time.monotonic()
    for _ in range(20):
        opened.acquire("b")
        with pytest.raises(StoreUnavailable):
            closed.acquire("a")
    assert time.monotonic() - began < PAUSE_SECONDS + 2 * DEADLINE_SECONDS
    if how == "frozen":
        os.kill(pid, signal.SIGCONT)

        def counts() -> bool:
            try:
                closed.acquire("b")
            except StoreUnavailable:
                return False
            return True

        until(counts, "counting again", seconds=10)


def test_a_flushed_redis_starts_from_zero(client: Any, make_limits: Callable[..., RateLimiter]) -> None:
    """After FLUSHALL and SCRIPT FLUSH the next decision starts with empty counts."""
    limits = make_limits("2/hour")
    limits.acquire("a", 2)
    client.flushall()
    client.script_flush()
    limits.acquire("a", 2)
    with pytest.raises(RateLimitExceeded):
        limits.acquire("a")


@pytest.fixture
def make_limits(client: Any) -> Callable[..., RateLimiter]:
    return lambda *quota: RateLimiter(RedisStorage(client), *quota)


@pytest.mark.slow
def test_limits_follow_a_failover(make_limits: Callable[..., RateLimiter], tmp_path: Any) -> None:
    """A promoted replica has the counts, and receives the script that it lacks."""
    port, replica_port = free_port(), free_port()
    replica = ["--replicaof", "127.0.0.1", str(port), "--repl-diskless-sync-delay", "0"]
    with valkey(port=port) as first, valkey(port=replica_port, options=replica) as second:
        before, after = connect(store_url(first)), connect(store_url(second))
        until(lambda: after.info("replication")["master_link_status"] == "up", "the replica")
        limits = RateLimiter(RedisStorage(before), "2/hour")
        limits.set_quota("a", "3/hour")
        limits.acquire("a", 2)
        assert before.wait(1, 5000) == 1
        after.replicaof("NO", "ONE")
        follower = RateLimiter(RedisStorage(after), "2/hour")
        follower.acquire("a")
        with pytest.raises(RateLimitExceeded, match="3/hour"):
            follower.acquire("a")
        limits.close()
        follower.close()
