"""Measures our Redis transport against Kombu's: a plain Celery worker and producer on each.

python -m benchmarks.transport [--rounds 3]

Only the transport differs: Celery, the settings and the task are the same. (If huey, the fastest peer on Redis, is
installed, it does the same work on the same server with one thread.) For consuming, one worker process empties a
full queue. The rate and the processor time are measured between nine tenths and a fiftieth of the queue. The
subjects take turns, and the medians of the rounds are compared. Only the ratios within one run are meaningful.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.payload import PAYLOAD
from benchmarks.report import Goal, print_goals
from benchmarks.transport_worker import make_app
from waooaw_celery.testing.embedded import end, spawn, valkey

#: Messages of one consuming sample, and of a batch.
COUNT = 6000
BATCH_SIZE = 1000
SECONDS = 0.5
DEADLINE_SECONDS = 120.0
IDLE_SECONDS = 10.0
ROOT = Path(__file__).parent.parent
TRANSPORTS = ("kombu", "ours")
PEER = "huey: 1 thread"

#: The worker's options, its settings, and the least ratio of our rate to Kombu's.
CASES: dict[str, tuple[list[str], dict[str, Any], float]] = {
    "solo, prefetch 64": (["-P", "solo", "-c", "1"], {"worker_prefetch_multiplier": 64}, 5.0),
    "solo, prefetch 1, late": (
        ["-P", "solo", "-c", "1"],
        {"worker_prefetch_multiplier": 1, "task_acks_late": True},
        3.0,
    ),
    "threads 4, prefetch 64": (["-P", "threads", "-c", "4"], {"worker_prefetch_multiplier": 16}, 5.0),
    "prefork 2, prefetch 64": (["-P", "prefork", "-c", "2"], {"worker_prefetch_multiplier": 32}, 2.7),
}


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("publish", "consume", "idle", "memory"), default=None)
    parser.add_argument("--messages", type=int, default=1_000_000, help="for `--only memory`")
    options = parser.parse_args()
    console = Console()
    goals: list[Goal] = []
    with valkey() as url, tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "publish"):
            goals += measure_publishing(console, url, options.rounds)
        if options.only in (None, "consume"):
            goals += measure_consuming(console, url, Path(folder), options.rounds)
        if options.only in (None, "idle"):
            goals += measure_idling(console, url, Path(folder))
        if options.only == "memory":
            goals += measure_memory(console, url, Path(folder), options.messages)
    print_goals(console, "Transport, against Kombu's", goals)


def measure_publishing(console: Console, url: str, rounds: int) -> list[Goal]:
    """Publish one by one, and in batches."""
    subjects: dict[str, Callable[[], int]] = {}
    for transport in TRANSPORTS:
        app = make_app(transport, url)
        subjects[f"{transport}: .delay"] = _delay(app)
        subjects[f"{transport}: batch of {BATCH_SIZE}"] = _batch(app)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    client = _client(url)
    for work in subjects.values():
        work()
    for number in range(2 * rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            client.flushdb()
            began, processor, done = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < SECONDS:
                done += subjects[name]()
            took = time.perf_counter() - began
            found[name].append((done / took, (time.process_time() - processor) / done * 1e6))
    rates = _print(console, "Publishing", found)
    return [
        Goal(f"publish {what}, times", rates[f"ours: {what}"][0] / rates[f"kombu: {what}"][0], bound)
        for what, bound in ((".delay", 1.5), (f"batch of {BATCH_SIZE}", 1.0))
    ]


def _delay(app: Celery) -> Callable[[], int]:
    def delay() -> int:
        app.tasks["plain.work"].delay(PAYLOAD)
        return 1

    return delay


def _batch(app: Celery) -> Callable[[], int]:
    def batch() -> int:
        task = app.tasks["plain.work"]
        with app.producer_or_acquire() as producer, producer.batch(BATCH_SIZE + 1):
            for _ in range(BATCH_SIZE):
                task.apply_async((PAYLOAD,), producer=producer)
        return BATCH_SIZE

    return batch


def measure_consuming(console: Console, url: str, folder: Path, rounds: int) -> list[Goal]:
    """Let workers empty a queue."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        for case in CASES:
            for transport in sorted(TRANSPORTS, reverse=bool(number % 2)):
                found.setdefault(f"{transport}: {case}", []).append(sample(url, transport, case, folder))
        if importlib.util.find_spec("huey"):
            found.setdefault(PEER, []).append(sample_peer(url, folder))
    rates = _print(console, "Consuming", found)
    goals = []
    if PEER in rates:
        times = rates["ours: solo, prefetch 64"][0] / rates[PEER][0]
        goals.append(Goal("solo, prefetch 64: rate, times huey's", times, 1.0))
    else:
        console.print("Not compared with huey, which is not installed: pip install --group peers")
    for case, (_, _, bound) in CASES.items():
        ours, kombu = rates[f"ours: {case}"], rates[f"kombu: {case}"]
        goals.append(Goal(f"{case}: rate, times", ours[0] / kombu[0], bound))
        goals.append(Goal(f"{case}: processor time, times", ours[1] / kombu[1], 1.0, at_most=True))
    return goals


def sample(url: str, transport: str, case: str, folder: Path) -> tuple[float, float]:
    """Return a worker's messages per second, and its processor time for each in microseconds."""
    client = _client(url)
    client.flushdb()
    fill = _batch(make_app(transport, url))
    for _ in range(COUNT // BATCH_SIZE):
        fill()
    return _measure_emptying(client, f"plain-{transport}", start(url, transport, case, folder), folder)


def sample_peer(url: str, folder: Path) -> tuple[float, float]:
    """Return the same for huey's consumer."""
    from benchmarks.huey_worker import make_huey

    client = _client(url)
    client.flushdb()
    address = _redis_py_url(url)
    huey = make_huey(address)
    for _ in range(COUNT):
        huey.work(PAYLOAD)
    program = [str(Path(sys.executable).with_name("huey_consumer")), "-q", "-k", "thread", "-w", "1"]
    env = {**os.environ, "HUEY_URL": address}
    worker = spawn([*program, "benchmarks.huey_worker.huey"], log=folder / "worker.log", env=env, cwd=ROOT)
    return _measure_emptying(client, huey.storage.queue_key, worker, folder)


def _measure_emptying(
    client: Any, queue: str, worker: subprocess.Popen[bytes], folder: Path
) -> tuple[float, float]:
    """Measure how a worker empties a queue of COUNT messages, and end it."""
    try:
        first, began = _wait(client, queue, COUNT * 0.9, folder)
        processor = _processor_seconds(worker.pid)
        last, ended = _wait(client, queue, COUNT * 0.02, folder)
        processor = _processor_seconds(worker.pid) - processor
        return (first - last) / (ended - began), processor / (first - last) * 1e6
    finally:
        end(worker)


def measure_idling(console: Console, url: str, folder: Path) -> list[Goal]:
    """Measure the cost of an idle worker."""
    case = "solo, prefetch 1, late"
    table = Table("transport", "processor ms a second", "commands a second", title="Idle worker")
    seconds: dict[str, float] = {}
    for transport in TRANSPORTS:
        client = _client(url)
        client.flushdb()
        worker = start(url, transport, case, folder)
        try:
            _wait_for_ready(worker, folder)
            time.sleep(2)
            processor, commands = _processor_seconds(worker.pid), _commands(client)
            time.sleep(IDLE_SECONDS)
            used = (_processor_seconds(worker.pid) - processor) / IDLE_SECONDS
            done = (_commands(client) - commands) / IDLE_SECONDS
        finally:
            end(worker)
        seconds[transport] = used
        table.add_row(transport, f"{used * 1000:.1f}", f"{done:.1f}")
    console.print(table)
    return [Goal("idle: processor time, times", seconds["ours"] / max(seconds["kombu"], 0.001), 1.0, at_most=True)]


def measure_memory(console: Console, url: str, folder: Path, messages: int) -> list[Goal]:
    """Send very many messages through one worker, and measure the memory of all processes."""
    client = _client(url)
    client.flushdb()
    fill = _batch(make_app("ours", url))
    worker = start(url, "ours", "solo, prefetch 64", folder)
    table = Table("messages", "worker, MiB", "this process, MiB", "Redis, MiB", title="Memory")
    sizes: list[tuple[float, float, float]] = []
    try:
        for number in range(1, messages // BATCH_SIZE + 1):
            fill()
            _wait(client, "plain-ours", 5 * BATCH_SIZE, folder)
            if number % (messages // BATCH_SIZE // 10) == 0:
                _wait(client, "plain-ours", 0, folder)
                redis = client.info("memory")["used_memory"] / 2**20
                sizes.append((_memory(worker.pid), _memory(os.getpid()), redis))
                table.add_row(f"{number * BATCH_SIZE:,}", *(f"{size:.1f}" for size in sizes[-1]))
    finally:
        end(worker)
    console.print(table)
    return [
        Goal(
            f"memory of {who}, at the end / after a fifth", sizes[-1][place] / sizes[1][place], 1.05, at_most=True
        )
        for place, who in enumerate(("the worker", "the sender", "Redis"))
    ]


def _memory(pid: int) -> float:
    """Return a process's memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def start(url: str, transport: str, case: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a worker."""
    options, settings, _ = CASES[case]
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.transport_worker", "worker"]
    command += [
        "--without-mingle",
        "--without-gossip",
        "-l",
        "WARNING",
        "-n",
        f"b{time.monotonic_ns()}@%h",
        *options,
    ]
    env = {**os.environ, "CELERY_BROKER_URL": url, "TRANSPORT": transport, "SETTINGS": json.dumps(settings)}
    return spawn(command, log=folder / "worker.log", env=env, cwd=ROOT)


def _client(url: str) -> Any:
    return Redis.from_url(_redis_py_url(url))


def _redis_py_url(url: str) -> str:
    """Return a URL in the form of redis-py."""
    return url.replace("redis+socket://", "unix://")


def _waiting(client: Any, queue: str) -> int:
    return int(client.llen(queue) + client.hlen("unacked"))


def _wait(client: Any, queue: str, bound: float, folder: Path) -> tuple[int, float]:
    """Wait until at most so many messages are unhandled; return how many there are, and the time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (number := _waiting(client, queue)) > bound:
        if time.monotonic() > deadline:
            raise SystemExit(f"the worker makes no progress:\n{(folder / 'worker.log').read_text()[-2000:]}")
        time.sleep(0.005)
    return number, time.perf_counter()


def _commands(client: Any) -> int:
    """Return how many waiting or script commands clients have sent, without the commands within scripts."""
    sent = client.info("commandstats")
    return sum(
        sent[f"cmdstat_{name}"]["calls"] for name in ("evalsha", "blpop", "brpop") if f"cmdstat_{name}" in sent
    )


def _wait_for_ready(worker: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while _processor_seconds(worker.pid) < 0.3:
        if time.monotonic() > deadline or worker.poll() is not None:
            raise SystemExit((folder / "worker.log").read_text()[-2000:])
        time.sleep(0.05)


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process and its living children."""
    total = 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(stat.parent.name) == pid or int(fields[1]) == pid:
            total += sum(map(int, fields[11:15])) / ticks
    return total


def _print(
    console: Console, title: str, found: dict[str, list[tuple[float, float]]]
) -> dict[str, tuple[float, float]]:
    """Print the medians of rates and processor times, and return them."""
    table = Table("", "a second", "µs of processor each", title=title)
    medians = {
        name: (statistics.median(rate for rate, _ in values), statistics.median(used for _, used in values))
        for name, values in found.items()
    }
    for name, (rate, used) in sorted(medians.items()):
        table.add_row(name, f"{rate:,.0f}", f"{used:,.0f}")
    console.print(table)
    return medians


if __name__ == "__main__":
    main()
