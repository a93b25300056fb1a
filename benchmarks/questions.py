"""How long the ledger's questions take, how long a purge keeps others waiting, and how large it all is.

python -m benchmarks.questions [--messages 1000000] [--rounds 100]

An embedded PostgreSQL with its default settings is filled with the messages of ten days and their lives. Each
question is asked through MessageAuditTrail, with Python's and SQLAlchemy's time, about something else each time,
after it was asked a few times to warm up. Computers differ and have neighbours: asking for nothing tells what the
way to the database and back takes, and how the numbers grow with ``--messages`` means more than the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table
from sqlalchemy import PrimaryKeyConstraint, event, text
from sqlalchemy.schema import AddConstraint, DropConstraint

from benchmarks.report import Goal, print_goals
from benchmarks.sending import PAYLOAD
from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.embedded import postgres
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow
from waooaw_celery.ledger.database.partitions import Month
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention import HoldKind, Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import RetentionPolicy

DAYS = 10
AGENTS = 50
#: Messages, the newest, that were said and have not ended yet.
IN_FLIGHT = 5_000
PAGE = 50
WARM_UP = 5

Question = Callable[[], object]

#: One row a message: number, keys, and random numbers from 0 to 1 by which its life is chosen. The number decides
#: everything, so that each run asks the same.
_LIVES = """
CREATE UNLOGGED TABLE lives AS
SELECT number, id(number) AS message_id, sent_at, life, work, status,
    CASE WHEN kept < 0.80 THEN sent_at + interval '90 days'
         WHEN kept < 0.90 THEN sent_at + interval '30 days'
         WHEN kept < 0.98 THEN sent_at + interval '365 days'
         ELSE timestamptz '9999-12-31 00:00+00' END AS retain_until
FROM (
    SELECT number, :begin + number * (interval '1 day' * :days / :messages) AS sent_at,
        chance(number, 1) AS life, chance(number, 2) AS work, chance(number, 3) AS kept,
        CASE WHEN number >= :messages - :in_flight OR number % 1000 = 1
             THEN (ARRAY['pending', 'sent', 'sent', 'delivered'])[1 + floor(chance(number, 1) * 4)]
             WHEN chance(number, 1) < 0.93 THEN 'handled'
             WHEN chance(number, 1) < 0.97 THEN 'failed'
             ELSE 'expired' END AS status
    FROM generate_series(0, :messages - 1) AS number
) AS chosen
"""
_FUNCTIONS = (
    "CREATE FUNCTION id(number bigint) RETURNS text IMMUTABLE LANGUAGE sql RETURN md5(number::text)::uuid::text",
    # A multiplicative hash spreads numbers that follow each other evenly over 0 to 1.
    "CREATE FUNCTION chance(number bigint, salt integer) RETURNS float8 IMMUTABLE LANGUAGE sql "
    "RETURN (hashint8extended(number, salt) & 1048575) / 1048576.0",
)
_MESSAGES = """
INSERT INTO waooaw_messages (
    message_id, retain_until, from_agent, to_agent, handler, message_type, priority, correlation_id,
    conversation_id, causation_id, sent_at, expires_at, payload, payload_digest
)
SELECT message_id, retain_until, 'agent-' || floor(chance(number, 4) * :agents),
    'agent-' || floor(chance(number, 5) * :agents), 'command',
    CASE WHEN life < 0.70 THEN 'command' WHEN life < 0.90 THEN 'query' WHEN life < 0.99 THEN 'response'
         ELSE 'ack' END,
    CASE WHEN work < 0.01 THEN 0 WHEN work < 0.1 THEN 3 WHEN work < 0.9 THEN 6 ELSE 9 END,
    id(number - number % 4), id(number - number % 4), CASE WHEN number % 4 > 0 THEN id(number - 1) END, sent_at,
    -- Those that are open for long have no time that could be over.
    CASE WHEN number % 1000 <> 1 THEN sent_at + interval '80 minutes' END,
    (:head || message_id || :middle || CASE WHEN number % 10000 = 7 THEN 'Lighthouse' ELSE 'research' END
        || :tail)::json,
    repeat('0', 32) || md5(number::text)
FROM lives
"""
_EVENTS = """
INSERT INTO waooaw_message_events (
    message_id, retain_until, at, event, worker, terminal, attempt, seconds, error, sent_at
)
SELECT message_id, retain_until, sent_at + interval '1 second' * after, event, worker, terminal, attempt, seconds,
    error, sent_at
FROM lives, LATERAL (
    SELECT 'sent' AS event, '' AS worker, false AS terminal, 0 AS attempt, NULL::float8 AS seconds,
        NULL::text AS error, 0.001 AS after
        WHERE status <> 'pending'
    UNION ALL SELECT 'delivered', 'worker@host', false, 1, work, NULL, work
        WHERE status IN ('delivered', 'handled', 'failed')
    UNION ALL SELECT 'retried', 'worker@host', false, 1, work, 'TimeoutError: the model did not answer', work + 1
        WHERE status IN ('handled', 'failed') AND work < 0.04
    UNION ALL SELECT 'delivered', 'worker@host', false, 2, NULL, NULL, work + 2
        WHERE status IN ('handled', 'failed') AND work < 0.04
    UNION ALL SELECT status, 'worker@host', true, 1, work * 3, CASE status WHEN 'failed' THEN 'ValueError: no' END,
        work * 4 + 2
        WHERE status IN ('handled', 'failed')
    UNION ALL SELECT 'expired', '', true, 0, NULL, NULL, 4805
        WHERE status = 'expired'
) AS fact
"""
_OPEN = """
INSERT INTO waooaw_open_messages (message_id, retain_until, sent_at, expires_at, from_agent, to_agent)
SELECT message_id, retain_until, sent_at, expires_at, from_agent, to_agent FROM lives JOIN waooaw_messages
    USING (message_id, retain_until, sent_at)
WHERE status IN ('pending', 'sent', 'delivered')
"""


@dataclass(frozen=True)
class Asked:
    """A question, and the most milliseconds that 95 of 100 answers should take; None: there is no goal."""

    what: str
    ask: Question
    bound: float | None


@dataclass
class Clock:
    """Milliseconds that the transactions of a purge took, from their telling statement until they were committed.

    PostgreSQL removes a dropped partition's files later, when it has let go of all locks.
    """

    counts: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    console = Console()
    with postgres() as url:
        database = Database(database_url(url))
        schema.upgrade(database)
        now = datetime.now(UTC)
        began = time.perf_counter()
        fill(database, options.messages, now)
        console.print(f"{options.messages:,} messages were made in {time.perf_counter() - began:.0f} s")
        print_sizes(console, database, options.messages)
        ledger = Ledger(database, RetentionPolicy.DAYS_90)
        asked = questions(MessageAuditTrail(ledger), ledger, options.messages, now)
        goals = print_times(console, asked, options.rounds)
        goals += print_purges(console, database, ledger, now)
        console.print(
            f"most memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
        )
        print_goals(console, f"Questions, {options.messages:,} messages", goals)
        ledger.close()


def fill(database: Database, messages: int, now: datetime) -> None:
    """Make the messages of the last days, with what became of each."""
    head, middle, tail = _payload_parts()
    parameters = {
        "begin": now - timedelta(days=DAYS),
        "days": DAYS,
        "messages": messages,
        "in_flight": IN_FLIGHT,
        "agents": AGENTS,
        "head": head,
        "middle": middle,
        "tail": tail,
    }
    tables: list[Any] = [MessageRow.__table__, MessageEventRow.__table__]
    keys = [PrimaryKeyConstraint(*table.primary_key, name=f"{table.name}_pkey") for table in tables]
    with database.begin("fill the ledger", timeout=7200) as connection:
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '512MB'")
        for function in _FUNCTIONS:
            connection.exec_driver_sql(function)
        # Indexes that are made at the end take a fraction of the time.
        for table, key in zip(tables, keys, strict=True):
            connection.execute(DropConstraint(key))
            for index in table.indexes:
                index.drop(connection)
        for statement in (_LIVES, _MESSAGES, _EVENTS, _OPEN):
            connection.execute(text(statement), parameters)
        connection.exec_driver_sql("DROP TABLE lives")
        for table, key in zip(tables, keys, strict=True):
            connection.execute(AddConstraint(key))
            for index in table.indexes:
                index.create(connection)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        # As the database itself does in time.
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("ANALYZE waooaw_messages, waooaw_message_events")
        connection.exec_driver_sql("CHECKPOINT")
        connection.invalidate()


def _payload_parts() -> tuple[str, str, str]:
    """Return the text of a payload before the task's id, up to the tenant, and after it."""
    written = json.dumps(PAYLOAD | {"requested_by": {"name": "dashboard", "user": "ada.lovelace", "tenant": "#"}})
    head, rest = written.split(PAYLOAD["task_id"])  # type: ignore[arg-type]
    middle, tail = rest.split("#")
    return head, middle, tail


def questions(trail: MessageAuditTrail, ledger: Ledger, messages: int, now: datetime) -> list[Asked]:
    """Return what is asked, each time about something else."""
    random = Random(7)  # noqa: S311 - not for secrets

    def id_() -> str:
        return str(UUID(bytes=_md5(random.randrange(messages - IN_FLIGHT))))

    def thread() -> str:
        number = random.randrange(messages - IN_FLIGHT)
        return str(UUID(bytes=_md5(number - number % 4)))

    def agent() -> str:
        return f"agent-{random.randrange(AGENTS)}"

    def moment() -> datetime:
        return now - timedelta(days=random.uniform(0.5, DAYS))

    def deep() -> tuple[datetime, str]:
        return moment(), id_()

    def day() -> object:
        since = now - timedelta(days=random.uniform(1, DAYS))
        return trail.statistics(since, since + timedelta(days=1))

    def window() -> object:
        since = moment()
        return trail.query(since=since, until=since + timedelta(hours=1), limit=PAGE)

    def query(**filters: Any) -> Question:
        return lambda: trail.query(
            limit=PAGE, **{name: value() if callable(value) else value for name, value in filters.items()}
        )

    def nothing() -> object:
        with ledger.database.begin("ask for nothing") as connection:
            return connection.scalar(text("SELECT 1"))

    status = MessageStatus
    return [
        # What the way to the database and back takes on this computer at this time.
        Asked("nothing", nothing, None),
        Asked("receipt", lambda: trail.receipt(id_()), None),
        Asked("receipt of the bus", lambda: ledger.get(id_()), None),
        Asked("by correlation id", query(correlation_id=thread), 5),
        Asked("by correlation id, of nothing", query(correlation_id="nothing"), 5),
        Asked("conversation, by any id", lambda: trail.conversation(id_()), None),
        Asked("history of an agent, last 50", lambda: trail.history(agent(), limit=PAGE), 10),
        Asked("to an agent, last 50", query(to_agent=agent), 10),
        Asked("from an agent, last 50", query(from_agent=agent), 10),
        Asked("newest 50", query(), 10),
        Asked("page, deep", query(after=deep), 10),
        Asked("page, deep, to an agent", query(after=deep, to_agent=agent), 10),
        Asked("a window of one hour", window, 50),
        Asked("since a moment", query(since=moment), 50),
        Asked("type command", query(message_type=MessageType.COMMAND, after=deep), 50),
        Asked("type ack, rare", query(message_type=MessageType.ACK, after=deep), 50),
        Asked("type event, none", query(message_type=MessageType.EVENT, after=deep), 50),
        Asked("priority normal", query(priority=Priority.NORMAL, after=deep), 50),
        Asked("priority urgent, rare", query(priority=Priority.URGENT, after=deep), 50),
        Asked("status pending", query(status=status.PENDING), 50),
        Asked("status sent", query(status=status.SENT), 50),
        Asked("status delivered", query(status=status.DELIVERED), 50),
        Asked("status delivered, old", query(status=status.DELIVERED, after=deep), 50),
        Asked("status handled", query(status=status.HANDLED, after=deep), 50),
        Asked("status failed", query(status=status.FAILED, after=deep), 50),
        Asked("status expired", query(status=status.EXPIRED, after=deep), 50),
        Asked("text, frequent", query(text="research", after=deep), 50),
        Asked("text, rare", query(text="lighthouse", after=deep), 50),
        Asked("text, nowhere", query(text="no such thing", after=deep), 50),
        Asked("agent and status failed", query(to_agent=agent, status=status.FAILED), 50),
        Asked("agent and status handled", query(to_agent=agent, status=status.HANDLED), 50),
        Asked("agent and status sent", query(to_agent=agent, status=status.SENT), 50),
        Asked("agent and type ack", query(to_agent=agent, message_type=MessageType.ACK), 50),
        Asked("agent and text, frequent", query(to_agent=agent, text="research"), 50),
        Asked("agent and text, nowhere", query(to_agent=agent, text="no such thing"), 50),
        Asked("two agents", query(to_agent=agent, from_agent=agent), 50),
        Asked("agent, type and day", query(to_agent=agent, message_type=MessageType.QUERY, since=moment), 50),
        Asked("statistics of one day", day, 150),
        Asked("newest 1000 receipts of the bus", lambda: ledger.recent(limit=1000), None),
        Asked("sweep", ledger.sweep, None),
        Asked("reconcile", ledger.reconcile, None),
    ]


def print_times(console: Console, asked: list[Asked], rounds: int) -> list[Goal]:
    """Ask, print how long it took, and return the goals."""
    times: dict[str, list[float]] = {question.what: [] for question in asked}
    for number in range(WARM_UP + rounds):
        # In turns, so that what else the computer does for a while is not one question's fault.
        for question in asked:
            took = _milliseconds(question.ask)
            if number >= WARM_UP:
                times[question.what].append(took)
    table = Table("question", "p50 ms", "p95 ms", "worst ms", title="Questions")
    goals = []
    for question in asked:
        found = times[question.what]
        p95 = statistics.quantiles(found, n=20)[-1]
        table.add_row(question.what, f"{statistics.median(found):.1f}", f"{p95:.1f}", f"{max(found):.1f}")
        if question.bound is not None:
            goals.append(Goal(f"{question.what}, p95", p95, question.bound, at_most=True, unit="ms"))
    console.print(table)
    return goals


def print_purges(console: Console, database: Database, ledger: Ledger, now: datetime) -> list[Goal]:
    """Purge the months, one in batches because of a hold and the others whole, while somebody writes."""
    retention = Retention(database)
    held = Message(from_agent="agent-1", to_agent="agent-2", retention=RetentionPolicy.DAYS_30, sent_at=now)
    ledger.pending([(held, "command")])()
    retention.hold(HoldKind.MESSAGE, held.message_id, "so that its month is not dropped whole")
    with database.begin("close the open messages") as connection:
        connection.exec_driver_sql("DELETE FROM waooaw_open_messages")
    table = Table("purge", "messages", "s", "longest wait of a writer, ms", "", title="Purge")
    goals = []
    with writing(database) as waits:
        time.sleep(5)
    table.add_row("none, to compare", "0", "5.0", f"{max(waits):.1f}", f"p50 {statistics.median(waits):.1f} ms")
    for what, until in (
        ("in batches", Month.of(now + timedelta(days=30)).end),
        ("whole months", Month.of(now + timedelta(days=90)).end),
    ):
        with watched(database) as clock, writing(database) as waits:
            began = time.perf_counter()
            removal = retention.purge(until)
            seconds = time.perf_counter() - began
        worst = max(waits)
        rest = f"p50 {statistics.median(waits):.1f} ms; {removal.partitions} months dropped; longest transaction: "
        rest += (
            f"count {_most(clock.counts):.0f}, drop {_most(clock.drops):.1f}, batch {_most(clock.batches):.0f} ms"
        )
        table.add_row(what, f"{removal.messages:,}", f"{seconds:.1f}", f"{worst:.1f}", rest)
        goals.append(Goal(f"purge {what}: longest wait of a writer", worst, 100, at_most=True, unit="ms"))
    goals.append(Goal("drop of a month", _most(clock.drops), 50, at_most=True, unit="ms"))
    console.print(table)
    return goals


@contextlib.contextmanager
def watched(database: Database) -> Iterator[Clock]:
    """Measure the transactions of a purge while the block runs, each from its telling statement to its end."""
    clock = Clock()
    words = {
        "SELECT count(*)": clock.counts,
        "DROP TABLE": clock.drops,
        "DELETE FROM waooaw_message_": clock.batches,
    }
    begun: dict[Any, tuple[list[float], float]] = {}

    def on_statement(connection: Any, _: Any, statement: str, *__: Any) -> None:
        for word, times in words.items():
            if statement.startswith(word):
                begun.setdefault(connection.connection.driver_connection, (times, time.perf_counter()))

    def on_end(connection: Any) -> None:
        found = begun.pop(connection.connection.driver_connection, None)
        if found:
            times, since = found
            times.append((time.perf_counter() - since) * 1000)

    event.listen(database.engine, "before_cursor_execute", on_statement)
    event.listen(database.engine, "commit", on_end)
    try:
        yield clock
    finally:
        event.remove(database.engine, "before_cursor_execute", on_statement)
        event.remove(database.engine, "commit", on_end)


@contextlib.contextmanager
def writing(database: Database) -> Iterator[list[float]]:
    """Write message after message while the block runs, and collect how many milliseconds each took."""
    waits: list[float] = []
    over = threading.Event()
    ledger = Ledger(Database(database.url), RetentionPolicy.DAYS_365)

    def one() -> None:
        message = Message(from_agent="agent-1", to_agent="agent-2", payload=PAYLOAD)
        ledger.pending([(message, "command")])()

    def write() -> None:
        while not over.is_set():
            waits.append(_milliseconds(one))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()
        ledger.close()


def print_sizes(console: Console, database: Database, messages: int) -> None:
    """Print how many bytes each table and each index takes a message."""
    query = """
        SELECT coalesce(inhparent, relation.oid)::regclass::text AS name, sum(pg_relation_size(relation.oid))
        FROM pg_class AS relation LEFT JOIN pg_inherits ON inhrelid = relation.oid
        WHERE relation.relkind IN ('r', 'i') AND relation.relnamespace = 'public'::regnamespace
        GROUP BY 1 HAVING sum(pg_relation_size(relation.oid)) > 10 * 1024 * 1024 ORDER BY 2 DESC
    """
    table = Table("table or index", "bytes a message", title="Size")
    with database.begin("measure sizes") as connection:
        rows = connection.execute(text(query)).all()
    for name, size in rows:
        table.add_row(name, f"{size / messages:.0f}")
    table.add_row("together", f"{sum(size for _, size in rows) / messages:.0f}")
    console.print(table)


def _md5(number: int) -> bytes:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).digest()


def _milliseconds(work: Question) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _most(times: list[float]) -> float:
    return max(times, default=0.0)


if __name__ == "__main__":
    main()
