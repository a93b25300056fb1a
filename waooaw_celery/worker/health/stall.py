"""Decides whether a worker has stalled: it has work and makes no progress, although nothing keeps it from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from waooaw_celery.worker.health.progress import Snapshot

#: The longest regular turn of Celery's event loop, in seconds: without a hub it waits as long for a message.
TURN = 2.0
#: The longest pause of Celery between two attempts to connect to the broker, in seconds.
RECONNECT = 32.0
#: How often, at most, the broker is asked within ``waooaw_stall_seconds``.
QUESTIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What is known of the event loop of the thread that consumes.

    Attributes:
        silent: seconds since it was asked to turn, and has not; 0 when it has.
        connected: whether the consumer has its connection; without it, it may pause before the next attempt.
        handles: whether a handler runs in its thread, as with solo: it turns when that has ended.
    """

    silent: float
    connected: bool
    handles: bool


class StallDetector:
    """Compares what a worker holds from moment to moment.

    Time is that of the caller, so that seconds in which the computer was suspended do not count.

    Args:
        seconds: without progress, after which a worker counts as stalled.
        depth: returns how many messages wait in the queues that the worker consumes; None when the broker does not
            answer.
        answers: whether broker and store answer: where a worker waits for one of them, it has not stalled.
        consumes: whether the worker consumes a queue and may hold a message more.
    """

    def __init__(
        self,
        seconds: float,
        depth: Callable[[], int | None],
        answers: Callable[[], bool],
        consumes: Callable[[Snapshot], bool],
    ) -> None:
        self._seconds, self._depth, self._answers, self._consumes = seconds, depth, answers, consumes
        self._ask_every = seconds / QUESTIONS
        self._asked_at = float("-inf")
        self._excused_until = float("-inf")
        self._orphaned_at: dict[str, float] = {}
        self._waiting_at: float | None = None
        self._queued_at: float | None = None
        self._queue_reason: str | None = None
        self._last: Snapshot | None = None

    def reset(self) -> None:
        """Begin anew: the worker is ending, or was told not to take messages."""
        self._orphaned_at, self._last = {}, None
        self._waiting_at = self._queued_at = self._queue_reason = None

    def look(self, now: float, loop: Loop, snapshot: Snapshot) -> str | None:
        """Return why the worker counts as stalled, or None.

        Args:
            now: this moment, in seconds.
            loop: the event loop.
            snapshot: what the worker holds.
        """
        if loop.silent > TURN:
            # What is held cannot change before the loop turns.
            self.reset()
            return self._silence(now, loop)
        return self._orphans(now, snapshot) or self._waits(now, snapshot) or self._queue(now, snapshot)

    def _silence(self, now: float, loop: Loop) -> str | None:
        if loop.handles:
            self._excused_until = now
            return None
        limit = self._seconds + TURN + (0.0 if loop.connected else RECONNECT)
        since = max(now - loop.silent, self._excused_until)
        if now - since < limit / 2 or not self._may_ask(now):
            return None
        if not self._answers():  # then it may well wait for that
            self._excused_until = now
            return None
        if now - since < limit:
            return None
        return f"the event loop has not turned for {now - since:.0f} s"

    def _orphans(self, now: float, snapshot: Snapshot) -> str | None:
        since = self._orphaned_at
        self._orphaned_at = {request.id: since.get(request.id, now) for request in snapshot.orphaned}
        lost = [id_ for id_, at in self._orphaned_at.items() if now - at >= self._seconds]
        if not lost:
            return None
        return (
            f"{len(lost)} of {snapshot.slots} slots are held by messages that no handler runs: "
            f"{', '.join(map(str, lost[:5]))}"
        )

    def _waits(self, now: float, snapshot: Snapshot) -> str | None:
        last, free = self._last, snapshot.slots - len(snapshot.running)
        moved = last is None or (last.begun, last.ended) != (snapshot.begun, snapshot.ended)
        if moved or free <= 0 or not snapshot.waiting:
            self._waiting_at = None
            return None
        self._waiting_at = now if self._waiting_at is None else self._waiting_at
        if now - self._waiting_at < self._seconds:
            return None
        return (
            f"{len(snapshot.waiting)} messages wait for the pool, {free} of whose {snapshot.slots} slots are free"
        )

    def _queue(self, now: float, snapshot: Snapshot) -> str | None:
        last, self._last = self._last, snapshot
        moved = last is None or (last.claimed, last.begun) != (snapshot.claimed, snapshot.begun)
        free = snapshot.slots - len(snapshot.running) - len(snapshot.waiting) - len(snapshot.orphaned)
        if moved or free <= 0 or not self._consumes(snapshot):
            self._queued_at = self._queue_reason = None
            return None
        if not self._may_ask(now):
            return self._queue_reason
        depth = self._depth()
        if not depth:
            self._queued_at = self._queue_reason = None
            return None
        self._queued_at = now if self._queued_at is None else self._queued_at
        if now - self._queued_at >= self._seconds:
            self._queue_reason = (
                f"{depth} messages wait in the queue, {free} of {snapshot.slots} slots are free, and none was "
                f"claimed for {now - self._queued_at:.0f} s"
            )
        return self._queue_reason

    def _may_ask(self, now: float) -> bool:
        if now - self._asked_at < self._ask_every:
            return False
        self._asked_at = now
        return True
