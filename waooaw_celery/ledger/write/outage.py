"""Whether the ledger's database is down, and when to try it again. Logs one warning at each end of an outage."""

from __future__ import annotations

import time
from pathlib import Path

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds between two attempts to reach a database that is down.
RETRY_SECONDS = 1.0


class Outage:
    """The state of the database as one process knows it.

    Args:
        spool: the spool file, which the warning names.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._started_at = 0.0
        #: When to try the database again, by the monotonic clock. None while it is up.
        self.retry_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether the last attempt to reach the database failed."""
        return self.retry_at is not None

    @property
    def seconds(self) -> float:
        """For how many seconds the database has not answered; 0: it answers."""
        return time.monotonic() - self._started_at if self.active else 0.0

    def start(self, error: AuditUnavailable) -> None:
        """Record that the database does not answer."""
        if not self.active:  # one warning for each outage
            self._started_at = time.monotonic()
            logger.warning(
                "%s. Until it answers, rows wait in the spool %s",
                error,
                self._spool,
                extra={"action": "ledger_down"},
            )
        self.postpone_retry()

    def postpone_retry(self) -> None:
        """Try the database again after ``RETRY_SECONDS``."""
        self.retry_at = time.monotonic() + RETRY_SECONDS

    def end(self) -> None:
        """Record that the database answers again."""
        duration = time.monotonic() - self._started_at
        logger.warning("the ledger's database answers again after %.1f s", duration, extra={"action": "ledger_up"})
        self.retry_at = None
