"""Measures a purge of the ledger while another thread writes."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from benchmarks.payload import PAYLOAD
from benchmarks.report import Goal
from waooaw_celery import Message
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.messages.enums import RetentionPolicy


@dataclass
class PurgeTimes:
    """Milliseconds from the main statement of each transaction of a purge to its commit.

    PostgreSQL removes the files of a dropped partition later, after it has released all locks.
    """

    counts: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)


def print_purges(console: Console, database: Database, ledger: Ledger, now: datetime) -> list[Goal]:
    """Purge while another thread writes: a month in batches, because of a hold, then months by dropping them."""
    retention = Retention(database)
    held = Message(from_agent="agent-1", to_agent="agent-2", retention=RetentionPolicy.DAYS_30, sent_at=now)
    ledger.begin_recording([(held, "command")])()
    retention.hold(HoldKind.MESSAGE, held.message_id, "its month must not be dropped")
    with database.begin("close the open messages") as connection:
        connection.exec_driver_sql("DELETE FROM waooaw_open_messages")
    table = Table("purge", "messages", "s", "longest write, ms", "", title="Purge")
    goals = []
    with writing(database) as writes:
        time.sleep(5)
    table.add_row("no purge", "0", "5.0", f"{max(writes):.1f}", f"p50 {statistics.median(writes):.1f} ms")
    for method, until in (
        ("in batches", Month.of(now + timedelta(days=30)).end),
        ("by dropping months", Month.of(now + timedelta(days=90)).end),
    ):
        with timed_purge(database) as times, writing(database) as writes:
            began = time.perf_counter()
            removal = retention.purge(until)
            seconds = time.perf_counter() - began
        worst = max(writes)
        transactions = (
            f"count {_longest(times.counts):.0f}, drop {_longest(times.drops):.1f}, "
            f"batch {_longest(times.batches):.0f} ms"
        )
        rest = (
            f"p50 {statistics.median(writes):.1f} ms; {removal.partitions} months dropped; longest: {transactions}"
        )
        table.add_row(method, f"{removal.messages:,}", f"{seconds:.1f}", f"{worst:.1f}", rest)
        goals.append(Goal(f"purge {method}: longest write", worst, 100, at_most=True, unit="ms"))
    goals.append(Goal("drop of a month", _longest(times.drops), 50, at_most=True, unit="ms"))
    console.print(table)
    return goals


@contextlib.contextmanager
def timed_purge(database: Database) -> Iterator[PurgeTimes]:
    """Measure the transactions of a purge while the block runs, each from its main statement to its commit."""
    times = PurgeTimes()
    statements = {
        "SELECT count(*)": times.counts,
        "DROP TABLE": times.drops,
        "DELETE FROM waooaw_message_": times.batches,
    }
    begun: dict[Any, tuple[list[float], float]] = {}

    def on_statement(connection: Any, _: Any, statement: str, *__: Any) -> None:
        for start, durations in statements.items():
            if statement.startswith(start):
                begun.setdefault(connection.connection.driver_connection, (durations, time.perf_counter()))

    def on_end(connection: Any) -> None:
        found = begun.pop(connection.connection.driver_connection, None)
        if found:
            durations, since = found
            durations.append((time.perf_counter() - since) * 1000)

    event.listen(database.engine, "before_cursor_execute", on_statement)
    event.listen(database.engine, "commit", on_end)
    try:
        yield times
    finally:
        event.remove(database.engine, "before_cursor_execute", on_statement)
        event.remove(database.engine, "commit", on_end)


@contextlib.contextmanager
def writing(database: Database) -> Iterator[list[float]]:
    """Record messages one after the other while the block runs, and collect the milliseconds of each write."""
    durations: list[float] = []
    stop = threading.Event()
    ledger = Ledger(Database(database.url), RetentionPolicy.DAYS_365)

    def write_message() -> None:
        message = Message(from_agent="agent-1", to_agent="agent-2", payload=PAYLOAD)
        ledger.begin_recording([(message, "command")])()

    def write() -> None:
        while not stop.is_set():
            durations.append(milliseconds(write_message))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield durations
    finally:
        stop.set()
        thread.join()
        ledger.close()


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _longest(times: list[float]) -> float:
    return max(times, default=0.0)
