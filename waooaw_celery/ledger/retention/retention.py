"""The operations on the ledger's contents: prepare, purge, hold, release. Removals are recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.retention.holds import Hold, HoldKind, list_holds, place_hold, release_hold
from waooaw_celery.ledger.retention.purge import Purge
from waooaw_celery.ledger.retention.removal import RecordedRemoval, Removal, list_removals
from waooaw_celery.store.clock_reading import Source


class Retention:
    """Purges the ledger, and holds messages.

    Every method raises AuditUnavailable if the database does not answer.

    Example:
        >>> retention = Retention(app.database)
        >>> retention.hold(HoldKind.AGENT, "supplier", "lawsuit 12/26")
        >>> retention.purge(dry_run=True).messages
        1204

    Args:
        database: the ledger's database, such as ``app.database``.
        witnesses: clocks that a purge compares with those of the database and of this computer, by name.
    """

    def __init__(self, database: Database, witnesses: Mapping[str, Source] | None = None) -> None:
        self._database = database
        self._witnesses = dict(witnesses or {})

    def prepare(self, now: datetime | None = None) -> int:
        """Create the partitions of the coming months on PostgreSQL.

        Args:
            now: the time from which months are counted; None: the database's time.

        Returns:
            How many partitions were created; 0 on SQLite.
        """
        if not self._database.is_postgresql:
            return 0
        with self._database.begin("create partitions") as connection:
            return len(partitions.make_ahead(connection, now or now_in(connection)))

    def purge(
        self,
        now: datetime | None = None,
        *,
        dry_run: bool = False,
        despite_skew: bool = False,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> Removal:
        """Remove the messages whose retention has ended, except those that are open or on hold.

        On PostgreSQL a monthly partition that contains none of these is dropped. All other messages are deleted in
        small batches. Only one purge runs at a time.

        Args:
            now: the time to compare with; None: the database's time.
            dry_run: only count what would be removed.
            despite_skew: purge even if the clocks disagree.
            on_progress: called with the number of messages removed so far, and with None: nobody has counted them.

        Returns:
            What was removed.

        Raises:
            ClockSkew: no time is given, and two of the clocks (the database's, this computer's, the witnesses')
                disagree by more than a minute. One of them is wrong, and nothing was removed.
            StoreUnavailable: a witness does not answer; nothing was removed.
        """
        return Purge(self._database, self._witnesses).run(
            now, dry_run=dry_run, despite_skew=despite_skew, on_progress=on_progress
        )

    def hold(self, kind: HoldKind, value: str, reason: str) -> None:
        """Protect messages from purges and erasures until the hold is released.

        Args:
            kind: whether the value names a message, a conversation or an agent.
            value: the id, or the agent's name.
            reason: why; shown with the hold.

        Raises:
            InvalidMessage: the value is not a valid id or agent name, or there is no reason.
        """
        place_hold(self._database, kind, value, reason)

    def release(self, kind: HoldKind, value: str) -> bool:
        """Release a hold, and return whether it existed."""
        return release_hold(self._database, kind, value)

    def holds(self) -> list[Hold]:
        """Return all holds, the oldest first."""
        return list_holds(self._database)

    def removals(self, limit: int = 100) -> list[RecordedRemoval]:
        """Return the purges and erasures that were carried out, the newest first.

        Args:
            limit: how many at most.
        """
        return list_removals(self._database, limit)
