"""Helpers of several tests: waiting for a condition, and brokers with real agents."""

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
from process_pool import spawn

from waooaw_celery import (
    AgentApp,
    Message,
    MessageBus,
    MessageStatus,
    RequestResponseHandler,
    create_app,
)
from waooaw_celery.errors import StoreUnavailable, UnknownAgent
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.testing import embedded
from waooaw_celery.testing.embedded import end

#: Longest time that a test waits for another process, in seconds.
WAIT_SECONDS = 30.0


def until(condition: Callable[[], object], what: str = "the condition", seconds: float = WAIT_SECONDS) -> None:
    """Wait until a condition holds, and fail the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"timed out after {seconds:g} s waiting for {what}")
        time.sleep(0.05)


def pass_time(seconds: float) -> None:
    """Let some seconds pass in which nothing may happen; only for claims about time itself."""
    ends_at = time.monotonic() + seconds
    until(lambda: time.monotonic() > ends_at, "some seconds", seconds + 60)


@contextmanager
def lone_database(server: str) -> Iterator[str]:
    """Create a PostgreSQL database, yield its URL, and drop it together with its connections."""
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
    """A broker on which a test runs agents.

    Attributes:
        url: URL of the broker.
        redis_url: URL of the Redis for results, agents and receipts.
        folder: folder for the logs of the workers.
        database_url: URL of the ledger's database, or None for receipts in Redis.
        names: names of the agents that were started.
    """

    url: str
    redis_url: str
    folder: Path
    database_url: str | None = None
    names: set[str] = field(default_factory=set)

    @property
    def spool_folder(self) -> Path:
        """The folder of the spool, where rows wait while the ledger's database is down."""
        return self.folder / "spool"

    def app(self, **config: object) -> AgentApp:
        """Return an application whose sender is ``tests``."""
        settings = {
            "waooaw_sender": "tests",
            "waooaw_database_url": self.database_url,
            "waooaw_spool_folder": str(self.spool_folder),
            "broker_url": self.url,
            "result_backend": self.redis_url,
        }
        return create_app("tests", **(settings | config))

    def name(self) -> str:
        """Return a unique name for an agent."""
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
        new_interpreter: bool = False,
        **settings: object,
    ) -> subprocess.Popen[bytes]:
        """Start a worker of the probe agent with this name, and return when the registry has it.

        With ``new_interpreter``, nothing of Celery is imported before the probe's module.
        """
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
        # Mingle and gossip cost a second each, and a single worker does not need them.
        command += ["--without-mingle", "--without-gossip", *options]
        log = self.folder / f"{node.partition('@')[0]}.log"
        start = embedded.spawn if new_interpreter else spawn
        process = start(command, log=log, env=env, cwd=PROBE_FOLDER)

        def declared() -> bool:
            # A connection of the pool may be older than a restart of its server.
            with suppress(UnknownAgent, StoreUnavailable):
                if node in app.registry.get(name).workers:
                    return True
            assert process.poll() is None, log.read_text()
            return False

        try:
            until(declared, f"the start of {name}")
        except BaseException:
            end(process)
            raise
        return process

    @contextmanager
    def running(
        self, name: str, app: AgentApp, *options: str, **arguments: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker of the probe agent during the block. The arguments are those of ``start``."""
        process = self.start(name, app, *options, **arguments)
        try:
            yield process
        finally:
            end(process)

    def clean(self) -> None:
        """Delete the queues of this run, because the broker may outlive it."""
        with self.app().connection_for_write() as connection, connection.channel() as channel:
            for name in self.names:
                agent_queue(name)(channel).delete()


def settled(app: AgentApp, message_id: str) -> MessageStatus:
    """Wait for the final status of a message and return it."""
    bus = MessageBus(app)
    until(lambda: bus.receipt(message_id).status.final, f"the end of {message_id}")
    return bus.receipt(message_id).status


def pid_of(app: AgentApp, name: str) -> int:
    """Ask an agent for the process id of its worker's main process."""
    pid = RequestResponseHandler(app).request(name, "parent", timeout=20)
    assert isinstance(pid, int)
    return pid


def queue_length(app: AgentApp, agent: str) -> int:
    """Return how many messages are in an agent's queue."""
    with app.connection_for_read() as connection:
        return queue_depth(connection, agent_queue(agent)).total


def note(receipts: ReceiptStore, message: Message, *events: MessageEvent, **facts: object) -> None:
    """Record facts about a message, as workers do."""
    for event in events:
        about: Any = {"message": message, "handler": "command", "attempt": 0 if event is MessageEvent.SENT else 1}
        receipts.note(MessageFact(message_id=message.message_id, event=event, **(about | facts)))
