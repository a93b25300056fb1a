"""Whether the ledger's database is away: one warning when it goes, one when it is back, and when to try again."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from waooaw_celery.errors import AuditUnavailable

logger = logging.getLogger(__name__)

#: Seconds until a database that was away is tried again.
RETRY_SECONDS = 1.0


class Outage:
    """What a process knows of its database's absence.

    Args:
        spool: where facts wait meanwhile, for the warning.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._since = 0.0
        #: The moment at which the database is tried again; None while it answers.
        self.retry_at: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the database did not answer when it was last tried."""
        return self.retry_at is not None

    def note(self, error: AuditUnavailable) -> None:
        """Note that it does not answer."""
        if not self.lasts:  # one line an incident
            self._since = time.monotonic()
            logger.warning(
                "%s. Until it is back, facts are kept in %s", error, self._spool, extra={"action": "ledger_away"}
            )
        self.put_off()

    def put_off(self) -> None:
        """Let some time pass before it is tried again."""
        self.retry_at = time.monotonic() + RETRY_SECONDS

    def end(self) -> None:
        """Note that it answers again."""
        away = time.monotonic() - self._since
        logger.warning("the ledger is back after %.1f s", away, extra={"action": "ledger_back"})
        self.retry_at = None
