"""Facts of one process that could be written nowhere: kept in its memory, bounded, and tried again each second."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

from waooaw_celery.ledger.write.buffer import MAX_QUEUED, MAX_QUEUED_CHARACTERS, PendingWrite
from waooaw_celery.ledger.write.recording import Recording

logger = logging.getLogger(__name__)

#: Seconds between two attempts.
RETRY_SECONDS = 1.0


class PendingFacts:
    """What is kept. Its user holds a lock.

    Args:
        recording: where the messages are noted that must not be acknowledged meanwhile.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._puts: deque[PendingWrite] = deque()
        self._entries = self._size = 0
        self._told = False
        self._retry_at = 0.0

    @property
    def due(self) -> float:
        """The moment at which they are to be tried again."""
        return self._retry_at if self._puts else float("inf")

    def add(self, puts: Sequence[PendingWrite], error: Exception) -> None:
        """Keep entries that could not be written, but those of which that is not wanted."""
        for put in puts:
            if not put.keep:
                continue
            ids = put.held
            if put.waited:
                ids = tuple({entry.message_id for entry in put.entries})
            held = tuple(id_ for id_ in ids if self._recording.hold(id_))
            self._puts.append(PendingWrite(put.entries, True, put.size, held=held))
            self._entries += len(put.entries)
            self._size += put.size
        self._retry_at = time.monotonic() + RETRY_SECONDS
        while self._puts and (self._entries > MAX_QUEUED or self._size > MAX_QUEUED_CHARACTERS):
            lose([self._pop()])
        if self._puts and not self._told:  # one line an incident
            logger.error(
                "facts can be written neither to the ledger nor to the spool, and wait in memory: %s",
                error,
                extra={"action": "nothing_recorded"},
            )
            self._told = True

    def take(self) -> list[PendingWrite]:
        """Take all, to try them again."""
        taken = [self._pop() for _ in range(len(self._puts))]
        self._told = self._told and bool(taken)
        return taken

    def _pop(self) -> PendingWrite:
        put = self._puts.popleft()
        self._entries -= len(put.entries)
        self._size -= put.size
        return put


def lose(puts: Sequence[PendingWrite]) -> None:
    """Write entries to the log: the last place that is left."""
    for put in puts:
        for entry in put.entries:
            logger.critical("not recorded: %s", entry.text, extra={"action": "entry_lost"})
