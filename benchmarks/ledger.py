"""Measures queries of the ledger, how long a purge blocks writers, and the size of tables and indexes.

python -m benchmarks.ledger [--messages 1000000] [--rounds 100]

It fills an embedded PostgreSQL, with default settings, with the messages and events of ten days. Each query runs
through MessageAuditTrail, with different arguments each time, after a few runs to warm up; the times include
Python and SQLAlchemy. Computers differ: the query "empty query" measures the round trip to the database, and how
times grow with ``--messages`` means more than the times themselves.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.ledger_messages import AGENTS, DAYS, IN_FLIGHT, fill, message_id
from benchmarks.ledger_purge import milliseconds, print_purges
from benchmarks.report import Goal, print_goals
from waooaw_celery import MessageStatus, MessageType, Priority
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.testing.embedded import postgres

PAGE = 50
WARM_UP = 5

Query = Callable[[], object]


@dataclass(frozen=True)
class QueryCase:
    """A query, and the goal for the 95th percentile of its time in milliseconds; None: no goal."""

    name: str
    run: Query
    goal: float | None


def main() -> None:
    """Fill the ledger, measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", choices=("queries", "purge"), default=None)
    options = parser.parse_args()
    console = Console()
    with postgres() as url:
        database = Database(database_url(url))
        schema.upgrade(database)
        now = datetime.now(UTC)
        began = time.perf_counter()
        fill(database, options.messages, now)
        console.print(f"{options.messages:,} messages written in {time.perf_counter() - began:.0f} s")
        print_sizes(console, database, options.messages)
        ledger = Ledger(database, RetentionPolicy.DAYS_90)
        goals: list[Goal] = []
        if options.only != "purge":
            cases = query_cases(MessageAuditTrail(ledger), ledger, options.messages, now)
            goals += print_times(console, cases, options.rounds)
        if options.only != "queries":
            goals += print_purges(console, database, ledger, now)
        console.print(
            f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
        )
        print_goals(console, f"Queries, {options.messages:,} messages", goals)
        ledger.close()


def query_cases(trail: MessageAuditTrail, ledger: Ledger, messages: int, now: datetime) -> list[QueryCase]:
    """Return the queries; each run of one has different arguments."""
    random = Random(7)  # noqa: S311 - not for secrets

    def id_() -> str:
        return message_id(random.randrange(messages - IN_FLIGHT))

    def thread() -> str:
        number = random.randrange(messages - IN_FLIGHT)
        return message_id(number - number % 4)

    def agent() -> str:
        return f"agent-{random.randrange(AGENTS)}"

    def random_time() -> datetime:
        return now - timedelta(days=random.uniform(0.5, DAYS))

    def old_position() -> tuple[datetime, str]:
        return random_time(), id_()

    def statistics_of_one_day() -> object:
        since = now - timedelta(days=random.uniform(1, DAYS))
        return trail.statistics(since, since + timedelta(days=1))

    def one_hour() -> object:
        since = random_time()
        return trail.query(since=since, until=since + timedelta(hours=1), limit=PAGE)

    def query(**filters: Any) -> Query:
        return lambda: trail.query(
            limit=PAGE, **{name: value() if callable(value) else value for name, value in filters.items()}
        )

    def empty_query() -> object:
        with ledger.database.begin("run an empty query") as connection:
            return connection.scalar(text("SELECT 1"))

    status = MessageStatus
    return [
        # The round trip to the database on this computer.
        QueryCase("empty query", empty_query, None),
        QueryCase("receipt", lambda: trail.receipt(id_()), None),
        QueryCase("receipt of the bus", lambda: ledger.get(id_()), None),
        QueryCase("by correlation id", query(correlation_id=thread), 5),
        QueryCase("by correlation id, no match", query(correlation_id="nothing"), 5),
        QueryCase("conversation, by any id", lambda: trail.conversation(id_()), None),
        QueryCase("history of an agent, last 50", lambda: trail.history(agent(), limit=PAGE), 10),
        QueryCase("to an agent, last 50", query(to_agent=agent), 10),
        QueryCase("from an agent, last 50", query(from_agent=agent), 10),
        QueryCase("newest 50", query(), 10),
        QueryCase("page, deep", query(after=old_position), 10),
        QueryCase("page, deep, to an agent", query(after=old_position, to_agent=agent), 10),
        QueryCase("one hour", one_hour, 50),
        QueryCase("since a time", query(since=random_time), 50),
        QueryCase("type command", query(message_type=MessageType.COMMAND, after=old_position), 50),
        QueryCase("type ack, rare", query(message_type=MessageType.ACK, after=old_position), 50),
        QueryCase("type event, none", query(message_type=MessageType.EVENT, after=old_position), 50),
        QueryCase("priority normal", query(priority=Priority.NORMAL, after=old_position), 50),
        QueryCase("priority urgent, rare", query(priority=Priority.URGENT, after=old_position), 50),
        QueryCase("status pending", query(status=status.PENDING), 50),
        QueryCase("status sent", query(status=status.SENT), 50),
        QueryCase("status delivered", query(status=status.DELIVERED), 50),
        QueryCase("status delivered, old", query(status=status.DELIVERED, after=old_position), 50),
        QueryCase("status handled", query(status=status.HANDLED, after=old_position), 50),
        QueryCase("status failed", query(status=status.FAILED, after=old_position), 50),
        QueryCase("status expired", query(status=status.EXPIRED, after=old_position), 50),
        QueryCase("text, frequent", query(text="research", after=old_position), 50),
        QueryCase("text, rare", query(text="lighthouse", after=old_position), 50),
        QueryCase("text, nowhere", query(text="no such thing", after=old_position), 50),
        QueryCase("agent and status failed", query(to_agent=agent, status=status.FAILED), 50),
        QueryCase("agent and status handled", query(to_agent=agent, status=status.HANDLED), 50),
        QueryCase("agent and status sent", query(to_agent=agent, status=status.SENT), 50),
        QueryCase("agent and type ack", query(to_agent=agent, message_type=MessageType.ACK), 50),
        QueryCase("agent and text, frequent", query(to_agent=agent, text="research"), 50),
        QueryCase("agent and text, nowhere", query(to_agent=agent, text="no such thing"), 50),
        QueryCase("two agents", query(to_agent=agent, from_agent=agent), 50),
        QueryCase(
            "agent, type and day", query(to_agent=agent, message_type=MessageType.QUERY, since=random_time), 50
        ),
        QueryCase("statistics of one day", statistics_of_one_day, 150),
        QueryCase("newest 1000 receipts of the bus", lambda: ledger.recent(limit=1000), None),
        QueryCase("sweep", ledger.sweep, None),
        QueryCase("reconcile", ledger.reconcile, None),
    ]


def print_times(console: Console, cases: list[QueryCase], rounds: int) -> list[Goal]:
    """Run the queries, print their times, and return the goals."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(WARM_UP + rounds):
        # In turns, so that other load on the computer affects all queries alike.
        for case in cases:
            took = milliseconds(case.run)
            if number >= WARM_UP:
                times[case.name].append(took)
    table = Table("query", "p50 ms", "p95 ms", "worst ms", title="Queries")
    goals = []
    for case in cases:
        found = times[case.name]
        p95 = statistics.quantiles(found, n=20)[-1]
        table.add_row(case.name, f"{statistics.median(found):.1f}", f"{p95:.1f}", f"{max(found):.1f}")
        if case.goal is not None:
            goals.append(Goal(f"{case.name}, p95", p95, case.goal, at_most=True, unit="ms"))
    console.print(table)
    return goals


def print_sizes(console: Console, database: Database, messages: int) -> None:
    """Print the size of each table and index in bytes per message."""
    query = """
        SELECT coalesce(inhparent, relation.oid)::regclass::text AS name, sum(pg_relation_size(relation.oid))
        FROM pg_class AS relation LEFT JOIN pg_inherits ON inhrelid = relation.oid
        WHERE relation.relkind IN ('r', 'i') AND relation.relnamespace = 'public'::regnamespace
        GROUP BY 1 HAVING sum(pg_relation_size(relation.oid)) > 10 * 1024 * 1024 ORDER BY 2 DESC
    """
    table = Table("table or index", "bytes per message", title="Size")
    with database.begin("measure sizes") as connection:
        rows = connection.execute(text(query)).all()
    for name, size in rows:
        table.add_row(name, f"{size / messages:.0f}")
    table.add_row("total", f"{sum(size for _, size in rows) / messages:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
