"""Faults of servers and lines: brokers and databases killed, frozen and full, connections cut and half open."""

from __future__ import annotations

import random
import time

import psutil

from faults.world import World

#: Seconds that a server is away or frozen, at least.
AWAY = 3.0
#: Seconds that a sender's message lives where the outcome of its sending is not known: then it has an end.
SHORT = 10.0


def broker_killed(world: World, rounds: int, chance: random.Random) -> None:
    """The broker is killed under load, and started again with what it had on its disk."""
    worker = world.start()
    for _ in range(rounds):
        with world.load(ttl=SHORT):
            time.sleep(chance.uniform(0.5, 1))
            world.broker.kill()
            time.sleep(chance.uniform(0, AWAY))
            world.broker.start()
            time.sleep(1)
        world.probe()
    world.expect(worker.process.poll() is None, "the worker came to an end")


def broker_forgets(world: World, rounds: int, chance: random.Random) -> None:
    """A broker without persistence is killed with messages in its queue: the ledger sends them again."""
    with world.system():
        for _ in range(rounds):
            for _ in range(20):
                world.send()
            time.sleep(chance.uniform(0, 0.5))
            world.broker.kill()
            world.broker.start()
            world.start()
            world.drain()
            world.kill()
        world.start()


def broker_frozen(world: World, rounds: int, chance: random.Random) -> None:
    """The broker freezes under load, for longer than anybody waits for it."""
    worker = world.start()
    for _ in range(rounds):
        with world.load(ttl=SHORT):
            time.sleep(chance.uniform(0.3, 0.6))
            world.broker.freeze()
            time.sleep(AWAY + chance.uniform(1, 3))
            world.broker.thaw()
            time.sleep(0.5)
        world.probe()
    world.expect(worker.process.poll() is None, "the worker came to an end")


def line_cut(world: World, rounds: int, chance: random.Random) -> None:
    """All connections to the broker are cut, again and again, under load."""
    assert world.worker_line is not None
    assert world.driver_line is not None
    worker = world.start()
    with world.load(ttl=SHORT):
        for _ in range(rounds):
            for _ in range(5):
                time.sleep(chance.uniform(0, 0.3))
                world.worker_line.cut()
                if chance.random() < 0.5:
                    world.driver_line.cut()
            time.sleep(0.5)
    world.expect(worker.process.poll() is None, "the worker came to an end")


def line_cut_and_child_killed(world: World, rounds: int, chance: random.Random) -> None:
    """The worker's lines are cut, and processes of its pool are killed before it has connected again."""
    assert world.worker_line is not None
    worker = world.start(mingles=True)
    with world.load(ttl=None):
        for _ in range(rounds):
            time.sleep(chance.uniform(0.2, 0.6))
            parent = psutil.Process(worker.process.pid)
            parent.suspend()  # so that it sees the cut first
            world.worker_line.cut()
            for child in parent.children():
                child.kill()
            parent.resume()
            world.probe()
    world.expect(worker.process.poll() is None, "the worker came to an end")


def line_dead(world: World, rounds: int, chance: random.Random) -> None:
    """The worker's line to the broker goes dead without a word, under load, and is never heard of again."""
    assert world.worker_line is not None
    # RabbitMQ and its consumers find each other dead after two heartbeats, which are two minutes by default.
    worker = world.start(broker_heartbeat=2)
    for _ in range(rounds):
        with world.load(ttl=None):
            time.sleep(chance.uniform(0.2, 0.6))
            world.worker_line.freeze()  # those that are open now; new ones work
            time.sleep(AWAY + 1)
        world.probe()
        world.worker_line.cut()
    world.expect(worker.process.poll() is None, "the worker came to an end")


def answer_lost(world: World, rounds: int, chance: random.Random) -> None:
    """The broker has a message, and its answer to the sender is lost."""
    line = world.driver_line
    assert line is not None
    world.start()
    for number in range(rounds):
        world.send()
        id_ = f"{world.stack.name}-lost-{number}"
        line.lose_answer(id_.encode())
        world.say({"do": "work"}, id_=id_, ttl=SHORT)
        world.expect(line.lost.wait(5), "no answer was lost")
        time.sleep(chance.uniform(0, 0.1))


def broker_full(world: World, rounds: int, chance: random.Random) -> None:
    """The broker takes nothing more, with messages in its queue: who sends is told, and they are handled."""
    for _ in range(rounds):
        worker = world.start()
        with world.load(ttl=SHORT):
            time.sleep(chance.uniform(0.3, 0.6))
            world.broker.fill()
            time.sleep(AWAY)
            world.broker.relieve()
            time.sleep(0.5)
        world.probe()
        world.expect(worker.process.poll() is None, "the worker came to an end")
        world.drain()
        world.kill()
    world.start()


def database_killed(world: World, rounds: int, chance: random.Random) -> None:
    """The database is stopped as in a crash while messages are sent and handled, and started again."""
    worker = world.start()
    for _ in range(rounds):
        backlog = [world.send(seconds=0.05) for _ in range(60)]
        with world.load(ttl=None):
            time.sleep(chance.uniform(0.2, 0.5))
            world.postgres.stop()
            # Workers go on with what they have: they note it elsewhere.
            world.until(lambda backlog=backlog: world.handled(*backlog), "work without a database")  # type: ignore[misc]
            time.sleep(chance.uniform(0, AWAY))
            world.postgres.start()
            time.sleep(1)
        world.probe()
    world.expect(worker.process.poll() is None, "the worker came to an end")


def database_frozen(world: World, rounds: int, chance: random.Random) -> None:
    """The database freezes while messages are sent and handled: nobody waits longer than the deadline."""
    worker = world.start()
    for _ in range(rounds):
        backlog = [world.send(seconds=0.05) for _ in range(30)]
        with world.load(ttl=None):
            time.sleep(chance.uniform(0.2, 0.5))
            world.postgres.freeze()
            try:
                world.until(lambda backlog=backlog: world.handled(*backlog), "work without a database")  # type: ignore[misc]
                time.sleep(AWAY)
            finally:
                world.postgres.thaw()
            time.sleep(1)
        world.probe()
    world.expect(worker.process.poll() is None, "the worker came to an end")
