"""What it costs to record the answers of requests in the ledger, in both audit modes.

python -m benchmarks.answers [--rounds 9]

Four workers, each one process: with and without the record of answers, with a batched and with a strict ledger in
an embedded PostgreSQL. One caller asks one after the other, with an answer of about 300 bytes. The subjects take
turns for a second, in an order that is reversed each time; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.report import Goal, report
from benchmarks.turns import measure
from waooaw_celery import AgentApp, RequestResponseHandler, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end, postgres, spawn, valkey

#: Seconds after which a worker has not started.
PATIENCE = 30.0
ROOT = Path(__file__).parent.parent

#: What is asked for, and comes back.
VALUE = {"text": "x" * 280}
SUBJECTS = [(mode, records) for mode in ("batched", "strict") for records in (True, False)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with valkey() as url, postgres() as database, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {"broker_url": url, "waooaw_sender": "bench", "waooaw_database_url": database}
        apps = {
            mode: stack.enter_context(closing(create_app(**settings, waooaw_audit_mode=mode)))
            for mode in ("batched", "strict")
        }
        schema.upgrade(apps["strict"].database)
        for mode, records in SUBJECTS:
            start(url, database, Path(folder), mode, records, stack)
        wait_for(apps["strict"])
        rates = measure({name(*each): asker(apps[each[0]], *each) for each in SUBJECTS}, rounds, seconds=1.0)
    report(
        "Answers in the ledger",
        rates,
        base=name("batched", records=False),
        goals=[
            Goal(
                f"{mode}: recorded / not recorded",
                rates[name(mode, records=True)] / rates[name(mode, records=False)],
                0.9,
            )
            for mode in apps
        ],
    )


def name(mode: str, records: bool) -> str:
    """Return what a subject is called."""
    return f"{mode}, answers {'recorded' if records else 'not recorded'}"


def agent(mode: str, records: bool) -> str:
    """Return the name of a subject's agent."""
    return f"{mode}-{'with' if records else 'without'}"


def start(url: str, database: str, folder: Path, mode: str, records: bool, stack: ExitStack) -> None:
    """Start a worker that lives as long as the stack."""
    node = agent(mode, records)
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.agent_worker", "worker"]
    command += ["-n", f"{node}@%h", "-c", "1", "--without-mingle", "--without-gossip"]
    env = {
        **os.environ,
        "BENCH_AGENT": node,
        "CELERY_BROKER_URL": url,
        "CELERY_RESULT_BACKEND": url,
        "WAOOAW_DATABASE_URL": database,
        "WAOOAW_AUDIT_MODE": mode,
        "WAOOAW_RECORD_ANSWERS": str(records),
        "WAOOAW_SPOOL_FOLDER": str(folder),
    }
    stack.callback(end, spawn(command, log=folder / f"{node}.log", env=env, cwd=ROOT))


def wait_for(app: AgentApp) -> None:
    """Wait until all agents have declared themselves."""
    deadline = time.monotonic() + PATIENCE
    while sum(bool(each.workers) for each in app.registry.all()) < len(SUBJECTS):
        if time.monotonic() > deadline:
            raise SystemExit("the agents' workers did not start")
        time.sleep(0.05)


def asker(app: AgentApp, mode: str, records: bool) -> Callable[[], int]:
    """Return what asks once, and returns how many answers that were."""
    requests, to_agent = RequestResponseHandler(app), agent(mode, records)

    def ask() -> int:
        return int(requests.request(to_agent, "echo", {"value": VALUE}) == VALUE)

    return ask


if __name__ == "__main__":
    main()
