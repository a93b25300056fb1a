"""When a worker counts as stalled, in simulated time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from waooaw_celery.worker.health.progress import Snapshot
from waooaw_celery.worker.health.stall import MAX_RECONNECT_SECONDS, MAX_TURN_SECONDS, LoopState, StallDetector

SECONDS = 10.0
TURNING = LoopState(silent=0.0, connected=True, handles=False)
IDLE = Snapshot(running=(), orphaned=(), waiting=(), scheduled=0, limited=0, slots=2, claimed=0, started=0)


class SimulatedWorker:
    """A stall detector, and the broker that it asks.

    Attributes:
        depth: the depth of the queue; None: the broker does not answer.
        consumes: whether the worker consumes.
        questions: how often the broker was asked.
    """

    def __init__(self) -> None:
        self.depth: int | None = 0
        self.consumes = True
        self.questions = 0
        self.now = 0.0
        self.detector = StallDetector(
            SECONDS, self._depth, lambda: self.depth is not None, lambda _: self.consumes
        )

    def watch(self, snapshot: Snapshot, seconds: float, loop: LoopState = TURNING) -> str | None:
        """Check every second for some seconds; return the first reason, or None."""
        for _ in range(int(seconds)):
            self.now += 1.0
            if loop.silent:
                loop = replace(loop, silent=loop.silent + 1.0)
            if (reason := self.detector.check(self.now, loop, snapshot)) is not None:
                return reason
        return None

    def _depth(self) -> int | None:
        self.questions += 1
        return self.depth


def requests(count: int) -> list[Any]:
    """Return requests with the attributes that the detector reads."""
    return [SimpleNamespace(id=f"id-{number}") for number in range(count)]


@pytest.fixture
def worker() -> SimulatedWorker:
    return SimulatedWorker()


def test_an_idle_worker_is_not_stalled_and_asks_rarely(worker: SimulatedWorker) -> None:
    """Its queue is empty. It asks the broker at most five times within the limit."""
    assert worker.watch(IDLE, 10 * SECONDS) is None
    assert worker.questions <= 5 * 10 + 1


def test_a_busy_worker_is_not_stalled_and_asks_nothing(worker: SimulatedWorker) -> None:
    """Every slot runs a handler, and messages wait in the pool and the queue."""
    worker.depth = 100
    busy = replace(IDLE, running=requests(2), waiting=requests(3))
    assert worker.watch(busy, 10 * SECONDS) is None
    assert worker.questions == 0


def test_waiting_messages_that_are_not_claimed_are_a_stall(worker: SimulatedWorker) -> None:
    """The time counts from the first check that saw them. A claim, or an empty queue, resets it."""
    worker.depth = 7
    assert worker.watch(IDLE, SECONDS - 1) is None
    assert worker.watch(replace(IDLE, claimed=1), SECONDS) is None
    worker.depth = 0
    assert worker.watch(replace(IDLE, claimed=1), 3) is None
    worker.depth = 7
    assert worker.watch(replace(IDLE, claimed=1), SECONDS - 1) is None
    reason = worker.watch(replace(IDLE, claimed=1), 5)
    assert reason is not None
    assert reason.startswith("7 messages wait in the queue, 2 of 2 slots are free, and none was claimed for 1")


@pytest.mark.parametrize("why", ["it is paused", "the broker does not answer"])
def test_waiting_messages_of_a_paused_or_unreachable_queue_are_no_stall(worker: SimulatedWorker, why: str) -> None:
    """The agent is paused, or the broker does not answer."""
    worker.consumes = why != "it is paused"
    worker.depth = 7 if not worker.consumes else None
    assert worker.watch(IDLE, 10 * SECONDS) is None


def test_slots_without_a_handler_are_a_stall(worker: SimulatedWorker) -> None:
    """The time counts for each message. A message that ends does not count."""
    first, second = requests(2)
    assert worker.watch(replace(IDLE, orphaned=[first]), SECONDS - 1) is None
    assert worker.watch(replace(IDLE, orphaned=[second]), SECONDS) is None
    reason = worker.watch(replace(IDLE, orphaned=[second]), 3)
    assert reason == "1 of 2 slots are held by messages that no handler runs: id-1"


def test_messages_in_a_pool_with_free_slots_are_a_stall(worker: SimulatedWorker) -> None:
    """A handler that starts or ends is progress."""
    waits = replace(IDLE, waiting=requests(1), running=requests(1))
    assert worker.watch(waits, SECONDS) is None
    assert worker.watch(replace(waits, started=5), SECONDS) is None
    reason = worker.watch(replace(waits, started=5), 5)
    assert reason == "1 messages wait for the pool, 1 of whose 2 slots are free"


def test_a_blocked_event_loop_is_a_stall(worker: SimulatedWorker) -> None:
    """It is a stall after the limit, while the broker answers. What the worker holds is not checked meanwhile."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    orphaned = replace(IDLE, orphaned=requests(1))
    assert worker.watch(orphaned, SECONDS + MAX_TURN_SECONDS - 1, silent) is None
    reason = worker.watch(orphaned, 5, replace(silent, silent=SECONDS + MAX_TURN_SECONDS))
    assert reason is not None
    assert reason.startswith("the event loop has not turned for 1")


def test_an_event_loop_that_waits_for_others_is_no_stall(worker: SimulatedWorker) -> None:
    """A handler runs in its thread, the broker does not answer, or Celery pauses before it reconnects."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    assert worker.watch(IDLE, 10 * SECONDS, replace(silent, handles=True)) is None
    worker.depth = None
    assert worker.watch(IDLE, 10 * SECONDS, silent) is None
    worker = SimulatedWorker()
    limit = SECONDS + MAX_TURN_SECONDS + MAX_RECONNECT_SECONDS
    assert worker.watch(IDLE, limit - 1, replace(silent, connected=False)) is None
    assert worker.watch(IDLE, 5, replace(silent, connected=False, silent=60.0)) is not None
