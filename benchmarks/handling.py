"""How fast messages are handled: with the ledger and without, against plain Celery.

python -m benchmarks.handling [--rounds 3]

For each sample a queue is filled, one real worker empties it, and the rate is taken between nine tenths and a
fiftieth of the queue: what starting and stopping cost does not count. The subjects take turns; the medians of the
rounds are compared. Computers differ and have neighbours: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from benchmarks.report import Goal, report
from benchmarks.sending import PAYLOAD
from waooaw_celery import AgentApp, Message, MessageBus, create_app
from waooaw_celery.embedded import end, postgres, spawn, valkey
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import agent_queue, queue_depth

#: Messages of one sample.
COUNT = 1500
#: Seconds after which a sample has failed.
PATIENCE = 120.0
ROOT = Path(__file__).parent.parent

#: Settings of a worker of ours; None: a plain Celery worker.
Settings = dict[str, str] | None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with valkey() as redis_url, postgres() as database_url, tempfile.TemporaryDirectory() as folder:
        ledger = {"WAOOAW_DATABASE_URL": database_url, "WAOOAW_SPOOL_FOLDER": f"{folder}/spool"}
        with closing(_app(redis_url, ledger)) as app:
            schema.upgrade(app.database)
        kinds: dict[str, Settings] = {
            "Celery": None,
            "no ledger": {},
            "batched": {**ledger, "WAOOAW_AUDIT_MODE": "batched"},
            "strict": ledger,
        }
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            for pool in ("solo", "prefork"):
                for kind in sorted(kinds, reverse=bool(number % 2)):
                    rate = sample(redis_url, kinds[kind], pool, Path(folder))
                    rates.setdefault(f"{kind}, {pool}", []).append(rate)
    median = {name: statistics.median(found) for name, found in sorted(rates.items())}
    goals = [
        Goal(f"batched / no ledger, {pool}", median[f"batched, {pool}"] / median[f"no ledger, {pool}"], 0.75)
        for pool in ("solo", "prefork")
    ]
    report("Handling", median, base="Celery, solo", goals=goals)


def sample(redis_url: str, settings: Settings, pool: str, folder: Path) -> float:
    """Fill a queue, have a worker empty it, and return how many messages a second it handled."""
    with closing(_app(redis_url, settings or {})) as app:
        fill = fill_plain if settings is None else fill_agent
        depth = fill(app)
        module = "benchmarks.plain_worker" if settings is None else "benchmarks.agent_worker"
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker", "-P", pool, "-c", "1"]
        command += ["--without-mingle", "--without-gossip", "-n", f"bench-{time.monotonic_ns()}@%h"]
        env = {**os.environ, "CELERY_BROKER_URL": redis_url, **(settings or {})}
        log = folder / "worker.log"
        worker = spawn(command, log=log, env=env, cwd=ROOT)
        try:
            began = _wait(depth, COUNT * 0.9, log)
            first = depth()
            ended = _wait(depth, COUNT * 0.02, log)
            return (first - depth()) / (ended - began)
        finally:
            end(worker)
            _drain(app)


def fill_agent(app: AgentApp) -> Callable[[], int]:
    """Send messages to the agent, and return how many wait."""
    app.registry.declare("receiver", ["command"], "receiver@bench", lifetime=3600)
    messages = (Message(from_agent="bench", to_agent="receiver", payload=PAYLOAD) for _ in range(COUNT))
    MessageBus(app).send_many(messages)
    return lambda: _depth(app, agent_queue("receiver"))


def fill_plain(app: AgentApp) -> Callable[[], int]:
    """Publish tasks of a plain Celery application, and return how many wait."""
    plain = Celery("plain", broker=app.conf.broker_url)
    signature = plain.signature("plain.work", args=(PAYLOAD,), ignore_result=True)
    for _ in range(COUNT):
        signature.apply_async(queue="plain")
    plain.close()
    client = app.connection_for_read().channel().client
    return lambda: int(client.llen("plain"))


def _app(redis_url: str, settings: dict[str, str]) -> AgentApp:
    own: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
    return create_app(broker_url=redis_url, result_backend=redis_url, waooaw_sender="bench", **own)


def _depth(app: AgentApp, queue: Queue) -> int:
    with app.connection_for_read() as connection:
        return queue_depth(connection, queue).total


def _drain(app: AgentApp) -> None:
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue("receiver")(channel).purge()


def _wait(depth: Callable[[], int], bound: float, log: Path) -> float:
    """Wait until no more messages wait than this, and return the moment."""
    deadline = time.monotonic() + PATIENCE
    while depth() > bound:
        if time.monotonic() > deadline:
            raise SystemExit(f"the worker stands still:\n{log.read_text()[-2000:]}")
        time.sleep(0.01)
    return time.perf_counter()


if __name__ == "__main__":
    main()
