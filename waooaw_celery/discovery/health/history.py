"""The health of an agent in one process, and how it has changed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from waooaw_celery.discovery.health.state import Health, HealthChange

#: Changes that are kept, and the most reasons and characters of each.
MAX_CHANGES, MAX_REASONS, MAX_CHARACTERS = 10, 5, 300


class HealthHistory:
    """The health of an agent in one process, and its newest changes.

    Attributes:
        health: the present health.
        reasons: why it is not HEALTHY.
        changes: the newest changes, the newest last.
    """

    def __init__(self) -> None:
        self.health = Health.UNKNOWN
        self.reasons: tuple[str, ...] = ("nothing is known yet",)
        self.changes: tuple[HealthChange, ...] = ()

    def note(self, health: Health, reasons: Iterable[str], at: datetime) -> bool:
        """Note the present health, and return whether it has changed.

        Args:
            health: the health.
            reasons: why it is not HEALTHY.
            at: the time.
        """
        told = tuple(each[:MAX_CHARACTERS] for each in reasons)[:MAX_REASONS]
        changed = health is not self.health
        self.health, self.reasons = health, told
        if changed:
            self.changes = (*self.changes, HealthChange(at=at, health=health, reasons=told))[-MAX_CHANGES:]
        return changed
