"""Decides whether a worker has stalled: it has work, makes no progress, and nothing outside it is the cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from waooaw_celery.worker.health.progress import Snapshot

#: The longest regular turn of Celery's event loop, in seconds. Without a hub it waits 2 s for a message. While it
#: connects again it waits for a connection and an answer: 2 s and 3 s are the deadlines of both.
MAX_TURN_SECONDS = 5.0
#: The longest turn in which a loop without a hub only waits for a message, in seconds.
IDLE_TURN_SECONDS = 2.0
#: Celery's longest pause between two attempts to connect to the broker, in seconds.
MAX_RECONNECT_SECONDS = 32.0
#: How often, at most, the broker is asked within ``waooaw_stall_seconds``.
MAX_QUESTIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """The state of the event loop of the thread that consumes.

    Attributes:
        silent: seconds for which it has owed a callback; 0 when it has made it.
        connected: whether the consumer has all its connections. Until then it may pause before the next attempt.
        handles: whether a handler runs in its thread, as with the solo pool. It turns after that has ended.
    """

    silent: float
    connected: bool
    handles: bool


class StallDetector:
    """Compares successive snapshots of what a worker holds.

    The caller passes the time, so that seconds for which the computer was suspended do not count.

    Args:
        seconds: without progress, after which a worker counts as stalled.
        depth: returns how many messages wait in the worker's queues; None when the broker does not answer.
        answers: returns whether broker and store answer. A worker that waits for one of them has not stalled.
        consumes: returns whether the worker consumes a queue and may hold another message.
    """

    def __init__(
        self,
        seconds: float,
        depth: Callable[[], int | None],
        answers: Callable[[], bool],
        consumes: Callable[[Snapshot], bool],
    ) -> None:
        self._seconds, self._depth, self._answers, self._consumes = seconds, depth, answers, consumes
        self._ask_every = seconds / MAX_QUESTIONS
        self._asked_at = float("-inf")
        self._excused_until = float("-inf")
        self._unconnected_at = float("-inf")
        self._orphaned_at: dict[str, float] = {}
        self._waiting_at: float | None = None
        self._queued_at: float | None = None
        self._queue_reason: str | None = None
        self._last: Snapshot | None = None
        self._silent = self._paused = 0.0

    def reset(self) -> None:
        """Forget earlier snapshots, because the worker ends or does not consume."""
        self._orphaned_at, self._last = {}, None
        self._waiting_at = self._queued_at = self._queue_reason = None

    def check(self, now: float, loop: LoopState, snapshot: Snapshot) -> str | None:
        """Return why the worker counts as stalled, or None.

        Args:
            now: the time, in seconds.
            loop: the event loop.
            snapshot: what the worker holds.
        """
        turned = self._time_of_turns(now, loop)
        if loop.silent > MAX_TURN_SECONDS:
            # The worker cannot change what it holds before the loop turns.
            self.reset()
            return self._check_loop(now, loop)
        return (
            self._check_orphaned(turned, snapshot)
            or self._check_waiting(turned, snapshot)
            or self._check_queue(now, turned, snapshot)
        )

    def _time_of_turns(self, now: float, loop: LoopState) -> float:
        """Return the time without the seconds in which the loop did not turn: no message could be taken in them.

        With gevent, Celery's pause before it connects again blocks the loop: gevent has Celery imported before it
        replaces ``time.sleep``.
        """
        if loop.silent < self._silent and self._silent > IDLE_TURN_SECONDS:
            self._paused += self._silent
        self._silent = loop.silent
        return now - self._paused - loop.silent

    def _check_loop(self, now: float, loop: LoopState) -> str | None:
        if loop.handles:
            self._excused_until = now
            return None
        limit = self._seconds + MAX_TURN_SECONDS
        silent_since = max(now - loop.silent, self._excused_until)
        if loop.connected:  # a new connection has its whole time, however long it took to get it
            silent_since = max(silent_since, self._unconnected_at)
        else:
            self._unconnected_at = now
            limit += MAX_RECONNECT_SECONDS
        if now - silent_since < limit / 2 or not self._may_ask(now):
            return None
        if not self._answers():  # the worker may be waiting for that
            self._excused_until = now
            return None
        if now - silent_since < limit:
            return None
        return f"the event loop has not responded for {now - silent_since:.0f} s"

    def _check_orphaned(self, now: float, snapshot: Snapshot) -> str | None:
        before = self._orphaned_at
        self._orphaned_at = {request.id: before.get(request.id, now) for request in snapshot.orphaned}
        orphaned = [id_ for id_, at in self._orphaned_at.items() if now - at >= self._seconds]
        if not orphaned:
            return None
        return (
            f"{len(orphaned)} of {snapshot.slots} slots are held by messages that no handler runs: "
            f"{', '.join(map(str, orphaned[:5]))}"
        )

    def _check_waiting(self, now: float, snapshot: Snapshot) -> str | None:
        last, free = self._last, snapshot.slots - snapshot.busy
        has_progress = last is None or (last.started, last.ended) != (snapshot.started, snapshot.ended)
        if has_progress or free <= 0 or not snapshot.waiting:
            self._waiting_at = None
            return None
        self._waiting_at = now if self._waiting_at is None else self._waiting_at
        if now - self._waiting_at < self._seconds:
            return None
        return (
            f"messages wait for the pool: {len(snapshot.waiting)}, although {free} of its {snapshot.slots} slots "
            "are free"
        )

    def _check_queue(self, now: float, turned: float, snapshot: Snapshot) -> str | None:
        last, self._last = self._last, snapshot
        has_progress = last is None or (last.claimed, last.started) != (snapshot.claimed, snapshot.started)
        free = snapshot.slots - snapshot.taken
        if has_progress or free <= 0 or not self._consumes(snapshot):
            self._queued_at = self._queue_reason = None
            return None
        if not self._may_ask(now):
            return self._queue_reason
        depth = self._depth()
        if not depth:
            self._queued_at = self._queue_reason = None
            return None
        self._queued_at = turned if self._queued_at is None else self._queued_at
        if turned - self._queued_at >= self._seconds:
            self._queue_reason = (
                f"{depth} messages wait in the queue, {free} of {snapshot.slots} slots are free, and none was "
                f"claimed for {turned - self._queued_at:.0f} s"
            )
        return self._queue_reason

    def _may_ask(self, now: float) -> bool:
        if now - self._asked_at < self._ask_every:
            return False
        self._asked_at = now
        return True
