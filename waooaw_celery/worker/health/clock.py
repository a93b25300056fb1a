"""The reference clock in a worker: read at the start, and reported with each heartbeat."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from waooaw_celery.store.reference_clock import ReferenceClock


class ReportClock(bootsteps.StartStopStep):
    """Bootstep of the worker that reads the reference clock at the start, and reports it with each heartbeat.

    In an idle worker, the reports also keep the reading fresh.
    """

    # After the pool has forked, so that no thread of ours is in the middle of something then.
    requires = ("celery.worker.components:Pool", "waooaw_celery.worker.health.heartbeat:Heartbeat")

    def create(self, parent: Any) -> None:
        """Add the clock to the heartbeat's report."""
        parent.heartbeat_report.add("clock", clock_of(parent.app).report)

    def start(self, parent: Any) -> None:
        """Read the reference clock, before the worker consumes its first message."""
        clock_of(parent.app).now()


def clock_of(app: Any) -> ReferenceClock:
    """Return the reference clock of an AgentApp."""
    clock: ReferenceClock = app.reference_clock
    return clock
