"""What waits in a process's memory to be written to the ledger: in order, bounded, taken in parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.rows import LedgerRow

#: Entries, and characters in them, written in one transaction, which must end within the time of a statement.
BATCH = 500
BATCH_CHARACTERS = 4 * 1024 * 1024
#: Entries, and characters in them, that may wait in memory; whoever has more waits.
MAX_QUEUED = 10_000
MAX_QUEUED_CHARACTERS = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class PendingWrite:
    """Entries that were put together, and what became of them."""

    entries: Sequence[LedgerRow]
    #: Whether they may be spooled while the database is away; what may not is refused.
    may_spool: bool
    size: int = 0
    #: Whether somebody waits until they are safe, and whether they are kept in memory when they can go nowhere.
    waited: bool = False
    keep: bool = True
    #: Ids of messages that are not acknowledged before these entries are safe.
    held: tuple[str, ...] = ()
    new: set[str] = field(default_factory=set)
    #: Which of its messages were to begin, and had ended before.
    twice: set[str] = field(default_factory=set)
    error: AuditUnavailable | None = None
    ended: bool = False


class WriteBuffer:
    """What waits: what somebody waits for, and what nobody does. Its user holds a lock."""

    def __init__(self) -> None:
        self.urgent: deque[PendingWrite] = deque()
        self.lingering: deque[PendingWrite] = deque()
        self.entries = self.size = 0

    def has_room(self, put: PendingWrite) -> bool:
        """Whether these entries may wait too; what is larger than all the room may when nothing else does."""
        return not self.entries or (
            self.entries + len(put.entries) <= MAX_QUEUED and self.size + put.size <= MAX_QUEUED_CHARACTERS
        )

    def add(self, put: PendingWrite, queue: deque[PendingWrite]) -> None:
        """Put entries at the end of one of the queues."""
        queue.append(put)
        self.entries += len(put.entries)
        self.size += put.size

    def hurry(self) -> PendingWrite | None:
        """Make all that waits urgent, and return the last of it."""
        self.urgent.extend(self.lingering)
        self.lingering.clear()
        return self.urgent[-1] if self.urgent else None

    def take(self, queue: deque[PendingWrite]) -> list[PendingWrite]:
        """Take as much from a queue as one transaction writes."""
        batch: list[PendingWrite] = []
        count = size = 0
        while queue and (
            not batch or (count + len(queue[0].entries) <= BATCH and size + queue[0].size <= BATCH_CHARACTERS)
        ):
            put = queue.popleft()
            batch.append(put)
            count += len(put.entries)
            size += put.size
        self.entries -= count
        self.size -= size
        return batch

    def take_all(self, *queues: deque[PendingWrite]) -> list[PendingWrite]:
        """Take all there is in some queues."""
        rest: list[PendingWrite] = []
        for queue in queues:
            while queue:
                rest += self.take(queue)
        return rest
