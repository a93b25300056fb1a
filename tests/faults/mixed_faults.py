"""Random faults of all kinds, one after the other, under load."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import psutil

from faults.cluster import Cluster
from faults.server_faults import SHORT_TTL_SECONDS

#: By how much the threads, open files, connections and MiB of memory may grow.
MAX_GROWTH = 10


def chaos(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Each round, a random fault hits a worker or a server while messages are sent."""
    kinds: tuple[Callable[[Cluster, random.Random], None], ...] = (
        _kill_worker,
        _end_worker,
        _kill_child,
        _kill_broker,
        _freeze_broker,
        _stop_database,
        _freeze_database,
    )
    with cluster.system():
        cluster.start()
        before = _resources(cluster)
        for _ in range(rounds):
            kind = rng.choice(kinds)
            with cluster.load(ttl=6 * SHORT_TTL_SECONDS):
                time.sleep(rng.uniform(0.2, 0.5))
                kind(cluster, rng)
                time.sleep(rng.uniform(0.2, 0.5))
            took = cluster.probe()
            if took == float("inf"):
                cluster.expect(False, f"nothing was handled after {kind.__name__}")
        cluster.drain()
        after = _resources(cluster)
        for name, count in before.items():
            cluster.expect(after[name] <= count + MAX_GROWTH, f"I8: {name}: {count} before, {after[name]} after")


def _resources(cluster: Cluster) -> dict[str, int]:
    me = psutil.Process()
    [[connections]] = cluster.stack.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    return {
        "threads": threading.active_count(),
        "files": me.num_fds(),
        "connections to the database": int(connections),
        "MiB": me.memory_info().rss >> 20,
    }


def _kill_worker(cluster: Cluster, rng: random.Random) -> None:
    cluster.kill()
    cluster.start()


def _end_worker(cluster: Cluster, rng: random.Random) -> None:
    worker = cluster.workers[-1]
    worker.process.send_signal(signal.SIGTERM)
    cluster.reap(worker)
    cluster.start()


def _kill_child(cluster: Cluster, rng: random.Random) -> None:
    children = psutil.Process(cluster.workers[-1].process.pid).children()
    if children:
        os.kill(rng.choice(children).pid, signal.SIGKILL)


def _kill_broker(cluster: Cluster, rng: random.Random) -> None:
    cluster.broker.kill()
    time.sleep(rng.uniform(0, 2))
    cluster.broker.start()


def _freeze_broker(cluster: Cluster, rng: random.Random) -> None:
    cluster.broker.freeze()
    time.sleep(rng.uniform(0.5, 5))
    cluster.broker.thaw()


def _stop_database(cluster: Cluster, rng: random.Random) -> None:
    cluster.postgres.stop()
    time.sleep(rng.uniform(0, 3))
    cluster.postgres.start()


def _freeze_database(cluster: Cluster, rng: random.Random) -> None:
    cluster.postgres.freeze()
    try:
        time.sleep(rng.uniform(0.5, 5))
    finally:
        cluster.postgres.thaw()
