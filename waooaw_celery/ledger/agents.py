"""The agent registry in the ledger's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.database.clock import now_in, now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import AgentRow, WorkerRow
from waooaw_celery.store.agents import AgentRecord, AgentRegistry


class LedgerAgentRegistry(AgentRegistry):
    """The agent registry in the ledger.

    Args:
        database: the ledger's database.
        configured: names of agents that the settings declare.
    """

    def __init__(self, database: Database, configured: Iterable[str] = ()) -> None:
        super().__init__(configured)
        self._database = database

    def declare(
        self,
        name: str,
        handlers: Iterable[str],
        worker: str,
        lifetime: float,
        capabilities: Iterable[str] = (),
        started_at: datetime | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        now = now_within(self._database)
        agent: dict[str, Any] = {
            "handlers": sorted(handlers),
            "capabilities": sorted(capabilities),
            "last_seen": now,
        }
        heartbeat = {
            "alive_until": now + timedelta(seconds=lifetime),
            "started_at": started_at,
            "report": dict(report or {}),
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
        with self._database.begin(f"retire a worker of {name!r}") as connection:
            connection.execute(delete(WorkerRow).where(WorkerRow.agent == name, WorkerRow.worker == worker))

    def close(self) -> None:
        self._database.close()

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
                select(WorkerRow.agent, WorkerRow.worker, WorkerRow.report)
                .where(WorkerRow.agent.in_(names), WorkerRow.alive_until > now)
                .order_by(WorkerRow.worker)
            ).all()
        return [
            AgentRecord(
                name=name,
                handlers=tuple(agents[name].handlers) if name in agents else None,
                declared_at=agents[name].declared_at if name in agents else None,
                last_seen=agents[name].last_seen if name in agents else None,
                workers=tuple(worker for agent, worker, _ in alive if agent == name),
                capabilities=tuple(agents[name].capabilities) if name in agents else (),
                read_at=now,
                reports={worker: report for agent, worker, report in alive if agent == name and report},
            )
            for name in names
        ]
