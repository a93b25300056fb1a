"""One soak, from start to account: two agents, three workers, Valkey, PostgreSQL, and random faults."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2  # type: ignore[import-untyped]
from faults import effects
from faults.account import verify
from faults.servers import Valkey, lone_valkey
from faults.stacks import REDIS_OPTIONS, SETTINGS, End, new_name
from postgres_server import Server as Postgres
from postgres_server import lone_server as lone_postgres
from proxy import proxied
from redis import RedisError

from soak.growth import TOLERANCES, Series
from soak.load import Load
from soak.workers import Fleet, WorkerSlot
from waooaw_celery import create_app
from waooaw_celery.errors import WaooawError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.store.agents.record import AgentRecord

#: Minimum and maximum of seconds between two faults.
PAUSE_RANGE = 3.0, 9.0
#: Seconds between two measurements.
SAMPLE = 1.0
#: Seconds that workers may take to start, and all messages to end after the load has stopped.
WAIT_SECONDS = 90.0
#: Seconds for which results are stored: few, so that the number of keys becomes constant soon.
RESULT_SECONDS = 15


@dataclass
class Result:
    """The result of a soak.

    Attributes:
        rows: name and value of each row of its table.
        violations: one sentence for each violated invariant.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def show(self) -> str:
        """Return the table and the violations."""
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{name:{width}}  {value}" for name, value in self.rows]
        lines += [f"VIOLATION: {sentence}" for sentence in self.violations] or ["no violations"]
        return "\n".join(lines)


def soak(seconds: float, seed: int, folder: Path) -> Result:
    """Run a soak.

    Args:
        seconds: how long the load and the faults last.
        seed: seed of the random numbers. The same seed causes the same faults, but not at exactly the same times.
        folder: folder for logs and effects.
    """
    with ExitStack() as exits:
        valkey = exits.enter_context(lone_valkey())
        postgres = exits.enter_context(lone_postgres())
        return _Soak(seconds, seed, folder, valkey, postgres, exits).go()


class _Soak:
    def __init__(
        self, seconds: float, seed: int, folder: Path, valkey: Valkey, postgres: Postgres, exits: ExitStack
    ) -> None:
        self.seconds, self.seed, self.folder = seconds, seed, folder
        self.valkey, self.postgres = valkey, postgres
        self.agents = [new_name(), new_name()]
        name = new_name()
        postgres.run(f"CREATE DATABASE {name}")
        url = database_url(postgres.url).set(database=name).render_as_string(hide_password=False)
        self.url = url.replace("+psycopg2", "")
        settings = SETTINGS | {
            "waooaw_database_url": url,
            "waooaw_spool_folder": str(folder / "spool"),
            "waooaw_stall_seconds": 15.0,
            "waooaw_agents": self.agents,
            "broker_transport_options": REDIS_OPTIONS,
            "result_expires": RESULT_SECONDS,
            "result_backend": valkey.url,
        }
        self.app = create_app("driver", **(settings | {"broker_url": valkey.url, "waooaw_sender": "driver"}))
        exits.callback(self.app.close)
        schema.upgrade(self.app.database)
        self.ask("CREATE TABLE soak_effects (id text)")
        slots = [
            WorkerSlot(node, agent, exits.enter_context(proxied(valkey.url)))
            for node, agent in (
                ("one", self.agents[0]),
                ("two", self.agents[0]),
                ("three", self.agents[1]),
                ("system", ""),
            )
        ]
        self.fleet = Fleet(slots, settings, folder)
        exits.callback(self.fleet.close)
        self.load = Load(self.app, self.agents, seed)
        self.series = Series()
        self.began = 0.0

    def go(self) -> Result:
        """Start the workers, the load and the faults; wait until all messages have ended; account for them."""
        self.fleet.start()
        result = Result()
        if not self._until(lambda: all(record.workers for record in self._records()), WAIT_SECONDS):
            result.violations.append("the workers did not start")
        self.began = time.monotonic()
        over = threading.Event()
        chaos = threading.Thread(target=self._inject_faults, args=(over,), name="chaos")
        self.load.start()
        chaos.start()
        while (at := time.monotonic() - self.began) < self.seconds:
            with suppress(RedisError, psycopg2.Error):
                self.series.sample(at, self._measures())
            time.sleep(SAMPLE)
        over.set()
        chaos.join(WAIT_SECONDS)
        result.violations += [f"{name} hangs" for name in self.load.close()]
        drained = self._until(self._quiet, WAIT_SECONDS)
        took = time.monotonic() - self.began - self.seconds
        if not drained:
            result.violations.append(
                f"stuck: {self._waiting()} messages wait or are held, {len(self._open())} have not ended, after "
                f"{took:.0f} s without load: {', '.join(sorted(self._open())[:5])}"
            )
        self._account(result, took)
        return result

    # --- during the soak

    def _inject_faults(self, over: threading.Event) -> None:
        rng = random.Random(self.seed)  # noqa: S311 - no secret
        with (self.folder / "faults.log").open("w", buffering=1) as log:
            while not over.wait(rng.uniform(*PAUSE_RANGE)):
                log.write(f"{time.monotonic() - self.began:.1f} {self.fleet.inject_fault(rng)}\n")

    def _measures(self) -> Mapping[str, Any]:
        driver = psutil.Process()
        return {
            "memory of the workers (MB)": self.fleet.rss,
            "memory of the driver (MB)": lambda: driver.memory_info().rss / 1e6,
            "keys in Valkey": lambda: float(self.valkey.client.dbsize()),
            "connections to Valkey": lambda: float(self.valkey.client.info("clients")["connected_clients"]),
            "connections to PostgreSQL": lambda: float(
                self.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")[0][0]
            ),
            "messages that wait or are held": lambda: float(self._waiting()),
        }

    # --- at the end

    def _quiet(self) -> bool:
        return not self._waiting() and not self._open()

    def _waiting(self) -> int:
        """Return how many messages wait in the agents' queues, or are held by workers."""
        with self.app.connection_for_write() as connection:
            depths = [queue_depth(connection, agent_queue(agent)).total for agent in self.agents]
        return sum(depths) + int(self.valkey.client.hlen("unacked"))

    def _ends(self) -> dict[str, list[End]]:
        found: dict[str, list[End]] = {}
        for id_, event in self.ask("SELECT message_id, event FROM waooaw_message_events WHERE terminal"):
            found.setdefault(id_, []).append(End(event, ""))
        return found

    def _rows(self) -> set[str]:
        return {id_ for (id_,) in self.ask("SELECT message_id FROM waooaw_messages")}

    def _open(self) -> set[str]:
        """Return the ids of the messages in the ledger that have no final event."""
        return self._rows() - self._ends().keys()

    def _records(self) -> list[AgentRecord]:
        with suppress(WaooawError):
            return [self.app.registry.get(agent) for agent in self.agents]
        return [AgentRecord(name="", handlers=None, declared_at=None, last_seen=None, workers=())]

    def _account(self, result: Result, took: float) -> None:
        ends, rows, outcomes = self._ends(), self._rows(), self.load.outcomes
        recorded = [each for each in effects.read(self.folder / "effects") if each.id not in self.load.once]
        once = dict(self.ask("SELECT id, count(*) FROM soak_effects GROUP BY id"))
        # For a once handler, the row in the database counts, not what it recorded before a rollback.
        recorded += [effects.Effect("done", id_, 1, 0, 0.0) for id_ in once]
        account = verify(outcomes, [each for each in recorded if each.id in outcomes], ends, rows, rows)
        several = [id_ for id_, found in ends.items() if len(found) > 1]
        twice = [id_ for id_, count in once.items() if count > 1]
        missing = [
            id_
            for id_ in self.load.once
            if id_ not in once and "handled" in {end.event for end in ends.get(id_, ())}
        ]
        undone = [id_ for id_ in once if ends.get(id_) and ends[id_][0].event != "handled"]
        found = account.violations(deadline=float("inf"), duplicates=None)
        for what, which in (
            ("messages have more than one final event", several),
            ("once effects happened more than once", twice),
            ("once effects did not happen, of messages that are HANDLED", missing),
            ("once effects happened, of messages that are not HANDLED", undone),
            ("requests or streams were not answered in time", self.load.timed_out),
            ("calls of the driver broke", self.load.broken),
            ("workers stalled", self.fleet.stalled),
        ):
            if which:
                found.append(f"{len(which)} {what}, such as {', '.join(map(str, which[:3]))}")
        others = [each for each in self.fleet.ended if each[0] not in self.fleet.stalled]
        if others:
            found.append(f"{len(others)} workers ended by themselves: {others[:5]}")
        result.violations += found + self.series.violations(self.seconds)
        events: dict[str, int] = {}
        for each in ends.values():
            events[each[0].event] = events.get(each[0].event, 0) + 1
        outcome_counts = f"accepted {account.accepted}, refused {account.refused}, unknown {account.unknown}"
        result.rows = [
            ("seed", str(self.seed)),
            ("seconds", f"{self.seconds:g}, and {took:.0f} until all messages had ended"),
            ("messages in the ledger", str(len(rows))),
            ("final events", _counts(events)),
            ("sent", f"{account.sent}: {outcome_counts}"),
            ("handled more than once", f"{account.duplicates} (at least once is promised)"),
            ("once effects", str(len(once))),
            ("requests, streams, events", _counts(self.load.result_counts)),
            ("faults", _counts(self.fleet.counts)),
            ("workers that ended by themselves", str(self.fleet.ended or "none")),
        ]
        for name in TOLERANCES:
            second, last = self.series.quarters(name, self.seconds)
            result.rows.append((name, f"{second:g} in the second quarter, {last:g} in the last"))

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Query the ledger's database."""
        connection = psycopg2.connect(self.url, connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(question)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _until(self, condition: Any, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.5)
        return False


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
