"""What a worker holds and runs. A heartbeat shows that the process is alive; this shows that it makes progress."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.worker import state

from waooaw_celery.broker.redis.dead_lettering import dead_lettered
from waooaw_celery.broker.redis.leases.worker_requests import collecting
from waooaw_celery.worker.execution.running_requests import requests_with_running_handler
from waooaw_celery.worker.hand_back.hand_back import message_without_handler

#: What Celery and this package send for each message that a worker receives. Also for messages that are not
#: started: expired, cancelled, not readable, or handed back.
_RECEIVED = (
    signals.task_received,
    signals.task_revoked,
    signals.task_rejected,
    dead_lettered,
    message_without_handler,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a worker holds at one time.

    Attributes:
        running: requests whose handlers run.
        orphaned: requests that the pool has accepted and Celery has not ended, whose handlers do not run.
        waiting: requests that the pool has, and has not accepted.
        scheduled: how many requests are not due yet: a countdown, or the pause before a retry.
        limited: how many messages wait for Celery's rate limit of their task.
        collecting: how many messages wait for the others of their batch.
        slots: how many requests the pool runs at once.
        claimed: how many messages this worker has received since its start.
        started: how many handlers it has started.
    """

    running: Sequence[Any]
    orphaned: Sequence[Any]
    waiting: Sequence[Any]
    scheduled: int
    limited: int
    slots: int
    claimed: int
    started: int
    collecting: int = 0

    @property
    def held(self) -> int:
        """How many messages the worker holds."""
        in_pool = len(self.running) + len(self.orphaned) + len(self.waiting)
        return in_pool + self.scheduled + self.limited + self.collecting

    @property
    def busy(self) -> int:
        """How many slots of the pool the running handlers take."""
        return _slots(self.running)

    @property
    def taken(self) -> int:
        """How many slots all messages take that the pool has. A batch takes one."""
        return _slots((*self.running, *self.orphaned, *self.waiting))

    @property
    def ended(self) -> int:
        """How many handlers have ended since the worker's start."""
        return self.started - len(self.running) - len(self.orphaned)


def _slots(requests: Sequence[Any]) -> int:
    """Return how many slots of the pool requests take. Those of a batch share one."""
    return len({id(getattr(request, "job", None) or request) for request in requests})


class Progress:
    """Counts the messages that a worker receives, and takes snapshots of what it holds.

    Args:
        worker: Celery's worker.
        consumer_thread: identifier of the thread that consumes.
    """

    def __init__(self, worker: Any, consumer_thread: int) -> None:
        self._worker, self._thread = worker, consumer_thread
        self._claimed = 0
        self._last: Snapshot | None = None
        self._started_at: datetime | None = None
        self._ended_at: datetime | None = None
        for signal in _RECEIVED:
            signal.connect(self._on_claimed, weak=False, dispatch_uid="waooaw.progress")

    def close(self) -> None:
        """Stop counting."""
        for signal in _RECEIVED:
            signal.disconnect(dispatch_uid="waooaw.progress")

    def snapshot(self) -> Snapshot:
        """Return what the worker holds now; call it from any thread."""
        requests = tuple(state.requests.values())
        accepted = [request for request in requests if request in state.active_requests]
        running = requests_with_running_handler(accepted, self._worker.pool, self._thread, sys._current_frames())
        reserved = [r for r in requests if r in state.reserved_requests and r not in state.active_requests]
        scheduled = state.scheduled_requests  # type: ignore[attr-defined]  # newer than its stubs
        buckets = tuple(self._worker.consumer.task_buckets.values())
        snapshot = Snapshot(
            running=[request for request in accepted if request in running],
            orphaned=[request for request in accepted if request not in running],
            waiting=[r for r in reserved if r not in collecting],
            collecting=sum(r in collecting for r in reserved),
            scheduled=sum(request in scheduled for request in requests),
            limited=sum(len(bucket.contents) for bucket in buckets if bucket),
            slots=self._worker.pool.num_processes or 1,
            claimed=self._claimed,
            started=state.all_total_count[0],
        )
        self._note_times(snapshot)
        return snapshot

    def report(self) -> dict[str, Any] | None:
        """Return the facts of the last snapshot for the heartbeat, or None before the first."""
        last = self._last
        if last is None:
            return None
        started = [request.time_start for request in last.running if request.time_start]
        return {
            "held": last.held,
            "running": len(last.running),
            "slots": last.slots,
            "running_seconds": round(max(time.time() - min(started), 0.0), 1) if started else None,
            "begun": last.started,
            "ended": last.ended,
            "begun_at": self._started_at and self._started_at.isoformat(timespec="seconds"),
            "ended_at": self._ended_at and self._ended_at.isoformat(timespec="seconds"),
        }

    def running_by_agent(self) -> dict[str, int]:
        """Return how many handlers of each agent ran at the last snapshot."""
        running = () if self._last is None else self._last.running
        return dict(Counter(getattr(request.task, "agent", "") for request in running))

    def _note_times(self, snapshot: Snapshot) -> None:
        # The times are those of the snapshots. That is exact enough, and costs nothing while messages are handled.
        last, self._last, now = self._last, snapshot, datetime.now(UTC)
        if snapshot.started > (last.started if last else 0):
            self._started_at = now
        if snapshot.ended > (last.ended if last else 0):
            self._ended_at = now

    def _on_claimed(self, sender: Any = None, **_: Any) -> None:
        app = self._worker.app
        if getattr(sender, "app", app) is app:  # not of another application's worker in this process
            self._claimed += 1
