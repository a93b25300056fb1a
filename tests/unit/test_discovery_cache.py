"""The agents as one process knows them: how old they may be, and how loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from support import pass_time, until

from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.store.agents.record import AgentRecord


class Store:
    """A store of one agent.

    Attributes:
        reads: how often it was read.
        error: what reading it raises, or None.
        changed: what ``await_change`` returns, once.
    """

    def __init__(self) -> None:
        self.reads = 0
        self.error: Exception | None = None
        self.changed = False

    def all(self) -> list[AgentRecord]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return [AgentRecord(name="a", handlers=("command",), declared_at=None, last_seen=None, workers=())]

    def profiles(self, workers: Any) -> dict[str, Any]:
        return {}

    def await_change(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        until(lambda: self.changed or time.monotonic() > ends_at, "a change", seconds + 10)
        changed, self.changed = self.changed, False
        return changed

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def waiting() -> dict[str, int]:
    """How many messages wait for each agent."""
    return {}


@pytest.fixture
def cache(store: Store, waiting: Mapping[str, int]) -> Iterator[DirectoryCache]:
    found = DirectoryCache(lambda: store, lambda names: {name: waiting.get(name, 0) for name in names})  # type: ignore[arg-type,return-value]
    yield found
    found.close()


def test_without_its_thread_a_caller_reads_what_is_a_second_old(store: Store, cache: DirectoryCache) -> None:
    """As in a process that was forked, or whose thread has ended."""
    cache.close()  # it starts no thread any more
    first = cache.snapshot()
    assert cache.snapshot() is first
    pass_time(1.05)
    assert cache.snapshot() is not first
    assert store.reads == 2


def test_a_change_is_read_when_it_is_announced(store: Store, cache: DirectoryCache) -> None:
    """A caller gets it although what it has is younger than a second."""
    first = cache.snapshot()
    began = time.monotonic()
    store.changed = True
    until(lambda: cache.snapshot() is not first, "the change", 5)
    assert time.monotonic() - began < 0.5


def test_a_caller_gets_the_error_of_a_store_that_does_not_answer(store: Store, cache: DirectoryCache) -> None:
    """What is older than a second is not used instead, and the thread goes on when the store is back."""
    cache.snapshot()
    store.error = StoreUnavailable("away")
    pass_time(1.05)
    with pytest.raises(StoreUnavailable):
        cache.snapshot()
    store.error = None
    assert set(cache.snapshot().agents) == {"a"}


def test_loads_count_what_waits_and_what_this_process_has_sent(
    cache: DirectoryCache, waiting: dict[str, int]
) -> None:
    """A request counts until it is answered, or until its caller no longer waits."""
    waiting["a"] = 2
    cache.close()
    names = ("a", "b")
    cache.need_loads(names)
    assert cache.loads(names) == [2, 0]
    cache.sent["b"] += 1
    cache.begin_request("m1", "b", time.monotonic() + 60)
    cache.begin_request("m2", "b", time.monotonic() + 0.5)
    assert cache.loads(names) == [2, 3]
    cache.end_request("m1")
    cache.end_request("m1")
    assert cache.loads(names) == [2, 2]
    waiting["b"] = 1
    pass_time(1.05)
    cache.need_loads(names)
    assert cache.loads(names) == [2, 1]
    assert cache._requests == {}
