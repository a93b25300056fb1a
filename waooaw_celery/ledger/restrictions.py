"""The restrictions of senders in the ledger's tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import RestrictionRow
from waooaw_celery.store.restrictions import KnownRestrictions, Pause, Restrictions


class LedgerRestrictions(Restrictions):
    """The restrictions in the ledger, one row for each sender that ever had one.

    Args:
        database: the ledger's database, which others use and close too.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def close(self) -> None:
        """Do nothing: who opened the database closes it."""

    def _read(self) -> KnownRestrictions:
        with self._database.begin("read the paused senders") as connection:
            rows = connection.execute(select(RestrictionRow.__table__)).all()
        pauses = {
            row.agent: Pause(agent=row.agent, by=row.paused_by, since=row.paused_at, reason=row.reason)
            for row in rows
            if row.paused_at is not None
        }
        return KnownRestrictions(pauses, frozenset(row.agent for row in rows if row.is_limited))

    def _pause(self, agent: str, by: str, reason: str | None) -> None:
        with self._database.begin(f"pause {agent!r}") as connection:
            self._upsert(connection, agent, paused_at=now_in(connection), paused_by=by, reason=reason)

    def _resume(self, agent: str) -> bool:
        paused = (RestrictionRow.agent == agent) & RestrictionRow.paused_at.is_not(None)
        removal = update(RestrictionRow).where(paused).values(paused_at=None, paused_by=None, reason=None)
        with self._database.begin(f"resume {agent!r}") as connection:
            return bool(connection.execute(removal).rowcount)

    def _set_limited(self, agent: str, limited: bool) -> None:
        with self._database.begin(f"note the quota of {agent!r}") as connection:
            self._upsert(connection, agent, is_limited=limited)

    def _upsert(self, connection: Any, agent: str, **columns: Any) -> None:
        insert: Any = postgresql_insert if self._database.is_postgresql else sqlite_insert
        row = insert(RestrictionRow).values(agent=agent, **columns)
        connection.execute(row.on_conflict_do_update(index_elements=["agent"], set_=columns))
