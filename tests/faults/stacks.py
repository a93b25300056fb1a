"""The two systems under test: agents of the product, and a plain Celery application."""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg2  # type: ignore[import-untyped]
from celery import signals
from celery.exceptions import CeleryError
from kombu.exceptions import OperationalError
from redis import RedisError

from faults import plain_celery
from waooaw_celery import Message, MessageBus, MessageType, create_app
from waooaw_celery.errors import BrokerUnavailable, WaooawError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.messages.queues import agent_queue

ROOT = Path(__file__).parents[2]

#: Seconds of a lease: short, so that a test can kill many workers.
LEASE = 2.0
#: Seconds for an answer of Redis; all other timeouts are the defaults.
TIMEOUT = 2.0
REDIS_OPTIONS: dict[str, Any] = {
    "visibility_timeout": LEASE,
    "unacked_restore_interval": 1,
    "socket_timeout": TIMEOUT,
}
#: Settings of every agent and its driver, except the addresses.
SETTINGS: dict[str, Any] = {
    "waooaw_heartbeat_seconds": 1.0,
    "waooaw_sweep_seconds": 1.0,
    "waooaw_lost_seconds": 25.0,
    "waooaw_recover_seconds": 1.0,
    "waooaw_recover_after": 2.0,
    "task_time_limit": 20,
}


class End(NamedTuple):
    """A final event of the audit.

    Attributes:
        event: ``handled``, ``failed``, ``expired``, ``dead``, …
        error: its error text.
    """

    event: str
    error: str


class Stack(ABC):
    """A system under test: how it sends, starts workers, and reads its audit.

    Args:
        name: name of the agent, or of the queue.
        broker_url: URL of the broker for the driver.
        database_url: URL of the audit's database, which only this stack uses.
        folder: folder for its files.
    """

    #: Whether it is the product.
    is_product: bool
    #: Errors that leave open whether the message was sent.
    uncertain: tuple[type[Exception], ...]
    #: Errors which mean that the message was not sent.
    refusing: tuple[type[Exception], ...]

    def __init__(self, name: str, broker_url: str, database_url: str, folder: Path) -> None:
        self.name, self.broker_url, self.database_url, self.folder = name, broker_url, database_url, folder

    @abstractmethod
    def send(self, id_: str, payload: Any, ttl: float | None) -> None:
        """Send a message."""

    @abstractmethod
    def queue(self) -> str:
        """Return the name of the queue."""

    @abstractmethod
    def worker(self, broker_url: str, settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        """Return the command of a worker, and its additional environment variables."""

    @abstractmethod
    def rows(self) -> set[str]:
        """Return the ids of all messages in the audit."""

    @abstractmethod
    def ends(self) -> dict[str, list[End]]:
        """Return the final events by message id."""

    @abstractmethod
    def run_maintenance(self) -> None:
        """Run the periodic tasks of the system's worker once."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Query the audit's database."""
        connection = psycopg2.connect(self.database_url.replace("+psycopg2", ""), connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(question)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


class Agents(Stack):
    """Agents, with their default behaviour."""

    is_product = True
    uncertain = (BrokerUnavailable,)
    refusing = (WaooawError,)

    def __init__(self, name: str, broker_url: str, database_url: str, folder: Path, **settings: Any) -> None:
        super().__init__(name, broker_url, database_url, folder)
        self._settings = SETTINGS | {
            "waooaw_database_url": database_url,
            "waooaw_spool_folder": str(folder / "spool"),
        }
        if broker_url.startswith("redis"):
            self._settings["broker_transport_options"] = REDIS_OPTIONS
        self.app = create_app(
            "driver",
            **(
                self._settings
                | {"broker_url": broker_url, "waooaw_sender": "driver", "waooaw_agents": [name]}
                | settings
            ),
        )
        self.bus = MessageBus(self.app)

    def prepare(self) -> None:
        """Create the tables."""
        schema.upgrade(self.app.database)
        self.ask("CREATE TABLE faults_effects (id text)")

    def send(self, id_: str, payload: Any, ttl: float | None) -> None:
        once = isinstance(payload, dict) and payload.get("once")
        self.bus.send(
            Message(
                from_agent="driver",
                to_agent=self.name,
                message_type=MessageType.QUERY if once else MessageType.COMMAND,
                payload=payload,
                message_id=id_,
                ttl_seconds=ttl,
            )
        )

    def queue(self) -> str:
        return agent_queue(self.name).name

    def worker(self, broker_url: str, settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "faults.agents", "worker"]
        every = {**self._settings, **settings}
        if "broker_transport_options" in settings:
            options = self._settings.get("broker_transport_options", {})
            every["broker_transport_options"] = {**options, **settings["broker_transport_options"]}
        every = {name: value for name, value in every.items() if value is not None}
        return command, {"CELERY_BROKER_URL": broker_url, "FAULTS_SETTINGS": json.dumps(every)}

    def rows(self) -> set[str]:
        return {row[0] for row in self.ask("SELECT message_id FROM waooaw_messages")}

    def ends(self) -> dict[str, list[End]]:
        found: dict[str, list[End]] = {}
        for id_, event, error in self.ask(
            "SELECT message_id, event, error FROM waooaw_message_events WHERE terminal"
        ):
            lost = event == "failed" and (error or "").startswith("lost:")
            found.setdefault(id_, []).append(End("lost" if lost else event, error or ""))
        return found

    def run_maintenance(self) -> None:
        self.app.ledger.sweep()
        self.app.ledger.reconcile(recovered=True)
        Recovery(self.app).run()

    def close(self) -> None:
        self.app.close()


class Plain(Stack):
    """A plain Celery application, configured with care."""

    is_product = False
    uncertain = (OperationalError, CeleryError, RedisError, OSError)
    refusing = ()

    def __init__(self, name: str, broker_url: str, database_url: str, folder: Path) -> None:
        super().__init__(name, broker_url, database_url, folder)
        self.app = plain_celery.make_app(name, broker_url, database_url, LEASE)

    def prepare(self) -> None:
        """Create the tables."""
        for statement in plain_celery.TABLES:
            self.ask(statement)

    def send(self, id_: str, payload: Any, ttl: float | None) -> None:
        self.app.send_task(self.name, (payload,), task_id=id_, expires=ttl)

    def queue(self) -> str:
        return self.name

    def worker(self, broker_url: str, settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "faults.plain_celery", "worker"]
        return command, {
            "CELERY_BROKER_URL": broker_url,
            "FAULTS_DATABASE": self.database_url,
            "FAULTS_LEASE": str(LEASE),
        }

    def rows(self) -> set[str]:
        return {row[0] for row in self.ask("SELECT id FROM plain_messages")}

    def ends(self) -> dict[str, list[End]]:
        found: dict[str, list[End]] = {}
        for id_, event in self.ask("SELECT id, event FROM plain_events"):
            found.setdefault(id_, []).append(End(event, ""))
        return found

    def run_maintenance(self) -> None:
        pass  # it has no periodic tasks

    def close(self) -> None:
        signals.before_task_publish.disconnect(dispatch_uid=plain_celery.UID)
        for connection in plain_celery._connections.values():
            with suppress(psycopg2.Error):
                connection.close()
        plain_celery._connections.clear()
        self.app.close()


def new_name() -> str:
    """Return a unique name for an agent, queue or database."""
    return f"f{uuid4().hex[:10]}"


def environment(stack: Stack, effects: Path) -> dict[str, str]:
    """Return the environment variables of every worker."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
        "FAULTS_NAME": stack.name,
        "FAULTS_EFFECTS": str(effects),
    }
