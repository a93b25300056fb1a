"""The open requests of agents to each other in the ledger's tables, where there is no Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from sqlalchemy import Connection, and_, delete, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import InFlightRow
from waooaw_celery.store.resilience.in_flight import LEASE_SECONDS, InFlight, Pair


class LedgerInFlight(InFlight):
    """The open requests in the ledger, one row for each.

    Args:
        database: the ledger's database, which others use and close too.
        limits: how many requests of one agent to another may be open, by the requested agent or ``*``.
    """

    def __init__(self, database: Database, limits: Mapping[str, int]) -> None:
        super().__init__(limits)
        self._database = database

    def _enter(self, pair: Pair, request: str, limit: int, ended: Iterable[str]) -> bool:
        with self._database.begin(f"count the open requests to {pair.target!r}") as connection:
            self._lock_pair(connection, pair)
            now = now_in(connection)
            over = (InFlightRow.until <= now) | InFlightRow.request.in_(list(ended))
            # On SQLite, this statement makes the transaction the only one that writes.
            connection.execute(delete(InFlightRow).where(_of(pair), over))
            count = connection.scalar(select(func.count()).select_from(InFlightRow).where(_of(pair))) or 0
            if count < limit:
                until = now + timedelta(seconds=LEASE_SECONDS)
                row = {"caller": pair.caller, "target": pair.target, "request": request, "until": until}
                connection.execute(insert(InFlightRow).values(row))
        return count < limit

    def _lock_pair(self, connection: Connection, pair: Pair) -> None:
        """Let one transaction at a time count the requests of two agents."""
        if self._database.is_postgresql:
            key = func.hashtextextended(f"waooaw in flight {pair.caller} {pair.target}", 0)
            connection.execute(select(func.pg_advisory_xact_lock(key)))

    def _leave(self, ended: Mapping[Pair, Iterable[str]]) -> None:
        with self._database.begin("note the end of requests") as connection:
            for pair, requests in ended.items():
                own = and_(_of(pair), InFlightRow.request.in_(list(requests)))
                connection.execute(delete(InFlightRow).where(own))

    def _renew(self, requests: Mapping[Pair, Iterable[str]]) -> None:
        with self._database.begin("renew the leases of open requests") as connection:
            until = now_in(connection) + timedelta(seconds=LEASE_SECONDS)
            for pair, found in requests.items():
                own = and_(_of(pair), InFlightRow.request.in_(list(found)))
                connection.execute(update(InFlightRow).where(own).values(until=until))

    def _counts(self) -> dict[Pair, int]:
        columns = InFlightRow.caller, InFlightRow.target
        with self._database.begin("count the open requests") as connection:
            query = select(*columns, func.count()).where(InFlightRow.until > now_in(connection)).group_by(*columns)
            return {Pair(caller, target): count for caller, target, count in connection.execute(query)}

    def _close(self) -> None:
        """Do nothing: who opened the database closes it."""


def _of(pair: Pair) -> ColumnElement[bool]:
    return and_(InFlightRow.caller == pair.caller, InFlightRow.target == pair.target)
