"""Faults of servers and connections: killed, frozen and full servers, cut and half-open connections."""

from __future__ import annotations

import random
import time

import psutil

from faults.cluster import Cluster

#: Minimum of seconds for which a server is down or frozen.
OUTAGE_SECONDS = 3.0
#: Time to live, in seconds, of messages whose outcome may be unknown, so that each gets a final event.
SHORT_TTL_SECONDS = 10.0


def broker_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker is killed under load, and restarted with its data on disk."""
    worker = cluster.start()
    for _ in range(rounds):
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.5, 1))
            cluster.broker.kill()
            time.sleep(rng.uniform(0, OUTAGE_SECONDS))
            cluster.broker.start()
            time.sleep(1)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker ended")


def broker_loses_data(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A broker without persistence is killed with messages in its queue: recovery publishes them again."""
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
    """The broker freezes under load, for longer than every timeout."""
    worker = cluster.start()
    for _ in range(rounds):
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.3, 0.6))
            cluster.broker.freeze()
            time.sleep(OUTAGE_SECONDS + rng.uniform(1, 3))
            cluster.broker.thaw()
            time.sleep(0.5)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker ended")


def connections_cut(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """All connections to the broker are cut repeatedly under load."""
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
    cluster.expect(worker.process.poll() is None, "the worker ended")


def connections_cut_and_child_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's connections are cut, and pool processes are killed before it reconnects."""
    assert cluster.worker_proxy is not None
    worker = cluster.start(mingle=True)
    with cluster.load(ttl=None):
        for _ in range(rounds):
            time.sleep(rng.uniform(0.2, 0.6))
            parent = psutil.Process(worker.process.pid)
            parent.suspend()  # so that it notices the cut first
            cluster.worker_proxy.cut()
            for child in parent.children():
                child.kill()
            parent.resume()
            cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker ended")


def connection_dead(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The worker's open connections to the broker stop without being closed, under load."""
    assert cluster.worker_proxy is not None
    # RabbitMQ and its consumers notice a dead connection after two heartbeats, two minutes by default.
    worker = cluster.start(broker_heartbeat=2)
    for _ in range(rounds):
        with cluster.load(ttl=None):
            time.sleep(rng.uniform(0.2, 0.6))
            cluster.worker_proxy.freeze()  # the open connections only; new ones work
            time.sleep(OUTAGE_SECONDS + 1)
        cluster.probe()
        cluster.worker_proxy.cut()
    cluster.expect(worker.process.poll() is None, "the worker ended")


def reply_lost(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker accepts a message, but its reply to the sender is lost."""
    proxy = cluster.driver_proxy
    assert proxy is not None
    cluster.start()
    for number in range(rounds):
        cluster.send()
        id_ = f"{cluster.stack.name}-lost-{number}"
        proxy.lose_answer(id_.encode())
        cluster.send_payload({"do": "work"}, id_=id_, ttl=SHORT_TTL_SECONDS)
        cluster.expect(proxy.lost.wait(5), "no reply was lost")
        time.sleep(rng.uniform(0, 0.1))


def broker_full(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The broker is full: sends are refused, and the messages in its queue are handled."""
    for _ in range(rounds):
        worker = cluster.start()
        with cluster.load(ttl=SHORT_TTL_SECONDS):
            time.sleep(rng.uniform(0.3, 0.6))
            cluster.broker.fill()
            time.sleep(OUTAGE_SECONDS)
            cluster.broker.relieve()
            time.sleep(0.5)
        cluster.probe()
        cluster.expect(worker.process.poll() is None, "the worker ended")
        cluster.drain()
        cluster.kill()
    cluster.start()


def database_killed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The database crashes while messages are sent and handled, and is restarted."""
    worker = cluster.start()
    for _ in range(rounds):
        backlog = [cluster.send(seconds=0.05) for _ in range(60)]
        with cluster.load(ttl=None):
            time.sleep(rng.uniform(0.2, 0.5))
            cluster.postgres.stop()
            # Workers continue with the messages that they have, and write to their spool.
            cluster.until(lambda backlog=backlog: cluster.handled(*backlog), "work without a database")  # type: ignore[misc]
            time.sleep(rng.uniform(0, OUTAGE_SECONDS))
            cluster.postgres.start()
            time.sleep(1)
        cluster.probe()
    cluster.expect(worker.process.poll() is None, "the worker ended")


def database_frozen(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The database freezes while messages are sent and handled: no call exceeds its deadline."""
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
    cluster.expect(worker.process.poll() is None, "the worker ended")
