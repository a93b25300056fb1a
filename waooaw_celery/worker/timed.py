"""A task in a worker whose moments go by the reference clock: when it is due, and when it expires."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from celery import bootsteps
from celery.worker import state
from celery.worker.request import Request

from waooaw_celery.clock import ReferenceClock


class TimedRequest(Request):
    """A request that a worker with a wrong clock neither drops while it is fresh nor keeps beyond its moment."""

    @property
    def eta(self) -> datetime | None:
        """When it may first be run, as this computer's clock will show it: Celery's timer goes by that clock."""
        due: datetime | None = super().eta
        return due and clock_of(self.app).to_local(due)

    def maybe_expire(self) -> Literal[True] | None:
        """Whether its time is over; then it is marked as revoked, as Celery does."""
        if self.expires is None or clock_of(self.app).now() <= self.expires:
            return None
        state.revoked.add(self.id)
        return True


class ReportClock(bootsteps.StartStopStep):
    """Bootstep of the worker that reads the reference clock at the start, and reports it with each heartbeat.

    The reports are also what keeps the reading fresh in a worker that has nothing to do.
    """

    # After the pool has forked: no thread of ours stands in the middle of something then.
    requires = ("celery.worker.components:Pool", "waooaw_celery.worker.presence:Presence")

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
