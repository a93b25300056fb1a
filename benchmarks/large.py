"""How long a payload of 10 MB takes from send to handled, against plain Celery with the same payload.

python -m benchmarks.large [--rounds 3] [--pool prefork]

A worker of each kind runs, and gets one message at a time. The times are from the call of ``send`` to its
return, to the start of the handler, and to the acknowledgement. The processor time is that of the sender, and of
the worker with its children. The subjects take turns; the medians of the rounds are compared.
Computers differ and have neighbours: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from celery import Celery
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.report import Goal, print_goals
from waooaw_celery import Message, MessageBus, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end, free_port, postgres, spawn, valkey

SIZE = 10_000_000
#: Seconds from the call of ``send`` to the acknowledgement, on a computer with nothing else to do.
GOAL_SECONDS = 0.6
#: Seconds after which a sample has failed.
PATIENCE = 60.0
ROOT = Path(__file__).parent.parent
#: The Redis list to which a handler adds the time at which it starts.
STARTED = "bench:started"

#: Sends one payload.
Send = Callable[[Any], object]


class Sample(NamedTuple):
    """Seconds from the call of ``send``, and processor seconds."""

    sent: float
    started: float
    acknowledged: float
    sender_cpu: float
    worker_cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pool", choices=("solo", "prefork"), default="prefork")
    arguments = parser.parse_args()
    console = Console()
    with ExitStack() as stack:
        redis_url, folder = (
            stack.enter_context(valkey(port=free_port())),
            Path(stack.enter_context(tempfile.TemporaryDirectory())),
        )
        ledgers = {"postgres": stack.enter_context(postgres()), "sqlite": f"sqlite:///{folder}/ledger.db"}
        subjects = {
            name: Subject(name, settings, redis_url, arguments.pool, folder, stack)
            for name, settings in kinds(ledgers, folder).items()
        }
        goals = [
            goal
            for name, payload in payloads().items()
            for goal in measure(name, payload, subjects, arguments.rounds, console)
        ]
    print_goals(console, "A payload of 10 MB", goals)


def payloads() -> dict[str, Any]:
    """Return payloads of about 10 MB of JSON each, within the default limits."""
    rng = random.Random(2026)  # noqa: S311 - nothing here is secret
    words = ("agent", "answer", "archive", "budget", "contract", "evidence", "figure", "invoice", "page", "report")
    return {
        "text": " ".join(rng.choices(words, k=SIZE // 7)),
        "base64": base64.b64encode(rng.randbytes(SIZE * 3 // 4)).decode(),
        "100,000 dicts": [
            {"note": f"{number} " + " ".join(rng.choices(words, k=11))} for number in range(100_000)
        ],
    }


def kinds(ledgers: dict[str, str], folder: Path) -> dict[str, dict[str, str] | None]:
    """Return the settings of each subject; None: plain Celery."""
    postgres_ledger = {"WAOOAW_DATABASE_URL": ledgers["postgres"], "WAOOAW_SPOOL_FOLDER": f"{folder}/spool"}
    sqlite_ledger = {**postgres_ledger, "WAOOAW_DATABASE_URL": ledgers["sqlite"]}
    uncompressed = {"WAOOAW_COMPRESS_ABOVE": str(2 * SIZE)}
    return {
        "Celery": None,
        "no ledger": {},
        "no ledger, uncompressed": uncompressed,
        "batched, PostgreSQL": {**postgres_ledger, "WAOOAW_AUDIT_MODE": "batched"},
        "strict, PostgreSQL": postgres_ledger,
        "strict, PostgreSQL, uncompressed": {**postgres_ledger, **uncompressed},
        "strict, SQLite": sqlite_ledger,
    }


class Subject:
    """A sender and its worker.

    Args:
        name: what the table calls it.
        settings: the settings of both, as environment variables; None: plain Celery.
        redis_url: the server; each subject uses a database of its own.
        pool: the worker's pool.
        folder: for logs.
        stack: ends the worker.
    """

    _databases = iter(range(16))

    def __init__(
        self, name: str, settings: dict[str, str] | None, redis_url: str, pool: str, folder: Path, stack: ExitStack
    ) -> None:
        number = next(self._databases)
        url = f"{redis_url.rsplit('/', 1)[0]}/{number}"
        self._redis = Redis.from_url(url)
        self._send = _plain_sender(url) if settings is None else _sender(url, settings, stack)
        module = "benchmarks.large_worker:plain" if settings is None else "benchmarks.large_worker:app"
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker", "-P", pool, "-c", "1"]
        command += ["--without-mingle", "--without-gossip", "-n", f"large{number}@%h"]
        if settings is None:
            command += ["-Q", "plain"]
        self._log = folder / f"worker{number}.log"
        env = {**os.environ, "CELERY_BROKER_URL": url, **(settings or {})}
        self._worker = spawn(command, log=self._log, env=env, cwd=ROOT)
        stack.callback(end, self._worker)
        self.sample({"warm": "up"})

    def sample(self, payload: Any) -> Sample:
        """Send a payload, and return when it was sent, its handler started, and it was acknowledged."""
        cpu_before = time.process_time(), _worker_cpu(self._worker.pid)
        began = time.monotonic()
        self._send(payload)
        sent = time.monotonic()
        started = self._wait(lambda: self._redis.lpop(STARTED))
        self._wait(lambda: not self._redis.exists("unacked"))
        ended = time.monotonic()
        time.sleep(0.2)  # what the sender and the worker do afterwards counts too
        cpu = time.process_time() - cpu_before[0], _worker_cpu(self._worker.pid) - cpu_before[1]
        return Sample(sent - began, float(started) - began, ended - began, *cpu)

    def _wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker stands still:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.002)
        return found


def _plain_sender(url: str) -> Send:
    signature = Celery("plain", broker=url).signature("plain.work", ignore_result=True)
    return lambda payload: signature.clone(args=(payload,)).apply_async(queue="plain")


def _sender(url: str, settings: dict[str, str], stack: ExitStack) -> Send:
    own: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
    app = stack.enter_context(
        closing(create_app(broker_url=url, result_backend=url, waooaw_sender="bench", **own))
    )
    if settings.get("WAOOAW_DATABASE_URL"):
        schema.upgrade(app.database)
    app.registry.declare("receiver", ["command"], "receiver@bench", lifetime=3600)
    bus = MessageBus(app)
    return lambda payload: bus.send(Message(from_agent="bench", to_agent="receiver", payload=payload))


def _worker_cpu(pid: int) -> float:
    """Return the processor seconds of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_worker_cpu(int(child)) for child in children)


def measure(what: str, payload: Any, subjects: dict[str, Subject], rounds: int, console: Console) -> list[Goal]:
    """Measure one payload with all subjects, print the medians, and return the goals."""
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            samples[name].append(subjects[name].sample(payload))
    median = {
        name: Sample(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in samples.items()
    }
    base = median["Celery"].acknowledged
    table = Table(
        what, "sent, s", "handler starts, s", "acknowledged, s", "x Celery", "sender's CPU, s", "worker's CPU, s"
    )
    for name, found in median.items():
        times = (f"{seconds:.2f}" for seconds in (found.sent, found.started, found.acknowledged))
        cpu = (f"{found.sender_cpu:.2f}", f"{found.worker_cpu:.2f}")
        table.add_row(name, *times, f"{found.acknowledged / base:.1f}", *cpu)
    console.print(table)
    return [
        Goal(f"{what}: {name}", found.acknowledged, GOAL_SECONDS, at_most=True, unit="s")
        for name, found in median.items()
        if name != "Celery"
    ]


if __name__ == "__main__":
    main()
