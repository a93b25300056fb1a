"""Writes the rows of the spool to the ledger, in order, as far as the database accepts them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS
from waooaw_celery.ledger.write.buffer import BATCH, BATCH_CHARACTERS
from waooaw_celery.ledger.write.inserter import RowInserter, is_permanent_error
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.ledger.write.spool.spool import Spool, SpoolUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.clock_reading import local_now

logger = get_logger(__name__)

#: Seconds between two reads of the spool, which other processes fill too.
SPOOL_SECONDS = 5.0
#: Seconds for which a stray event waits for its message.
STRAY_SECONDS = 600.0
#: Seconds for which a withdrawal waits for its message once the database is up. A frozen server runs the
#: statements that it received when it continues, and each ends within its deadline.
WITHDRAWAL_SECONDS = 3 * DEADLINE_SECONDS
#: What a row raises that was damaged in the spool.
_DAMAGED_ROW_ERRORS = (LookupError, TypeError, ValueError, AttributeError)


class SpoolDrainer:
    """Drains the spool of this computer. Only one thread may use it.

    Args:
        inserter: writes the rows.
        spool: the spool.
        outage: the state of the database. The drainer finds out when the database is up again.
        exclusive: returns a context manager that waits for exclusive use of the inserter and yields whether it was
            granted.
        start_outage: called when the database goes down during a drain, with exclusive use of the inserter.
        now: returns the time, by the clock with which events are dated.
    """

    def __init__(
        self,
        inserter: RowInserter,
        spool: Spool,
        outage: Outage,
        exclusive: Callable[[], AbstractContextManager[bool]],
        start_outage: Callable[[AuditUnavailable], None],
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self._now = now
        self._inserter, self._spool, self._outage = inserter, spool, outage
        self._exclusive, self._start_outage = exclusive, start_outage
        self._next_read_at = 0.0
        #: Whether the spool failed in the last drain, and in this one. One warning is logged for each incident.
        self._failed_before = self._failed = False
        #: Row ids of rows that are in the ledger, but could not be removed from the spool.
        self._drained: set[int] = set()
        #: When each withdrawal was first tried while the ledger did not have its message.
        self._withdrawal_tried_at: dict[str, float] = {}

    @property
    def due(self) -> float:
        """When to drain again, by the monotonic clock."""
        return self._next_read_at if self._outage.retry_at is None else self._outage.retry_at

    def hurry(self) -> None:
        """Make the next drain due now, because the spool has new rows."""
        self._next_read_at = 0.0

    def drain(self) -> None:
        """Write the rows of the spool to the ledger, and find out whether the database is up again."""
        self._next_read_at = time.monotonic() + SPOOL_SECONDS
        written = 0
        try:
            self._failed = False
            self._log_failure(self._spool.salvage)
            self._log_failure(self._remove)
            rows = self._read(0)
            # The database is tried even if the spool cannot be used.
            while rows or self._outage.active:
                with self._exclusive() as granted:
                    if not granted:
                        break
                    try:
                        if self._outage.active:
                            self._inserter.try_write()
                            self._outage.end()
                            self.hurry()
                        written += self._drain_batch(rows)
                    except SpoolUnavailable as error:
                        self._log(error)
                    except AuditUnavailable as error:
                        self._start_outage(error)
                        break
                rows = self._read(rows[-1][0]) if rows else []
            self._failed_before = self._failed
        except Exception:
            logger.exception(
                "draining the spool failed; rows that are not in the ledger stay in the spool",
                extra={"action": "writer_failed"},
            )
        if self._outage.active:
            self._outage.postpone_retry()
        if written:
            logger.warning("wrote %d spooled rows to the ledger", written, extra={"action": "spool_drained"})

    def _read(self, after: int) -> list[tuple[int, LedgerRow]]:
        """Return the next rows after a row id. Without a readable spool, return none."""
        rows: list[tuple[int, LedgerRow]] = []
        self._log_failure(lambda: rows.extend(self._spool.first(BATCH, BATCH_CHARACTERS, after)))
        return rows

    def _log_failure(self, operation: Callable[[], None]) -> None:
        try:
            operation()
        except SpoolUnavailable as error:
            self._log(error)

    def _log(self, error: SpoolUnavailable) -> None:
        if not self._failed_before and not self._failed:
            logger.warning("%s", error, extra={"action": "spool_failed"})
        self._failed = True

    def _remove(self, row_ids: Sequence[int] = ()) -> None:
        """Remove these rows from the spool, and those that could not be removed before."""
        self._drained.update(row_ids)
        if self._drained:
            try:
                self._spool.remove(sorted(self._drained))
            except SpoolUnavailable:
                if not self._spool.delete_file(self._drained):
                    raise
            self._drained.clear()

    def _drain_batch(self, rows: list[tuple[int, LedgerRow]]) -> int:
        """Write rows together, or one by one if the database refuses one of them. Return how many it wrote."""
        rows = [(row_id, row) for row_id, row in rows if row_id not in self._drained]
        if not rows:
            return 0
        try:
            _, unknown = self._inserter.write([row for _, row in rows], late=True)
        except (AuditUnavailable, *_DAMAGED_ROW_ERRORS) as error:
            if isinstance(error, AuditUnavailable) and not is_permanent_error(error):
                raise
            if len(rows) > 1:
                return sum(self._drain_batch([one]) for one in rows)
            logger.warning(
                "the ledger refused a row, which stays in the spool (see `waooaw spool`): %s",
                error,
                extra={"action": "row_refused"},
            )
            self._spool.refuse(rows[0][0], str(error) or repr(error))
            return 0
        return self._remove_written(rows, unknown)

    def _remove_written(self, rows: list[tuple[int, LedgerRow]], unknown: Sequence[LedgerRow]) -> int:
        """Remove the rows that are written or unneeded, refuse expired strays, and return how many are written."""
        unneeded: list[int] = []
        expired: list[int] = []
        for row_id, row in rows:
            if row not in unknown:
                self._withdrawal_tried_at.pop(row.message_id, None)
            elif row.kind == "withdrawal":
                if self._is_unneeded(row):
                    unneeded.append(row_id)
            elif row.age(self._now()) > STRAY_SECONDS:
                expired.append(row_id)
        written = [row_id for row_id, row in rows if row not in unknown]
        self._remove(written + unneeded)
        for row_id in expired:
            self._spool.refuse(row_id, "the ledger has no such message")
        return len(written)

    def _is_unneeded(self, withdrawal: LedgerRow) -> bool:
        """Whether the database can no longer write the message of a withdrawal."""
        first_tried_at = self._withdrawal_tried_at.setdefault(withdrawal.message_id, time.monotonic())
        if time.monotonic() - first_tried_at < WITHDRAWAL_SECONDS:
            return False
        del self._withdrawal_tried_at[withdrawal.message_id]
        return True
