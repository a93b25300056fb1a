"""When a worker counts as stalled, moment by moment."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery.worker.health.progress import Snapshot
from waooaw_celery.worker.health.stall import MAX_RECONNECT_SECONDS, MAX_TURN_SECONDS, LoopState, StallDetector

SECONDS = 10.0
TURNS = LoopState(silent=0.0, connected=True, handles=False)
IDLE = Snapshot(running=(), orphaned=(), waiting=(), scheduled=0, limited=0, slots=2, claimed=0, begun=0)


class Watched:
    """A detector, and the broker that it asks.

    Attributes:
        depth: what the broker answers; None: nothing.
        takes: whether the worker is to take messages.
        asked: how often the broker was asked.
    """

    def __init__(self) -> None:
        self.depth: int | None = 0
        self.takes = True
        self.asked = 0
        self.now = 0.0
        self.detector = StallDetector(SECONDS, self._depth, lambda: self.depth is not None, lambda _: self.takes)

    def watch(self, snapshot: Snapshot, seconds: float, loop: LoopState = TURNS) -> str | None:
        """Look every second for a while; return the first reason, or None."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if loop.silent:
                loop = replace(loop, silent=loop.silent + 1.0)
            if (reason := self.detector.check(self.now, loop, snapshot)) is not None:
                return reason
        return None

    def _depth(self) -> int | None:
        self.asked += 1
        return self.depth


def requests(count: int) -> list[Any]:
    """Return requests, as far as the detector looks at them."""
    return [SimpleNamespace(id=f"id-{number}") for number in range(count)]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_an_idle_worker_is_not_stalled_and_asks_rarely(watched: Watched) -> None:
    """Its queue is empty: it asks the broker at most five times within the limit."""
    assert watched.watch(IDLE, 10 * SECONDS) is None
    assert watched.asked <= 5 * 10 + 1


def test_a_busy_worker_is_not_stalled_and_asks_nothing(watched: Watched) -> None:
    """Every slot runs a handler, however long, and messages wait in the pool and the queue."""
    watched.depth = 100
    busy = replace(IDLE, running=requests(2), waiting=requests(3))
    assert watched.watch(busy, 10 * SECONDS) is None
    assert watched.asked == 0


def test_messages_that_wait_for_a_worker_that_claims_nothing(watched: Watched) -> None:
    """They count from the moment at which they were first seen; a claim, or an empty queue, begins anew."""
    watched.depth = 7
    assert watched.watch(IDLE, SECONDS - 1) is None
    assert watched.watch(replace(IDLE, claimed=1), SECONDS) is None
    watched.depth = 0
    assert watched.watch(replace(IDLE, claimed=1), 3) is None
    watched.depth = 7
    assert watched.watch(replace(IDLE, claimed=1), SECONDS - 1) is None
    reason = watched.watch(replace(IDLE, claimed=1), 5)
    assert reason is not None
    assert reason.startswith("7 messages wait in the queue, 2 of 2 slots are free, and none was claimed for 1")


@pytest.mark.parametrize("why", ["it does not take messages", "the broker does not answer"])
def test_messages_that_wait_legitimately(watched: Watched, why: str) -> None:
    """Its agent is paused, or nothing is known of the queue."""
    watched.takes = why != "it does not take messages"
    watched.depth = 7 if not watched.takes else None
    assert watched.watch(IDLE, 10 * SECONDS) is None


def test_slots_that_no_handler_uses(watched: Watched) -> None:
    """Each message counts by itself; one that ends meanwhile does not."""
    first, second = requests(2)
    assert watched.watch(replace(IDLE, orphaned=[first]), SECONDS - 1) is None
    assert watched.watch(replace(IDLE, orphaned=[second]), SECONDS) is None
    reason = watched.watch(replace(IDLE, orphaned=[second]), 3)
    assert reason == "1 of 2 slots are held by messages that no handler runs: id-1"


def test_messages_that_wait_for_a_pool_with_free_slots(watched: Watched) -> None:
    """A handler that begins or ends is progress."""
    waits = replace(IDLE, waiting=requests(1), running=requests(1))
    assert watched.watch(waits, SECONDS) is None
    assert watched.watch(replace(waits, begun=5), SECONDS) is None
    reason = watched.watch(replace(waits, begun=5), 5)
    assert reason == "1 messages wait for the pool, 1 of whose 2 slots are free"


def test_an_event_loop_that_stands_still(watched: Watched) -> None:
    """While the broker answers it has the limit; what it holds is not looked at meanwhile."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    orphaned = replace(IDLE, orphaned=requests(1))
    assert watched.watch(orphaned, SECONDS + MAX_TURN_SECONDS - 1, silent) is None
    reason = watched.watch(orphaned, 5, replace(silent, silent=SECONDS + MAX_TURN_SECONDS))
    assert reason is not None
    assert reason.startswith("the event loop has not turned for 1")


def test_an_event_loop_that_waits_legitimately(watched: Watched) -> None:
    """A handler runs in its thread, the broker does not answer, or Celery pauses before it connects again."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    assert watched.watch(IDLE, 10 * SECONDS, replace(silent, handles=True)) is None
    watched.depth = None
    assert watched.watch(IDLE, 10 * SECONDS, silent) is None
    watched = Watched()
    limit = SECONDS + MAX_TURN_SECONDS + MAX_RECONNECT_SECONDS
    assert watched.watch(IDLE, limit - 1, replace(silent, connected=False)) is None
    assert watched.watch(IDLE, 5, replace(silent, connected=False, silent=60.0)) is not None
