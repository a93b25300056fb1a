"""The agent registry in the ledger's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import AgentRow, WorkerRow
from waooaw_celery.store.agents.record import LEDGER_FACT, PROFILE_FACT, AgentRecord
from waooaw_celery.store.agents.registry import AgentRegistry
from waooaw_celery.store.agents.shared_declarations import SharedDeclarations, merged
from waooaw_celery.store.agents.worker_handlers import known_handlers, split_reports, stored_report

#: Profiles that are read together: SQLite limits the depth of an expression.
_PART = 200


class LedgerAgentRegistry(AgentRegistry):
    """The agent registry in the ledger.

    Args:
        database: the ledger's database.
        configured: names of agents that the settings declare.
        own_id: returns the ledger's id.
        shared: the declarations in Redis, where workers of other ledgers and without one see each other; None:
            there is no Redis.
    """

    def __init__(
        self,
        database: Database,
        configured: Iterable[str] = (),
        own_id: Callable[[], str | None] = lambda: None,
        shared: SharedDeclarations | None = None,
    ) -> None:
        super().__init__(configured)
        self._database, self._own_id, self._shared = database, own_id, shared

    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
        profile: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        handlers, capabilities, own = sorted(handlers), sorted(capabilities), self._own_id()
        report = {**(report or {}), **({} if own is None else {LEDGER_FACT: own})}
        if self._shared is not None:  # first: while the database is down, others must still see the worker
            self._shared.declare(name, handlers, worker, lifetime, capabilities, started_at, report, profile)
        now = now_within(self._database)
        agent: dict[str, Any] = {
            "handlers": handlers,
            "capabilities": capabilities,
            "last_seen": now,
        }
        heartbeat = {
            "alive_until": now + timedelta(seconds=lifetime),
            "started_at": started_at,
            "report": stored_report(report, handlers),
            "profile": None if profile is None else profile[1],
        }
        insert: Any = postgresql_insert if self._database.is_postgresql else sqlite_insert
        with self._database.begin(f"declare the agent {name!r}") as connection:
            agent_row = insert(AgentRow).values(name=name, declared_at=now, **agent)
            connection.execute(agent_row.on_conflict_do_update(index_elements=["name"], set_=agent))
            worker_row = insert(WorkerRow).values(agent=name, worker=worker, **heartbeat)
            connection.execute(
                worker_row.on_conflict_do_update(index_elements=["agent", "worker"], set_=heartbeat)
            )

    def retire(self, name: str, worker: str) -> None:
        if self._shared is not None:
            self._shared.retire(name, worker)
        with self._database.begin(f"retire a worker of {name!r}") as connection:
            connection.execute(delete(WorkerRow).where(WorkerRow.agent == name, WorkerRow.worker == worker))

    def profiles(self, workers: Iterable[tuple[str, str, str]]) -> dict[str, Mapping[str, Any]]:
        digests = {(name, worker): digest for name, worker, digest in workers}
        # One worker of each version of an agent is enough.
        wanted = list({(name, digest): (name, worker) for (name, worker), digest in digests.items()}.values())
        found: dict[str, Mapping[str, Any]] = {}
        for first in range(0, len(wanted), _PART):
            with self._database.begin("look up what agents declare") as connection:
                rows = connection.execute(
                    select(WorkerRow.agent, WorkerRow.worker, WorkerRow.report, WorkerRow.profile).where(
                        or_(
                            *(
                                and_(WorkerRow.agent == name, WorkerRow.worker == worker)
                                for name, worker in wanted[first : first + _PART]
                            )
                        )
                    )
                )
                for row in rows:
                    digest = digests[row.agent, row.worker]
                    if row.profile is not None and row.report.get(PROFILE_FACT) == digest:
                        found[digest] = row.profile
        return found

    def set_order(self, name: str, order: Mapping[str, Any] | None) -> bool:
        stored = null() if order is None else dict(order)
        with self._database.begin(f"change the agent {name!r}") as connection:
            changed = connection.execute(
                update(AgentRow).where(AgentRow.name == name).values({"agent_order": stored})
            )
        return bool(changed.rowcount)

    def forget(self, name: str) -> bool:
        if self._shared is not None:
            self._shared.forget(name)
        with self._database.begin(f"forget the agent {name!r}") as connection:
            now = now_in(connection)
            if connection.scalar(
                select(WorkerRow.worker).where(WorkerRow.agent == name, WorkerRow.alive_until > now).limit(1)
            ):
                return False
            connection.execute(delete(WorkerRow).where(WorkerRow.agent == name))
            return bool(connection.execute(delete(AgentRow).where(AgentRow.name == name)).rowcount)

    def announce(self, name: str) -> None:
        if self._shared is not None:
            self._shared.announce(name)

    def await_change(self, seconds: float) -> bool:
        return super().await_change(seconds) if self._shared is None else self._shared.await_change(seconds)

    def everywhere(self) -> list[AgentRecord]:
        records = {record.name: record for record in self.all()}
        for other in self._shared.all_living() if self._shared is not None else ():
            known = records.get(other.name)
            records[other.name] = other if known is None else merged(known, other)
        return [records[name] for name in sorted(records)]

    def ledger_id(self) -> str | None:
        return self._own_id()

    def _ledgers_of(self, record: AgentRecord) -> dict[str, str | None]:
        shared = self._shared.living(record.name) if self._shared is not None else None
        return record.ledgers if shared is None else {**shared.ledgers, **record.ledgers}

    def close(self) -> None:
        self._database.close()
        if self._shared is not None:
            self._shared.close()

    def _names(self) -> set[str]:
        with self._database.begin("list the agents") as connection:
            return set(connection.scalars(select(AgentRow.name)))

    def _read(self, names: list[str]) -> list[AgentRecord]:
        with self._database.begin("look up agents") as connection:
            now = now_in(connection)
            agents = {
                row.name: row
                for row in connection.execute(select(AgentRow.__table__).where(AgentRow.name.in_(names)))
            }
            alive = connection.execute(
                select(WorkerRow.agent, WorkerRow.worker, WorkerRow.report, WorkerRow.alive_until)
                .where(WorkerRow.agent.in_(names), WorkerRow.alive_until > now)
                .order_by(WorkerRow.worker)
            ).all()
        stored: dict[str, dict[str, Any]] = {name: {} for name in names}
        until: dict[str, dict[str, datetime]] = {name: {} for name in names}
        for agent, worker, report, alive_until in alive:
            stored[agent][worker], until[agent][worker] = report, alive_until
        workers = {name: tuple(stored[name]) for name in names}
        split = {name: split_reports(stored[name]) for name in names}
        return [
            AgentRecord(
                name=name,
                handlers=known_handlers(
                    agents[name].handlers if name in agents else None, workers[name], split[name][1]
                ),
                declared_at=agents[name].declared_at if name in agents else None,
                last_seen=agents[name].last_seen if name in agents else None,
                workers=workers[name],
                capabilities=tuple(agents[name].capabilities) if name in agents else (),
                read_at=now,
                reports=split[name][0],
                worker_handlers=split[name][1],
                alive_until=until[name],
                order=agents[name].agent_order if name in agents else None,
            )
            for name in names
        ]
