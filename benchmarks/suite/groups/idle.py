"""How much an idle worker asks of Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from benchmarks.suite.groups.handling import worker_command
from benchmarks.suite.groups.sending import redis_client
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from benchmarks.suite.workers import ROOT, processor_seconds
from waooaw_celery.testing.embedded import end, spawn, valkey

SOLO = ["-P", "solo", "-c", "1"]
#: Seconds for which a worker is watched, and after which it has started.
WATCH_SECONDS = 10.0
START_SECONDS = 15.0
#: Most commands of a second that an idle worker should send.
LIMIT = 2.0


def idle(context: Context) -> Group:
    """Return the group. Each worker has a server of its own, whose commands are counted."""
    return Group(
        "Idle",
        {
            "ours": _subject(context, "benchmarks.agent_worker"),
            "Celery": _subject(context, "benchmarks.plain_worker"),
        },
        [Row("idle worker, Redis commands", "ours", "Celery", limit=LIMIT)],
    )


def _subject(context: Context, module: str) -> Subject:
    def sample() -> Sample:
        with valkey() as url:
            env = {**os.environ, "CELERY_BROKER_URL": url}
            worker = spawn(worker_command(module, SOLO), log=context.folder / "idle.log", env=env, cwd=ROOT)
            try:
                client = redis_client(url)
                _wait_for_clients(lambda: len(client.client_list()))
                time.sleep(START_SECONDS)
                sent, processor = _commands(client), processor_seconds(worker.pid)
                time.sleep(WATCH_SECONDS)
                sent, processor = _commands(client) - sent - 1, processor_seconds(worker.pid) - processor
                return Sample(sent / WATCH_SECONDS, processor / WATCH_SECONDS * 1e6)
            finally:
                end(worker)

    return sample


def _wait_for_clients(count: Callable[[], int]) -> None:
    deadline = time.monotonic() + 60
    while count() < 2:
        if time.monotonic() > deadline:
            raise SystemExit("the worker did not connect")
        time.sleep(0.1)


def _commands(client: object) -> int:
    """Return how many commands clients have sent, without those within scripts."""
    return int(client.info("stats")["total_commands_processed"])  # type: ignore[attr-defined]
