"""The circuit breakers of agents in the ledger's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import BreakerRow
from waooaw_celery.store.resilience import breaker_rules as rules
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord, BreakerState
from waooaw_celery.store.resilience.breaker_store import BreakerStore, Stored


class LedgerBreakerStore(BreakerStore):
    """The circuit breakers in the ledger, one row for each that is open or counts failures.

    Args:
        database: the ledger's database, which others use and close too.
        limits: when a breaker opens, and for how long.
    """

    def __init__(self, database: Database, limits: BreakerLimits) -> None:
        super().__init__(limits)
        self._database = database

    def close(self) -> None:
        """Do nothing: who opened the database closes it."""

    def read(self) -> tuple[float, Mapping[str, BreakerRecord]]:
        with self._database.begin("read the circuit breakers") as connection:
            rows = connection.execute(select(BreakerRow.__table__)).all()
            now = now_in(connection).timestamp()
        return now, {row.agent: BreakerRecord.from_dict(row.record) for row in rows}

    def change(self, operation: str, agent: str, **given: Any) -> Stored:
        with self._database.begin(f"change the circuit breaker of {agent!r}") as connection:
            found = self._locked(connection, agent)
            now = now_in(connection).timestamp()
            record, done = self._after(operation, found, now, given)
            own = BreakerRow.agent == agent
            if record is None:
                connection.execute(delete(BreakerRow).where(own))
            else:
                connection.execute(update(BreakerRow).where(own).values(record=record.to_dict()))
        return Stored(now, record, done)

    def _locked(self, connection: Connection, agent: str) -> BreakerRecord:
        """Return the record of an agent, and lock it until the end of the transaction.

        The insert locks the row. On SQLite, it makes the transaction the only one that writes.
        """
        insert: Any = postgresql_insert if self._database.is_postgresql else sqlite_insert
        row = insert(BreakerRow).values(agent=agent, record=BreakerRecord().to_dict())
        connection.execute(row.on_conflict_do_update(index_elements=["agent"], set_={"agent": agent}))
        found = connection.execute(select(BreakerRow.record).where(BreakerRow.agent == agent)).scalar_one()
        return BreakerRecord.from_dict(found)

    def _after(
        self, operation: str, record: BreakerRecord, now: float, given: Mapping[str, Any]
    ) -> tuple[BreakerRecord | None, bool]:
        """Return the record after an operation, and whether it had an effect; see ``lua/breaker.lua``."""
        was_open = record.state(now) is not BreakerState.CLOSED
        if record.opened_at is not None and not was_open:  # it was opened by hand, and its time is over
            record = BreakerRecord()
        match operation:
            case "report":
                after = rules.report(record, given["counted"], self.limits, now)
                return after, not was_open and after is not None and after.opened_at is not None
            case "probe":
                done = rules.take_probe(record, given["request"], given["lease"], now)
                return (record if was_open or record.counts else None), done
            case "probed":
                done = record.probe == given["request"]
                after = rules.end_probe(record, given["request"], given["works"], self.limits, now)
                return (after if was_open or record.counts else None), done
            case "open":
                return rules.open_by_hand(given["by"], given["reason"], given["seconds"], now), True
            case _:
                return None, was_open
