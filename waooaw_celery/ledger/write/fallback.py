"""What happens to rows that the database did not accept: spool them, keep them in memory, or refuse them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.rows import withdrawal_row
from waooaw_celery.ledger.write.buffer import PendingWrite
from waooaw_celery.ledger.write.inserter import is_permanent_error
from waooaw_celery.ledger.write.outage import Outage
from waooaw_celery.ledger.write.pending_facts import PendingFacts, log_lost
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.ledger.write.spool.spool import Spool
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


class Fallback:
    """Finishes writes without the database.

    Args:
        spool: where rows wait while the database is down.
        outage: the state of the database.
        unwritten: keeps the rows that the spool does not accept either.
        recording: tells the worker's other processes that nothing can be recorded.
        lock: protects ``unwritten``.
    """

    def __init__(
        self,
        spool: Spool,
        outage: Outage,
        unwritten: PendingFacts,
        recording: Recording,
        lock: threading.Condition,
    ) -> None:
        self._spool, self._outage, self._unwritten = spool, outage, unwritten
        self._recording, self._lock = recording, lock

    def finish(self, writes: Sequence[PendingWrite], error: AuditUnavailable) -> None:
        """Spool the writes that may be spooled, and fail the others.

        Args:
            writes: what the database did not accept.
            error: its error.
        """
        spooled = [pending for pending in writes if pending.may_spool]
        spool_error: AuditUnavailable | None = None
        try:
            if spooled:
                # One transaction: each costs a sync of the disk, and callers wait.
                self._spool.append([row for pending in spooled for row in pending.rows])
        except AuditUnavailable as failure:
            spool_error = failure
            if is_permanent_error(error):  # a retry would fail too
                log_lost([pending for pending in spooled if pending.keep])
            else:
                if self._outage.active:
                    self._recording.fail()
                with self._lock:
                    self._unwritten.add(spooled, failure)
        for pending in writes:
            pending.error = spool_error if pending.may_spool else error
            pending.done = True
            if pending.may_spool and spool_error is None:
                self.release(pending)

    def release(self, pending: PendingWrite) -> None:
        """Allow the acknowledgement of the messages that waited for a write."""
        for message_id in pending.held_ids:
            self._recording.release(message_id)

    def withdraw(self, writes: Sequence[PendingWrite]) -> None:
        """Record that messages are refused and never published, in case the database writes them after all."""
        rows = [row for pending in writes if not pending.may_spool for row in pending.rows]
        withdrawals = [withdrawal_row(row) for row in rows if row.kind == "message"]
        try:
            if withdrawals:
                self._spool.append(withdrawals)
        except AuditUnavailable as failure:
            for row in withdrawals:
                logger.critical(
                    "%s. The withdrawal of a refused message was not recorded: %s",
                    failure,
                    row.text,
                    extra={"action": "row_lost"},
                )
