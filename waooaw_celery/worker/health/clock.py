"""The reference clock in a worker: read at the start, and reported with each heartbeat."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from waooaw_celery.store.reference_clock import ReferenceClock


class ReportClock(bootsteps.StartStopStep):
    """Bootstep of the worker that reads the reference clock at the start, and reports it with each heartbeat.

    The reports are also what keeps the reading fresh in a worker that has nothing to do.
    """

    # After the pool has forked: no thread of ours stands in the middle of something then.
    requires = ("celery.worker.components:Pool", "waooaw_celery.worker.health.heartbeat:Heartbeat")

    def create(self, parent: Any) -> None:
        """Add the clock to the worker's report."""
        parent.heartbeat_report.add("clock", clock_of(parent.app).report)

    def start(self, parent: Any) -> None:
        """Read the reference clock, before the first message is consumed."""
        clock_of(parent.app).now()


def clock_of(app: Any) -> ReferenceClock:
    """Return the reference clock of an application, which stands above here."""
    clock: ReferenceClock = app.reference_clock
    return clock
