"""Measures how much memory sleeping workflows take, and how soon workflows go on after a kill.

python -m benchmarks.workflow_recovery [--sleeping 100000] [--running 1000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import func, select

from benchmarks.suite.workers import ROOT
from waooaw_celery import AgentApp, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.testing.embedded import end, postgres, spawn, valkey
from waooaw_celery.workflows.journal.rows import create
from waooaw_celery.workflows.start import new_row, parse_name

LEASE_SECONDS = 5.0
#: Rows that are created in one transaction.
BATCH = 200


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sleeping", type=int, default=100_000, help="workflows that sleep")
    parser.add_argument("--running", type=int, default=1000, help="workflows that run when their worker is killed")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        env = environment(stack, folder)
        app = create_app(waooaw_sender="bench", **{name.lower(): value for name, value in env.items()})
        stack.enter_context(closing(app))
        schema.upgrade(app.database)
        worker = started(stack, app, env, folder, "first")
        sleep(app, worker, options.sleeping)
        recover(stack, app, env, folder, worker, options.running)


def environment(stack: ExitStack, folder: Path) -> dict[str, str]:
    """Start the servers, and return the settings of a worker."""
    url = stack.enter_context(valkey())
    return {
        "CELERY_BROKER_URL": url,
        "CELERY_RESULT_BACKEND": url,
        "WAOOAW_DATABASE_URL": stack.enter_context(postgres()),
        "WAOOAW_SPOOL_FOLDER": str(folder / "spool"),
        "WAOOAW_WORKFLOW_LEASE_SECONDS": str(LEASE_SECONDS),
    }


def started(
    stack: ExitStack, app: AgentApp, env: dict[str, str], folder: Path, node: str
) -> subprocess.Popen[bytes]:
    """Start a worker, and return it when it is known."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.workflow_worker", "worker"]
    command += ["-P", "solo", "--without-mingle", "--without-gossip", "-n", f"{node}@%h", "-l", "WARNING"]
    worker = spawn(command, log=folder / f"{node}.log", env={**os.environ, **env}, cwd=ROOT)
    stack.callback(end, worker)
    until(lambda: any(node in each for record in app.registry.all() for each in record.workers), 60)
    return worker


def sleep(app: AgentApp, worker: subprocess.Popen[bytes], count: int) -> None:
    """Let workflows sleep for a day, and print the memory of their worker."""
    process = psutil.Process(worker.pid)
    begin(app, "sleep", {"seconds": 1.0}, 1)
    until(lambda: not statuses(app).get("pending"), 60)
    before, began = process.memory_info().rss, time.perf_counter()
    begin(app, "sleep", {"seconds": 86_400.0}, count)
    until(lambda: statuses(app).get("waiting", 0) >= count, 3600)
    seconds = time.perf_counter() - began
    time.sleep(10)  # those that wait are put down after 5 s
    after = process.memory_info().rss
    print(f"{count:,} workflows began to sleep in {seconds:.0f} s")
    print(f"memory of the worker: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")


def recover(
    stack: ExitStack,
    app: AgentApp,
    env: dict[str, str],
    folder: Path,
    worker: subprocess.Popen[bytes],
    count: int,
) -> None:
    """Kill a worker while workflows run, and print when another one has ended them all."""
    begin(app, "local", {"steps": 100}, count)
    until(lambda: statuses(app).get("running", 0) >= min(count, 100) // 2, 60)
    worker.kill()
    killed = time.perf_counter()
    ended = statuses(app).get("completed", 0)
    started(stack, app, env, folder, "second")
    ready = time.perf_counter() - killed
    until(lambda: statuses(app).get("completed", 0) > ended, 120)
    first = time.perf_counter() - killed
    until(lambda: not statuses(app).get("running") and not statuses(app).get("pending"), 3600)
    print(
        f"{count:,} workflows of 100 steps: a worker was killed, another one was ready after {ready:.1f} s, had "
        f"ended the first after {first:.1f} s (leases end after {LEASE_SECONDS:g} s), and all after "
        f"{time.perf_counter() - killed:.1f} s"
    )


def begin(app: AgentApp, name: str, given: dict[str, Any], count: int) -> None:
    """Create workflows; the worker finds their rows."""
    target = parse_name(f"flows.{name}")
    rows: Iterator[dict[str, Any]] = (
        new_row(app, target, given, workflow_id=f"bench-{uuid4()}") for _ in range(count)
    )
    while some := list(islice(rows, BATCH)):
        with app.database.begin("create workflows") as connection:
            create(connection, some)


def statuses(app: AgentApp) -> dict[str, int]:
    """Return how many workflows have each status."""
    query = select(WorkflowRow.status, func.count()).group_by(WorkflowRow.status)
    with app.database.begin("count workflows") as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"it took longer than {seconds:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
