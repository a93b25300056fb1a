"""The rows in a process's memory that wait to be written to the ledger: ordered, bounded, and taken in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.rows import LedgerRow

#: Rows, and characters in them, of one batch. A batch is one transaction, and must end within a statement's
#: deadline.
BATCH = 500
BATCH_CHARACTERS = 4 * 1024 * 1024
#: Rows, and characters in them, that may wait in memory. A caller with more waits until there is room.
MAX_QUEUED = 10_000
MAX_QUEUED_CHARACTERS = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class PendingWrite:
    """Rows that a caller passed together, and the result of writing them."""

    rows: Sequence[LedgerRow]
    #: Whether the rows may go to the spool while the database is down. Otherwise the write fails.
    may_spool: bool
    #: Characters in the rows.
    size: int = 0
    #: Whether the caller waits until the rows are safe.
    awaited: bool = False
    #: Whether to keep the rows in memory and retry if neither the database nor the spool accepts them.
    keep: bool = True
    #: Messages that the worker must not acknowledge until these rows are safe.
    held_ids: tuple[str, ...] = ()
    #: Messages that were added to the ledger.
    new: set[str] = field(default_factory=set)
    #: Messages that were delivered although they had ended.
    duplicate: set[str] = field(default_factory=set)
    error: AuditUnavailable | None = None
    done: bool = False


class WriteBuffer:
    """Two queues: urgent writes, which callers wait for, and deferred ones. The user must hold a lock."""

    def __init__(self) -> None:
        self.urgent: deque[PendingWrite] = deque()
        self.deferred: deque[PendingWrite] = deque()
        self.row_count = self.size = 0

    def has_room(self, pending: PendingWrite) -> bool:
        """Whether a write fits. An empty buffer accepts a write of any size."""
        return not self.row_count or (
            self.row_count + len(pending.rows) <= MAX_QUEUED and self.size + pending.size <= MAX_QUEUED_CHARACTERS
        )

    def add(self, pending: PendingWrite, queue: deque[PendingWrite]) -> None:
        """Append a write to one of the queues."""
        queue.append(pending)
        self.row_count += len(pending.rows)
        self.size += pending.size

    def make_all_urgent(self) -> PendingWrite | None:
        """Move the deferred writes to the urgent queue, and return the last write in it."""
        self.urgent.extend(self.deferred)
        self.deferred.clear()
        return self.urgent[-1] if self.urgent else None

    def take(self, queue: deque[PendingWrite]) -> list[PendingWrite]:
        """Remove and return one batch from a queue."""
        batch: list[PendingWrite] = []
        count = size = 0
        while queue and (
            not batch or (count + len(queue[0].rows) <= BATCH and size + queue[0].size <= BATCH_CHARACTERS)
        ):
            pending = queue.popleft()
            batch.append(pending)
            count += len(pending.rows)
            size += pending.size
        self.row_count -= count
        self.size -= size
        return batch

    def take_all(self, *queues: deque[PendingWrite]) -> list[PendingWrite]:
        """Remove and return all writes in some queues."""
        taken: list[PendingWrite] = []
        for queue in queues:
            while queue:
                taken += self.take(queue)
        return taken
