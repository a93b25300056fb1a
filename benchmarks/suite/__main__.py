"""Measures all groups in one run, prints the ratios, and writes docs/performance.md.

python -m benchmarks.suite [--quick] [--only sending] [--rounds 5] [--write FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kombu import Connection
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from benchmarks.suite import peers as other_projects
from benchmarks.suite.document import Results, document, number, target
from benchmarks.suite.groups.events import events
from benchmarks.suite.groups.growth import growth
from benchmarks.suite.groups.handling import handling, handling_batches, handling_solo
from benchmarks.suite.groups.idle import idle
from benchmarks.suite.groups.monitoring import monitoring
from benchmarks.suite.groups.ordering import ordering
from benchmarks.suite.groups.payloads import payloads
from benchmarks.suite.groups.questions import questions
from benchmarks.suite.groups.rabbitmq import rabbitmq
from benchmarks.suite.groups.requests import requests
from benchmarks.suite.groups.sending import sending
from benchmarks.suite.groups.workflows import workflows
from benchmarks.suite.plot import plot
from benchmarks.suite.row import Context, MakeGroup
from benchmarks.suite.run import run
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.testing.embedded import postgres, valkey

DOCS = Path(__file__).parents[2] / "docs"
AMQP_URL = os.environ.get("WAOOAW_TEST_AMQP_URL", "amqp://guest:guest@localhost:5672//")
GROUPS: dict[str, MakeGroup] = {
    "sending": sending,
    "events": events,
    "handling": handling,
    "handling-solo": handling_solo,
    "batches": handling_batches,
    "requests": requests,
    "rabbitmq": rabbitmq,
    "ordering": ordering,
    "monitoring": monitoring,
    "workflows": workflows,
    "idle": idle,
    "payloads": payloads,
    "questions": questions,
    "growth": growth,
}
#: What runs without ``--only``.
ALL = (
    *("sending", "events", "handling", "batches", "requests", "rabbitmq"),
    *("ordering", "monitoring", "workflows", "payloads", "questions", "idle", "growth"),
)
QUICK = ("sending", "events")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="sending and events only, in under a minute")
    parser.add_argument("--only", action="append", choices=[*GROUPS], help="only this group; may be repeated")
    parser.add_argument("--rounds", type=int, default=None, help="samples of each subject; default: 5")
    parser.add_argument("--seconds", type=float, default=None, help="of one sample; default: 0.5")
    parser.add_argument("--messages", type=int, default=2000, help="that a worker handles in one sample")
    parser.add_argument("--growth", type=int, default=1_000_000, help="messages that wait, and in the ledger")
    parser.add_argument("--no-peers", action="store_true", help="do not install or compare other projects")
    parser.add_argument(
        "--write", type=Path, default=None, help="folder of performance.md; default: docs, after a whole run"
    )
    options = parser.parse_args()
    quick = options.quick
    names = options.only or (QUICK if quick else ALL)
    rounds = options.rounds or (2 if quick else 5)
    if not quick and not options.no_peers:
        other_projects.install()
    with ExitStack() as stack:
        seconds = options.seconds or (0.1 if quick else 0.5)
        url = stack.enter_context(valkey())
        database_url = stack.enter_context(postgres())
        schema.upgrade(Database(make_url(database_url)))
        found_peers = stack.enter_context(
            other_projects.Peers(url, database_url, seconds, wanted=not options.no_peers)
        )
        context = Context(
            redis_url=url,
            database_url=database_url,
            amqp_url=AMQP_URL if answers(AMQP_URL) else None,
            peers=found_peers,
            folder=Path(stack.enter_context(tempfile.TemporaryDirectory())),
            seconds=seconds,
            messages=options.messages,
            growth=options.growth,
            stack=stack,
        )
        results = run([GROUPS[name] for name in names], context, rounds)
    show(results)
    folder = options.write or (None if quick or options.only else DOCS)
    if folder is not None:
        command = " ".join(["python3 dev.py bench", *sys.argv[1:]])
        (folder / "performance.md").write_text(document(results, found_peers.missing, rounds, command))
        (folder / "performance.svg").write_text(plot(results))
        print(f"written: {folder / 'performance.md'}")


def answers(url: str) -> bool:
    """Return whether a RabbitMQ answers."""
    with Connection(url, connect_timeout=2) as connection:
        errors: Any = (OSError, *connection.connection_errors)
        try:
            connection.connect()
        except errors:
            return False
        return True


def show(results: Results) -> None:
    """Print the results."""
    for title, found in results.items():
        table = Table("", "ours", "base", "ratio", "spread", "target", "others", title=title)
        for result in found:
            row, ratios = result.row, result.ratios(result.row.ours)
            others = "\n".join(f"{name} {number(result.median(name))}" for name in row.others)
            table.add_row(
                row.name,
                number(result.median(row.ours)),
                f"{row.base} {number(result.median(row.base))}",
                f"{result.ratio:.2f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                target(result),
                others,
            )
        Console(width=max(Console().width, 130)).print(table)


if __name__ == "__main__":
    main()
