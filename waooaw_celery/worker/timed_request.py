"""A Celery request that is due and expires by the reference clock."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from celery.worker import state
from celery.worker.request import Request

from waooaw_celery.worker.health.clock import clock_of


class TimedRequest(Request):
    """A request in a worker whose own clock may be wrong.

    The worker neither drops it before its expiry nor handles it afterwards.
    """

    @property
    def eta(self) -> datetime | None:
        """When it is due, by this computer's clock, which Celery's timer uses."""
        due: datetime | None = super().eta
        return due and clock_of(self.app).to_local(due)

    def maybe_expire(self) -> Literal[True] | None:
        """Mark it as revoked if it has expired, and return whether it has."""
        if self.expires is None or clock_of(self.app).now() <= self.expires:
            return None
        state.revoked.add(self.id)
        return True
