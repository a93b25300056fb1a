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
        questions: how often the broker was asked for the depth.
        pings: how often the broker was asked whether it answers.
    """

    def __init__(self) -> None:
        self.depth: int | None = 0
        self.consumes = True
        self.questions = self.pings = 0
        self.now = 0.0
        self.detector = StallDetector(SECONDS, self._depth, self._answers, lambda _: self.consumes)

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

    def _answers(self) -> bool:
        self.pings += 1
        return self.depth is not None


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


@pytest.mark.parametrize("count", ["claimed", "started"])
def test_each_claim_and_each_start_restarts_the_time_of_a_queue(worker: SimulatedWorker, count: str) -> None:
    """Only one of the two numbers changes."""
    worker.depth = 7
    assert worker.watch(IDLE, SECONDS - 1) is None
    later = replace(IDLE, **{count: 1})
    assert worker.watch(later, SECONDS) is None
    assert worker.watch(later, 5) is not None


@pytest.mark.parametrize("held", ["running", "waiting", "orphaned"])
def test_each_message_that_a_worker_holds_takes_a_slot(worker: SimulatedWorker, held: str) -> None:
    """The broker is not asked while all slots are taken. It is asked when there is one slot more."""
    worker.depth = 7
    full = replace(IDLE, **{held: requests(IDLE.slots)})
    assert worker.watch(full, SECONDS - 1) is None
    assert worker.questions == 0
    assert worker.watch(replace(full, slots=IDLE.slots + 1), 1) is None
    assert worker.questions == 1


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
    assert reason == "messages wait for the pool: 1, although 1 of its 2 slots are free"


@pytest.mark.parametrize(
    ("before", "after"), [((4, 1), (5, 2)), ((5, 2), (5, 1))], ids=["a handler starts", "a handler ends"]
)
def test_a_start_and_an_end_restart_the_time_of_waiting_messages(
    worker: SimulatedWorker, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Each pair is how many handlers have started and how many run. The third slot is always free."""
    earlier, later = (
        replace(IDLE, slots=3, waiting=requests(1), started=started, running=requests(running))
        for started, running in (before, after)
    )
    assert earlier.ended == later.ended or earlier.started == later.started
    assert worker.watch(earlier, SECONDS) is None
    assert worker.watch(later, SECONDS) is None
    reason = worker.watch(later, 2)
    assert reason == f"messages wait for the pool: 1, although {3 - after[1]} of its 3 slots are free"


def test_a_blocked_event_loop_asks_the_broker_after_half_of_the_limit(worker: SimulatedWorker) -> None:
    """The limit is 15 s, so the first question is at 8 s. The seconds of an outage do not count."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    assert worker.watch(IDLE, 7, silent) is None
    assert worker.pings == 0
    worker.depth = None
    assert worker.watch(IDLE, 1, replace(silent, silent=7.1)) is None
    assert worker.pings == 1
    worker.depth = 0
    assert worker.watch(IDLE, 14, replace(silent, silent=8.1)) is None
    assert worker.watch(IDLE, 3, replace(silent, silent=22.1)) is not None


def test_a_blocked_event_loop_is_a_stall(worker: SimulatedWorker) -> None:
    """It is a stall after the limit, while the broker answers. What the worker holds is not checked meanwhile."""
    silent = LoopState(silent=0.1, connected=True, handles=False)
    orphaned = replace(IDLE, orphaned=requests(1))
    assert worker.watch(orphaned, SECONDS + MAX_TURN_SECONDS - 1, silent) is None
    reason = worker.watch(orphaned, 5, replace(silent, silent=SECONDS + MAX_TURN_SECONDS))
    assert reason is not None
    assert reason.startswith("the event loop has not responded for 1")


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


@pytest.mark.parametrize(("turn", "is_stall"), [(2.0, True), (4.0, False)])
def test_seconds_in_which_the_event_loop_does_not_turn_do_not_count(
    worker: SimulatedWorker, turn: float, is_stall: bool
) -> None:
    """A loop that is blocked for 4 s at a time cannot claim. One that waits 2 s for each message can."""
    worker.depth = 1
    reasons = []
    for _ in range(10):
        for silent in range(int(turn) + 1):
            loop = LoopState(silent=float(silent), connected=True, handles=False)
            reasons.append(worker.watch(IDLE, 1, replace(loop, silent=silent - 1.0) if silent else loop))
    assert any(reasons) is is_stall


def test_a_new_connection_has_the_whole_time(worker: SimulatedWorker) -> None:
    """The seconds before the connection do not count: the loop may turn only after it. Later seconds count."""
    limit = SECONDS + MAX_TURN_SECONDS
    lost = LoopState(silent=0.1, connected=False, handles=False)
    assert worker.watch(IDLE, 2 * limit, lost) is None
    connected = LoopState(silent=0.1 + 2 * limit, connected=True, handles=False)
    assert worker.watch(IDLE, limit - 1, connected) is None
    assert worker.watch(IDLE, 4, replace(connected, silent=3 * limit)) is not None
