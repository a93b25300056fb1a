"""Faults of servers and lines: brokers and databases killed, frozen and full, connections cut and half open."""

from __future__ import annotations

import random
import time

import psutil

from faults.cluster import Cluster

#: Seconds that a server is away or frozen, at least.
OUTAGE_SECONDS = 3.0
#: Seconds that a sender's message lives where the outcome of its sending is not known: then it has an end.
SHORT_TTL_SECONDS = 10.0


def broker_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker is killed under load, and started again with what it had on its disk."""
    worker = cluster.start()
    for _ in range(rounds):
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.5, 1))
            cluster.broker.kill()
            time.sleep(rng.uniform(0, OUTAGE_SECONDS))
            cluster.broker.start()
            time.sleep(1)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def broker_loses_data(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A broker without persistence is killed with messages in its queue: the ledger sends them again."""
    with cluster.system():
        for _ in range(rounds):
            for _ in range(20):
                cluster.send()
            time.sleep(rng.uniform(0, 0.5))
            cluster.broker.kill()
            cluster.broker.start()
            cluster.start()
            cluster.drain()
            cluster.kill()
        cluster.start()


def broker_frozen(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker freezes under load, for longer than anybody waits for it."""
    worker = cluster.start()
    for _ in range(rounds):
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.3, 0.6))
            cluster.broker.freeze()
            time.sleep(OUTAGE_SECONDS + rng.uniform(1, 3))
            cluster.broker.thaw()
            time.sleep(0.5)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def connections_cut(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """All connections to the broker are cut, again and again, under load."""
    assert cluster.worker_proxy is not None
    assert cluster.driver_proxy is not None
    worker = cluster.start()
    with cluster.load(ttl=SHORT_TTL_SECONDS):
        for _ in range(rounds):
            for _ in range(5):
                time.sleep(rng.uniform(0, 0.3))
                cluster.worker_proxy.cut()
                if rng.random() < 0.5:
                    cluster.driver_proxy.cut()
            time.sleep(0.5)
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def connections_cut_and_child_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's lines are cut, and processes of its pool are killed before it has connected again."""
    assert cluster.worker_proxy is not None
    worker = cluster.start(mingle=True)
    with cluster.load(ttl=None):
        for _ in range(rounds):
            time.sleep(rng.uniform(0.2, 0.6))
            parent = psutil.Process(worker.process.pid)
            parent.suspend()  # so that it sees the cut first
            cluster.worker_proxy.cut()
            for child in parent.children():
                child.kill()
            parent.resume()
            cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def connection_dead(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's line to the broker goes dead without a word, under load, and is never heard of again."""
    assert cluster.worker_proxy is not None
    # RabbitMQ and its consumers find each other dead after two heartbeats, which are two minutes by default.
    worker = cluster.start(broker_heartbeat=2)
    for _ in range(rounds):
        with cluster.load(ttl=None):
            time.sleep(rng.uniform(0.2, 0.6))
            cluster.worker_proxy.freeze()  # those that are open now; new ones work
            time.sleep(OUTAGE_SECONDS + 1)
        cluster.probe()
        cluster.worker_proxy.cut()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def reply_lost(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker has a message, and its answer to the sender is lost."""
    line = cluster.driver_proxy
    assert line is not None
    cluster.start()
    for number in range(rounds):
        cluster.send()
        id_ = f"{cluster.stack.name}-lost-{number}"
        line.lose_answer(id_.encode())
        cluster.send_payload({"do": "work"}, id_=id_, ttl=SHORT_TTL_SECONDS)
        cluster.expect(line.lost.wait(5), "no answer was lost")
        time.sleep(rng.uniform(0, 0.1))


def broker_full(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker takes nothing more, with messages in its queue: who sends is told, and they are handled."""
    for _ in range(rounds):
        worker = cluster.start()
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.3, 0.6))
            cluster.broker.fill()
            time.sleep(OUTAGE_SECONDS)
            cluster.broker.relieve()
            time.sleep(0.5)
        cluster.probe()
        cluster.expect(worker.process.poll() is None, "the worker came to an end")
        cluster.drain()
        cluster.kill()
    cluster.start()


def database_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The database is stopped as in a crash while messages are sent and handled, and started again."""
    worker = cluster.start()
    for _ in range(rounds):
        backlog = [cluster.send(seconds=0.05) for _ in range(60)]
        with cluster.load(ttl=None):
            time.sleep(rng.uniform(0.2, 0.5))
            cluster.postgres.stop()
            # Workers go on with what they have: they note it elsewhere.
            cluster.until(lambda backlog=backlog: cluster.handled(*backlog), "work without a database")  # type: ignore[misc]
            time.sleep(rng.uniform(0, OUTAGE_SECONDS))
            cluster.postgres.start()
            time.sleep(1)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def database_frozen(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The database freezes while messages are sent and handled: nobody waits longer than the deadline."""
    worker = cluster.start()
    for _ in range(rounds):
        backlog = [cluster.send(seconds=0.05) for _ in range(30)]
        with cluster.load(ttl=None):
            time.sleep(rng.uniform(0.2, 0.5))
            cluster.postgres.freeze()
            try:
                cluster.until(lambda backlog=backlog: cluster.handled(*backlog), "work without a database")  # type: ignore[misc]
                time.sleep(OUTAGE_SECONDS)
            finally:
                cluster.postgres.thaw()
            time.sleep(1)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker came to an end")
