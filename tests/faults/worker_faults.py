"""Faults of workers: killed, frozen, shut down, and killed by the messages that they handle."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial

from faults.cluster import Cluster, Worker
from faults.stacks import LEASE, ROOT

#: Maximum of seconds between a worker's first message and its kill.
KILL_WITHIN_SECONDS = 1.0
#: Number of messages that are sent to a frozen worker.
FEW = 5
#: Seconds within which a worker shuts down whose handlers take tenths of a second.
SHUTDOWN_SECONDS = 15.0
#: Actions that kill the pool process each time, or would without protection.
DEADLY_ACTIONS = ("kill", "crash", "run out of memory", "exit")
#: How often a message is begun whose handler kills its process.
ATTEMPTS = 4


def kill_under_load(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's parent process is killed at a random time under load, and a new worker is started."""
    with cluster.load():
        for _ in range(rounds):
            cluster.start()
            time.sleep(rng.uniform(0, KILL_WITHIN_SECONDS))
            cluster.kill()
    cluster.start()


def kill_once(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The same with once=True: each effect happens once, also if the handler ran twice."""
    with cluster.load(once=True):
        for _ in range(rounds):
            cluster.start()
            time.sleep(rng.uniform(0, KILL_WITHIN_SECONDS))
            cluster.kill()
    cluster.start()
    cluster.drain()
    counts = dict(cluster.stack.ask("SELECT id, count(*) FROM faults_effects GROUP BY id"))
    several = [id_ for id_, count in counts.items() if count > 1]
    cluster.expect(not several, f"{len(several)} effects happened more than once")
    handled = dict(cluster.stack.ask("SELECT message_id, handler FROM waooaw_messages"))
    missing = [id_ for id_, ends in cluster.stack.ends().items() if ends[0].event == "handled"]
    missing = [id_ for id_ in missing if handled.get(id_) == "query" and id_ not in counts]
    cluster.expect(not missing, f"{len(missing)} effects did not happen")


def kill_frozen(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's parent process freezes, messages are sent, and it is killed; every other round under load."""
    worker = cluster.start()
    for number in range(rounds):
        if number % 2:
            for _ in range(rng.randint(1, 30)):
                cluster.send()
        else:
            cluster.drain()
            time.sleep(rng.uniform(0, 0.5))  # so that the freeze hits different phases of an idle worker's polling
        worker.process.send_signal(signal.SIGSTOP)
        for _ in range(FEW):
            cluster.send()
        cluster.kill(worker)
        worker = cluster.start()


def kill_child(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A pool process is killed once for each of some messages, while it handles the message."""
    worker = cluster.start()
    with cluster.load():
        for _ in range(rounds):
            id_ = cluster.send("kill once", seconds=rng.uniform(0, 0.1))
            cluster.until(lambda id_=id_: cluster.handled(id_), "its second attempt", 15)  # type: ignore[misc]
    cluster.expect(worker.process.poll() is None, "the worker ended")


def deadly_messages(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages kill, crash or leave the process that handles them each time: they fail, and others do not."""
    worker = cluster.start()
    ids: dict[str, str] = {}
    for _ in range(rounds):
        ids |= {cluster.send(do): do for do in DEADLY_ACTIONS}
        for _ in range(FEW):
            cluster.send(seconds=rng.uniform(0, 0.05))
    cluster.probe()
    cluster.drain()
    cluster.expect(worker.process.poll() is None, "the worker ended")
    for id_, do in ids.items():
        # An attempt is not counted if the process dies before it has confirmed that it took the message: Celery's
        # pool then gives the message to the next process (on_partial_read in asynpool).
        cluster.expect(1 <= cluster.begun(id_) <= ATTEMPTS + 1, f"{do!r} was begun {cluster.begun(id_)} times")


def kill_parent(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A message kills its whole worker each time: it becomes a dead letter, and other messages are handled."""
    limit = 2
    for _ in range(rounds):
        for _ in range(FEW):
            cluster.send(seconds=rng.uniform(0, 0.05))
        poison = cluster.send("kill the worker")
        deaths = 0
        while deaths <= limit + 1 and not cluster.ended(poison):
            worker = cluster.start(may_die=True, broker_transport_options={"delivery_limit": limit})
            cluster.until(partial(_is_over, cluster, worker, poison), "its final event")
            if worker.process.poll() is not None:
                cluster.reap(worker)
                deaths += 1
        cluster.expect(cluster.begun(poison) <= limit + 1, f"it was begun {cluster.begun(poison)} times")
        if not cluster.workers:
            cluster.start()


def _is_over(cluster: Cluster, worker: Worker, id_: str) -> bool:
    return worker.process.poll() is not None or cluster.ended(id_)


def end_in_order(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker gets SIGTERM while messages wait: it finishes what it has begun."""
    for _ in range(rounds):
        worker = cluster.start()
        ids = [cluster.send(seconds=0.05) for _ in range(60)]
        cluster.until(lambda ids=ids: cluster.handled(*ids[:3]), "the first messages")  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.2))
        worker.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        cluster.reap(worker)
        cluster.expect(
            time.monotonic() - began <= SHUTDOWN_SECONDS, f"its end took {time.monotonic() - began:.1f} s"
        )
        cluster.expect(not worker.held, f"it left {len(worker.held)} messages unfinished")
    cluster.start()


def end_cold(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker gets SIGQUIT while it handles messages: the next worker handles them."""
    for _ in range(rounds):
        worker = cluster.start()
        for _ in range(40):
            cluster.send(seconds=0.1)
        time.sleep(rng.uniform(0.1, 0.5))
        worker.process.send_signal(signal.SIGQUIT)
        cluster.reap(worker)
    cluster.start()


def long_handler(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A handler takes longer than two leases while another worker is idle: it runs once."""
    cluster.start()
    cluster.start()
    ids = [cluster.send(seconds=2 * LEASE + rng.uniform(0, LEASE)) for _ in range(rounds)]
    cluster.until(lambda: cluster.handled(*ids), "their final events")
    for id_ in ids:
        cluster.expect(cluster.begun(id_) == 1, f"it was begun {cluster.begun(id_)} times")


def skewed_clock(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """One worker's clock is an hour ahead, another's behind: each message is handled once, none expires."""
    (cluster.folder / "sitecustomize.py").write_text(SKEW)
    path = os.pathsep.join(map(str, (cluster.folder, ROOT / "tests", ROOT)))
    cluster.start()
    for ahead in (4000, -4000):
        cluster.start(env={"PYTHONPATH": path, "FAULTS_SKEW": str(ahead)})
    ids = [cluster.send(seconds=LEASE + 1 + rng.uniform(0, 1)) for _ in range(3 * rounds)]
    cluster.until(lambda: cluster.handled(*ids), "their final events")
    for id_ in ids:
        cluster.expect(cluster.begun(id_) == 1, f"it was begun {cluster.begun(id_)} times")


def hard_limit(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Handlers exceed their time limit, which Celery reports twice: each message fails once."""
    worker = cluster.start(task_time_limit=1)
    ids = [cluster.send(seconds=60) for _ in range(2 * rounds)]
    cluster.until(lambda: all(cluster.ended(id_) for id_ in ids), "their final events")
    cluster.expect(worker.process.poll() is None, "the worker ended")


#: Shifts time.time and datetime by FAULTS_SKEW seconds; real datetimes remain instances of the shifted class.
SKEW = """
import datetime as module
import os
import time

ahead = float(os.environ.get("FAULTS_SKEW", "0"))
real_time, real = time.time, module.datetime
time.time = lambda: real_time() + ahead


class Meta(type):
    def __instancecheck__(cls, value):
        return isinstance(value, real)


class datetime(real, metaclass=Meta):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + module.timedelta(seconds=ahead)

    @classmethod
    def utcnow(cls):
        return real.utcnow() + module.timedelta(seconds=ahead)


module.datetime = datetime
"""
