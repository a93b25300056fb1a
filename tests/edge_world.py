"""An agent that others reach by an edge, with real servers and a real worker, for the tests of the edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import Broker

from waooaw_celery import AgentApp
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.trail import MessageAuditTrail


@dataclass(frozen=True)
class EdgeWorld:
    """What the tests know.

    Attributes:
        broker, app: the servers, and an application that uses them.
        agent: the agent, of ``edge_probe.py``, with a running worker.
        effects: the file with its effects.
    """

    broker: Broker
    app: AgentApp
    agent: str
    effects: Path

    @property
    def principal(self) -> Principal:
        """Somebody who may do everything."""
        return Principal(name="portal", from_agent="portal", may_publish=("#",), may_read=True)

    @property
    def trail(self) -> MessageAuditTrail:
        """The ledger."""
        return MessageAuditTrail(self.app.ledger)

    @property
    def env(self) -> dict[str, str]:
        """The variables under which a process uses the same servers."""
        return {
            "CELERY_BROKER_URL": self.broker.url,
            "CELERY_RESULT_BACKEND": self.broker.redis_url,
            "WAOOAW_DATABASE_URL": str(self.broker.database_url),
            "WAOOAW_SPOOL_FOLDER": str(self.broker.spool_folder),
        }

    def happened(self) -> list[str]:
        """Return the effects so far."""
        return self.effects.read_text().splitlines() if self.effects.exists() else []


@contextmanager
def edge_world(redis_url: str, database_url: str, folder: Path) -> Iterator[EdgeWorld]:
    """Run an agent that others reach by an edge.

    Args:
        redis_url: the broker, the result backend and the store.
        database_url: the ledger's database, without tables.
        folder: for the spool and the effects.
    """
    broker = Broker(redis_url, redis_url, folder, database_url)
    app = broker.app()
    schema.upgrade(app.database)
    name = broker.name()
    effects = folder / "effects"
    try:
        with broker.running(name, app, module="edge_probe", env={"PROBE_EFFECTS": str(effects)}):
            yield EdgeWorld(broker, app, name, effects)
    finally:
        app.close()
        broker.clean()
