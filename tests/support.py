"""What several tests need: patience, and brokers with real agents on them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2  # type: ignore[import-untyped]
import pytest
from nursery import spawn

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, create_app
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore

#: Seconds that a test waits for something that happens in another process.
PATIENCE = 30.0


def until(condition: Callable[[], object], what: str = "the condition", seconds: float = PATIENCE) -> None:
    """Ask again and again until the condition holds, and fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come to pass within {seconds:g} s")
        time.sleep(0.05)


@contextmanager
def lone_database(server: str) -> Iterator[str]:
    """Make a PostgreSQL database, give its URL, and drop it with whoever is still connected."""
    name = f"waooaw_{uuid4().hex}"
    _administer(server, f"CREATE DATABASE {name}")
    try:
        yield database_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(url: str, command: str) -> None:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(command)
    connection.close()


PROBE_FOLDER = Path(__file__).parent / "integration"


@dataclass
class Broker:
    """A broker, and how to run agents on it.

    Attributes:
        url: URL of the broker.
        redis_url: URL of the Redis for results, agents and receipts.
        folder: for the logs of the workers.
        database_url: the ledger's, or None for receipts in Redis.
    """

    url: str
    redis_url: str
    folder: Path
    database_url: str | None = None
    names: set[str] = field(default_factory=set)

    @property
    def spool_folder(self) -> Path:
        """Where entries wait while the ledger's database is away."""
        return self.folder / "spool"

    def app(self, **config: object) -> AgentApp:
        """Return an application that speaks as ``tests``."""
        settings = {
            "waooaw_sender": "tests",
            "waooaw_database_url": self.database_url,
            "waooaw_spool_folder": str(self.spool_folder),
            "broker_url": self.url,
            "result_backend": self.redis_url,
        }
        return create_app("tests", **(settings | config))

    def name(self) -> str:
        """Return a name for an agent that nobody else uses."""
        name = f"probe-{uuid4().hex[:8]}"
        self.names.add(name)
        return name

    def start(
        self,
        name: str,
        app: AgentApp,
        *options: str,
        node: str | None = None,
        module: str = "probe",
        env: dict[str, str] | None = None,
        **settings: object,
    ) -> subprocess.Popen[bytes]:
        """Start a worker of the probe agent of this name, and return when it has declared itself."""
        self.names.add(name)
        node = f"{node or name}@{socket.gethostname()}"
        env = (
            os.environ
            | (env or {})
            | {
                "PROBE_NAME": name,
                "PROBE_SETTINGS": json.dumps(settings),
                "CELERY_BROKER_URL": self.url,
                "CELERY_RESULT_BACKEND": (env or {}).get("CELERY_RESULT_BACKEND", self.redis_url),
                "WAOOAW_SPOOL_FOLDER": str(self.spool_folder),
            }
        )
        if self.database_url is not None:
            env["WAOOAW_DATABASE_URL"] = self.database_url
        command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", node, "-c", "1"]
        # Neither is of use to a lone worker, and each costs a second.
        command += ["--without-mingle", "--without-gossip", *options]
        log = self.folder / f"{node.partition('@')[0]}.log"
        process = spawn(command, log=log, env=env, cwd=PROBE_FOLDER)

        def declared() -> bool:
            with suppress(UnknownAgent):
                if node in app.registry.get(name).workers:
                    return True
            assert process.poll() is None, log.read_text()
            return False

        until(declared, f"the start of {name}")
        return process

    def clean(self) -> None:
        """Delete the queues of this run from a broker that outlives it."""
        with self.app().connection_for_write() as connection, connection.channel() as channel:
            for name in self.names:
                agent_queue(name)(channel).delete()


def settled(app: AgentApp, message_id: str) -> MessageStatus:
    """Wait for the last fact about a message and return it."""
    bus = MessageBus(app)
    until(lambda: bus.receipt(message_id).status.final, f"the end of {message_id}")
    return bus.receipt(message_id).status


def note(receipts: ReceiptStore, message: Message, *events: MessageEvent, **facts: object) -> None:
    """Write down what became of a message, as workers do."""
    for event in events:
        about: Any = {"message": message, "handler": "command", "attempt": 0 if event is MessageEvent.SENT else 1}
        receipts.note(MessageFact(message_id=message.message_id, event=event, **(about | facts)))
