"""A task in a worker whose moments go by the reference clock: when it is due, and when it expires."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from celery.worker import state
from celery.worker.request import Request

from waooaw_celery.worker.health.clock import clock_of


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
