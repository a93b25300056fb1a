"""All kinds of faults in turns, under load: what holds for each may not hold for two, one after the other."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import psutil

from faults.of_servers import SHORT
from faults.world import World

#: How much more of everything there may be in the end: threads, open files, connections to the database.
MORE = 10


def chaos(world: World, rounds: int, chance: random.Random) -> None:
    """Workers and servers meet a random fault each round, while messages are sent and the system's worker runs."""
    kinds: tuple[Callable[[World, random.Random], None], ...] = (
        _kill_worker,
        _end_worker,
        _kill_child,
        _kill_broker,
        _freeze_broker,
        _stop_database,
        _freeze_database,
    )
    with world.system():
        world.start()
        before = _resources(world)
        for _ in range(rounds):
            kind = chance.choice(kinds)
            with world.load(ttl=6 * SHORT):
                time.sleep(chance.uniform(0.2, 0.5))
                kind(world, chance)
                time.sleep(chance.uniform(0.2, 0.5))
            took = world.probe()
            if took == float("inf"):
                world.expect(False, f"nothing was handled after {kind.__name__}")
        world.drain()
        after = _resources(world)
        for name, count in before.items():
            world.expect(after[name] <= count + MORE, f"I8: {name}: {count} before, {after[name]} after")


def _resources(world: World) -> dict[str, int]:
    me = psutil.Process()
    [[connections]] = world.stack.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    return {
        "threads": threading.active_count(),
        "files": me.num_fds(),
        "connections to the database": int(connections),
        "MiB": me.memory_info().rss >> 20,
    }


def _kill_worker(world: World, chance: random.Random) -> None:
    world.kill()
    world.start()


def _end_worker(world: World, chance: random.Random) -> None:
    worker = world.workers[-1]
    worker.process.send_signal(signal.SIGTERM)
    world.bury(worker)
    world.start()


def _kill_child(world: World, chance: random.Random) -> None:
    children = psutil.Process(world.workers[-1].process.pid).children()
    if children:
        os.kill(chance.choice(children).pid, signal.SIGKILL)


def _kill_broker(world: World, chance: random.Random) -> None:
    world.broker.kill()
    time.sleep(chance.uniform(0, 2))
    world.broker.start()


def _freeze_broker(world: World, chance: random.Random) -> None:
    world.broker.freeze()
    time.sleep(chance.uniform(0.5, 5))
    world.broker.thaw()


def _stop_database(world: World, chance: random.Random) -> None:
    world.postgres.stop()
    time.sleep(chance.uniform(0, 3))
    world.postgres.start()


def _freeze_database(world: World, chance: random.Random) -> None:
    world.postgres.freeze()
    try:
        time.sleep(chance.uniform(0.5, 5))
    finally:
        world.postgres.thaw()
