"""Measures the pages of the console with a large ledger, and what its live page costs the servers.

python -m benchmarks.console [--messages 1000000] [--rounds 20] [--live-seconds 30]

It fills an embedded PostgreSQL, registers 50 agents in it, and starts `waooaw console`. Each time is that of a
whole request over HTTP, from another process.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import redis
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.ledger_messages import AGENTS, DAYS, fill, message_id
from benchmarks.report import Goal, print_goals
from waooaw_celery import AgentApp, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end, postgres, spawn, valkey

#: Milliseconds within which 95 of 100 requests for a page should be answered.
PAGE_MS = 200.0
#: Share of the servers' time that the live page may take.
LIVE_SHARE = 0.02
_WARM_UP = 3


def main() -> None:
    """Fill the ledger, measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--live-seconds", type=float, default=30.0)
    options = parser.parse_args()
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(valkey())
        settings = {
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            "WAOOAW_DATABASE_URL": stack.enter_context(postgres()),
            "WAOOAW_SPOOL_FOLDER": str(folder / "spool"),
        }
        app = create_app(waooaw_sender="bench", **{name.lower(): value for name, value in settings.items()})
        stack.enter_context(closing(app))
        schema.upgrade(app.database)
        fill(app.database, options.messages, datetime.now(UTC))
        for number in range(AGENTS):
            app.registry.declare(f"agent-{number}", ["command"], f"agent-{number}@host", 86_400)
        address = served(stack, folder, settings)
        goals = measure_pages(console, address, app, options.messages, options.rounds)
        goals += measure_live(console, address, app, url, options.live_seconds)
        print_goals(console, f"Console, {options.messages:,} messages", goals)


def served(stack: ExitStack, folder: Path, settings: dict[str, str]) -> str:
    """Start `waooaw console`, and return its address."""
    log = folder / "console.log"
    command = [sys.executable, "-m", "waooaw_celery", "console", "--port", "0"]
    process: subprocess.Popen[bytes] = spawn(command, log=log, env=os.environ | settings)
    stack.callback(end, process)
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at and process.poll() is None:
        found = re.search(r"(http://\S+?)/?\s", log.read_text()) if log.exists() else None
        if found is not None:
            return found[1]
        time.sleep(0.1)
    raise SystemExit(f"the console did not start: {log.read_text()}")


def pages(messages: int) -> dict[str, Callable[[], str]]:
    """Return the pages, each as a function that returns a path, another one each time."""
    random = Random(7)  # noqa: S311 - the same pages in each run

    def id_() -> str:
        return message_id(random.randrange(messages - 10_000))

    def agent() -> str:
        return f"agent-{random.randrange(AGENTS)}"

    def moment() -> str:
        return (datetime.now(UTC) - timedelta(days=DAYS * random.random() * 0.9)).isoformat().replace("+", "%2B")

    return {
        "overview": lambda: "/",
        "agents": lambda: "/agents?order=slowest",
        "one agent": lambda: f"/agents/{agent()}",
        "messages": lambda: "/messages",
        "messages of a pair, failed": lambda: f"/messages?from={agent()}&to={agent()}&status=failed",
        "messages until a time": lambda: f"/messages?until={moment()}",
        "page far back": lambda: f"/messages?after={moment()}|{id_()}",
        "text in the payload": lambda: "/messages?text=Lighthouse",
        "one message": lambda: f"/messages/{id_()}",
        "find an id": lambda: f"/find?q={id_()}",
        "conversation": lambda: f"/conversations/{id_()}",
        "dead letters": lambda: "/dead-letters",
        "workflows": lambda: "/workflows",
        "topics": lambda: "/topics",
        "limits": lambda: "/limits",
        "retention": lambda: "/retention",
        "ledger": lambda: "/ledger",
        "changes": lambda: "/changes",
    }


def measure_pages(console: Console, address: str, app: AgentApp, messages: int, rounds: int) -> list[Goal]:
    """Request the pages in turns, and print the times."""
    asked = pages(messages)
    times: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(_WARM_UP + rounds):
        for name, path in asked.items():
            began = time.perf_counter()
            with urllib.request.urlopen(address + path(), timeout=60) as answer:  # noqa: S310 - our own server
                answer.read()
            if number >= _WARM_UP:
                times[name].append((time.perf_counter() - began) * 1000)
    table = Table("page", "p50 ms", "p95 ms", "worst ms", title=f"Pages, {messages:,} messages")
    goals = []
    for name, found in times.items():
        p95 = statistics.quantiles(found, n=20)[-1]
        table.add_row(name, f"{statistics.median(found):.0f}", f"{p95:.0f}", f"{max(found):.0f}")
        goals.append(Goal(f"{name}, p95", p95, PAGE_MS, at_most=True, unit="ms"))
    console.print(table)
    return goals


def measure_live(console: Console, address: str, app: AgentApp, url: str, seconds: float) -> list[Goal]:
    """Watch the overview in five browsers at once, and print what share of time the servers work for it."""
    stop = threading.Event()

    def watch() -> None:
        with urllib.request.urlopen(f"{address}/live/overview", timeout=60) as answer:  # noqa: S310
            while not stop.is_set() and answer.readline():
                pass

    with closing(redis.Redis.from_url(url.replace("redis+socket", "unix"))) as client:
        threads = [threading.Thread(target=watch, daemon=True) for _ in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        before = _database_seconds(app), _redis_seconds(client)
        time.sleep(seconds)
        database, broker = (
            now - then for now, then in zip((_database_seconds(app), _redis_seconds(client)), before, strict=True)
        )
        stop.set()
        for thread in threads:
            thread.join(10)
    console.print(
        f"The live page, five browsers: {database / seconds:.2%} of a database connection's time, "
        f"{broker / seconds:.2%} of the broker's"
    )
    return [
        Goal("live page, database", database / seconds * 100, LIVE_SHARE * 100, at_most=True, unit="%"),
        Goal("live page, broker and store", broker / seconds * 100, LIVE_SHARE * 100, at_most=True, unit="%"),
    ]


def _database_seconds(app: AgentApp) -> float:
    """Return the seconds that the database has worked for its clients."""
    with app.database.begin("read the time of the database") as connection:
        query = text("SELECT active_time / 1000 FROM pg_stat_database WHERE datname = current_database()")
        return float(connection.scalar(query) or 0.0)


def _redis_seconds(client: Any) -> float:
    """Return the seconds that the broker has worked for its clients."""
    found = client.info("commandstats")
    return float(sum(each["usec"] for name, each in found.items() if name != "cmdstat_info")) / 1e6


if __name__ == "__main__":
    main()
