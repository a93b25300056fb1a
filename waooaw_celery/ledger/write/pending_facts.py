"""Events that neither the database nor the spool accepts: bounded, in memory, and retried every second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from waooaw_celery.ledger.write.buffer import MAX_QUEUED, MAX_QUEUED_CHARACTERS, PendingWrite
from waooaw_celery.ledger.write.recording import Recording
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds between two attempts.
RETRY_SECONDS = 1.0


class PendingFacts:
    """The unwritten events of one process. The user must hold a lock.

    Args:
        recording: notes which messages the worker must not acknowledge meanwhile.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._writes: deque[PendingWrite] = deque()
        self._row_count = self._size = 0
        self._is_logged = False
        self._retry_at = 0.0

    @property
    def due(self) -> float:
        """When to retry, by the monotonic clock."""
        return self._retry_at if self._writes else float("inf")

    def add(self, writes: Sequence[PendingWrite], error: Exception) -> None:
        """Keep writes that failed, except those that need not be kept. Beyond the bound, the oldest are logged."""
        for pending in writes:
            if not pending.keep:
                continue
            ids = pending.held_ids
            if pending.awaited:
                ids = tuple({row.message_id for row in pending.rows})
            held_ids = tuple(id_ for id_ in ids if self._recording.hold(id_))
            self._writes.append(PendingWrite(pending.rows, True, pending.size, held_ids=held_ids))
            self._row_count += len(pending.rows)
            self._size += pending.size
        self._retry_at = time.monotonic() + RETRY_SECONDS
        while self._writes and (self._row_count > MAX_QUEUED or self._size > MAX_QUEUED_CHARACTERS):
            log_lost([self._pop()])
        if self._writes and not self._is_logged:  # one line for each incident
            logger.error(
                "neither the ledger nor the spool can be written, so facts wait in memory: %s",
                error,
                extra={"action": "nothing_recorded"},
            )
            self._is_logged = True

    def take(self) -> list[PendingWrite]:
        """Remove and return all writes, to retry them."""
        taken = [self._pop() for _ in range(len(self._writes))]
        self._is_logged = self._is_logged and bool(taken)
        return taken

    def _pop(self) -> PendingWrite:
        pending = self._writes.popleft()
        self._row_count -= len(pending.rows)
        self._size -= pending.size
        return pending


def log_lost(writes: Sequence[PendingWrite]) -> None:
    """Write rows to the log, as the last resort."""
    for pending in writes:
        for row in pending.rows:
            logger.critical("a fact was not recorded and is lost: %s", row.text, extra={"action": "row_lost"})
