"""How fast requests are answered: one after the other, many at once, and in parts, against plain Celery.

python -m benchmarks.asking [--rounds 5]

A worker of plain Celery and one of ours, each one process with 200 threads, without a ledger, on an embedded
Valkey. Ours keeps receipts, and plain Celery does not. The subjects take turns for a second, in an order that is
reversed each time; the medians of the rounds are compared. Computers differ and have neighbours: only the ratios
of one run mean something.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.report import Goal, report
from waooaw_celery import AgentApp, RequestResponseHandler, create_app
from waooaw_celery.agents import aio
from waooaw_celery.embedded import end, spawn, valkey

#: Requests that are awaited at once.
MANY = 1000
#: Parts of one streamed answer.
PARTS = 1000
SECONDS = 1.0
#: Seconds after which a worker has not started.
PATIENCE = 30.0
ROOT = Path(__file__).parent.parent

Subject = Callable[[], int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with valkey() as url, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for module in ("benchmarks.plain_worker", "benchmarks.agent_worker"):
            start(url, Path(folder), module, stack)
        app = stack.enter_context(closing(create_app(broker_url=url, waooaw_sender="bench")))
        wait_for(app)
        rates = measure(subjects(url, app, stack), rounds)
        threads = threads_of(app)
    many = rates["1,000 awaited at once"]
    plain = rates["Celery .delay().get(), one after the other"]
    report(
        "Asking",
        rates,
        base="Celery .delay().get(), one after the other",
        goals=[
            Goal("request / Celery .delay().get()", rates["request, one after the other"] / plain, 0.6),
            Goal("1,000 awaited / one after the other", many / rates["request, one after the other"], 1.0),
        ],
    )
    print(f"  threads of the caller beside its own, with {MANY:,} requests awaited: {threads}")


def start(url: str, folder: Path, module: str, stack: ExitStack) -> None:
    """Start a worker that lives as long as the stack."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker", "-n", f"{module}@%h"]
    command += ["-P", "threads", "-c", "200", "--without-mingle", "--without-gossip"]
    env = {**os.environ, "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    worker = spawn(command, log=folder / f"{module}.log", env=env, cwd=ROOT)
    stack.callback(end, worker)


def wait_for(app: AgentApp) -> None:
    """Wait until the agent has declared itself."""
    deadline = time.monotonic() + PATIENCE
    while not any(each.name == "receiver" and each.workers for each in app.registry.all()):
        if time.monotonic() > deadline:
            raise SystemExit("the agent's worker did not start")
        time.sleep(0.05)


def subjects(url: str, app: AgentApp, stack: ExitStack) -> dict[str, Subject]:
    """Return what is measured: each does something once and returns how many answers or parts that were."""
    celery: Any = stack.enter_context(closing(Celery("plain", broker=url, backend=url)))
    signature = celery.signature("plain.echo", args=(1,)).set(queue="plain")
    requests = RequestResponseHandler(app)

    def ask_celery() -> int:
        return int(signature.delay().get(timeout=30))

    def ask() -> int:
        return int(requests.request("receiver", "echo", {"value": 1}))

    def stream() -> int:
        return sum(1 for _ in requests.stream("receiver", "count", {"to": PARTS}))

    return {
        "Celery .delay().get(), one after the other": ask_celery,
        "request, one after the other": ask,
        "1,000 awaited at once": lambda: asyncio.run(ask_many(app)),
        "parts of a stream": stream,
    }


async def ask_many(app: AgentApp) -> int:
    """Await many requests at once, and return how many were answered."""
    requests = aio.RequestResponseHandler(app)
    asked = (requests.request("receiver", "echo_async", {"value": 1}) for _ in range(MANY))
    return sum(await asyncio.gather(*asked))


def threads_of(app: AgentApp) -> int:
    """Return how many more threads there are while many requests are awaited."""
    before = threading.active_count()
    highest = before

    async def watched() -> None:
        nonlocal highest
        work = asyncio.create_task(ask_many(app))
        while not work.done():
            highest = max(highest, threading.active_count())
            await asyncio.sleep(0.01)

    asyncio.run(watched())
    return highest - before + sum(thread.name.startswith("waooaw-") for thread in threading.enumerate())


def measure(subjects: dict[str, Subject], rounds: int) -> dict[str, float]:
    """Let the subjects take turns, and return the median of how many a second each did."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            subject, done, began = subjects[name], 0, time.perf_counter()
            while time.perf_counter() < began + SECONDS:
                done += subject()
            rates[name].append(done / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}


if __name__ == "__main__":
    main()
