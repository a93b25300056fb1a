"""Faults of workers: killed, frozen, ended in order, and taken down by the messages that they handle."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial

from faults.stacks import LEASE, ROOT
from faults.world import Worker, World

#: Seconds within which a kill falls after the first message of a worker.
SOON = 1.0
#: Messages that are sent to a frozen worker.
FEW = 5
#: Seconds within which a worker ends that is asked to, while its handlers take tenths of a second.
ORDERLY = 15.0
#: What takes its process down each time, or would.
KILLERS = ("kill", "crash", "run out of memory", "exit")
#: How often a message is begun whose handler takes its process down.
ATTEMPTS = 4


def kill_under_load(world: World, rounds: int, chance: random.Random) -> None:
    """The worker's parent is killed at a random moment while messages are sent, and another one started."""
    with world.load():
        for _ in range(rounds):
            world.start()
            time.sleep(chance.uniform(0, SOON))  # the moment of the kill is what is random
            world.kill()
    world.start()


def kill_once(world: World, rounds: int, chance: random.Random) -> None:
    """The same with handlers whose effect happens once: it does, also where the handler ran twice."""
    with world.load(once=True):
        for _ in range(rounds):
            world.start()
            time.sleep(chance.uniform(0, SOON))
            world.kill()
    world.start()
    world.drain()
    counts = dict(world.stack.ask("SELECT id, count(*) FROM faults_effects GROUP BY id"))
    several = [id_ for id_, count in counts.items() if count > 1]
    world.expect(not several, f"{len(several)} effects happened more than once")
    handled = dict(world.stack.ask("SELECT message_id, handler FROM waooaw_messages"))
    missing = [id_ for id_, ends in world.stack.ends().items() if ends[0].event == "handled"]
    missing = [id_ for id_ in missing if handled.get(id_) == "query" and id_ not in counts]
    world.expect(not missing, f"{len(missing)} effects did not happen")


def kill_frozen(world: World, rounds: int, chance: random.Random) -> None:
    """The worker's parent freezes, messages are sent, and it is killed; every other time amid load."""
    worker = world.start()
    for number in range(rounds):
        if number % 2:
            for _ in range(chance.randint(1, 30)):
                world.send()
        else:
            world.drain()
            time.sleep(chance.uniform(0, 0.5))  # an idle worker waits in turns: any of them may be met
        worker.process.send_signal(signal.SIGSTOP)
        for _ in range(FEW):
            world.send()
        world.kill(worker)
        worker = world.start()


def kill_child(world: World, rounds: int, chance: random.Random) -> None:
    """A process of the pool is killed while it handles a message, once for each such message."""
    worker = world.start()
    with world.load():
        for _ in range(rounds):
            id_ = world.send("kill once", seconds=chance.uniform(0, 0.1))
            world.until(lambda id_=id_: world.handled(id_), "its second attempt", 15)  # type: ignore[misc]
    world.expect(worker.process.poll() is None, "the worker came to an end")


def killers(world: World, rounds: int, chance: random.Random) -> None:
    """Messages kill, crash or leave the process that handles them each time: they fail, and others do not."""
    worker = world.start()
    ids: dict[str, str] = {}
    for _ in range(rounds):
        ids |= {world.send(do): do for do in KILLERS}
        for _ in range(FEW):
            world.send(seconds=chance.uniform(0, 0.05))
    world.probe()
    world.drain()
    world.expect(worker.process.poll() is None, "the worker came to an end")
    for id_, do in ids.items():
        # A process that dies before it has said that it took a message has had an attempt that nobody counts:
        # Celery's pool hands the message to the next one (asynpool's on_partial_read).
        world.expect(1 <= world.begun(id_) <= ATTEMPTS + 1, f"{do!r} was begun {world.begun(id_)} times")


def kill_parent(world: World, rounds: int, chance: random.Random) -> None:
    """A message kills its whole worker each time: it is a dead letter in the end, and others are handled."""
    limit = 2
    for _ in range(rounds):
        for _ in range(FEW):
            world.send(seconds=chance.uniform(0, 0.05))
        poison = world.send("kill the worker")
        deaths = 0
        while deaths <= limit + 1 and not world.ended(poison):
            worker = world.start(may_die=True, broker_transport_options={"delivery_limit": limit})
            world.until(partial(_over, world, worker, poison), "its end")
            if worker.process.poll() is not None:
                world.bury(worker)
                deaths += 1
        world.expect(world.begun(poison) <= limit + 1, f"it was begun {world.begun(poison)} times")
        if not world.workers:
            world.start()


def _over(world: World, worker: Worker, id_: str) -> bool:
    return worker.process.poll() is not None or world.ended(id_)


def end_in_order(world: World, rounds: int, chance: random.Random) -> None:
    """The worker is asked to end while messages wait, with the package's own prefetch: nothing is done twice."""
    for _ in range(rounds):
        worker = world.start()
        ids = [world.send(seconds=0.05) for _ in range(60)]
        world.until(lambda ids=ids: world.handled(*ids[:3]), "the first messages")  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.2))
        worker.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        world.bury(worker)
        world.expect(time.monotonic() - began <= ORDERLY, f"its end took {time.monotonic() - began:.1f} s")
        world.expect(not worker.held, f"it left {len(worker.held)} messages half done")
    world.start()


def end_cold(world: World, rounds: int, chance: random.Random) -> None:
    """The worker is told to end at once, while it handles messages: they are handled by the next one."""
    for _ in range(rounds):
        worker = world.start()
        for _ in range(40):
            world.send(seconds=0.1)
        time.sleep(chance.uniform(0.1, 0.5))
        worker.process.send_signal(signal.SIGQUIT)
        world.bury(worker)
    world.start()


def long_handler(world: World, rounds: int, chance: random.Random) -> None:
    """A handler takes several leases, while another worker idles: it runs once."""
    world.start()
    world.start()
    ids = [world.send(seconds=2 * LEASE + chance.uniform(0, LEASE)) for _ in range(rounds)]
    world.until(lambda: world.handled(*ids), "their ends")
    for id_ in ids:
        world.expect(world.begun(id_) == 1, f"it was begun {world.begun(id_)} times")


def skewed_clock(world: World, rounds: int, chance: random.Random) -> None:
    """One worker's clock is an hour ahead, another's behind: each message is handled once, and none expires."""
    (world.folder / "sitecustomize.py").write_text(SKEW)
    path = os.pathsep.join(map(str, (world.folder, ROOT / "tests", ROOT)))
    world.start()
    for ahead in (4000, -4000):
        world.start(env={"PYTHONPATH": path, "FAULTS_SKEW": str(ahead)})
    ids = [world.send(seconds=LEASE + 1 + chance.uniform(0, 1)) for _ in range(3 * rounds)]
    world.until(lambda: world.handled(*ids), "their ends")
    for id_ in ids:
        world.expect(world.begun(id_) == 1, f"it was begun {world.begun(id_)} times")


def hard_limit(world: World, rounds: int, chance: random.Random) -> None:
    """Handlers exceed their time limit, of which Celery tells twice: each fails once."""
    worker = world.start(task_time_limit=1)
    ids = [world.send(seconds=60) for _ in range(2 * rounds)]
    world.until(lambda: all(world.ended(id_) for id_ in ids), "their ends")
    world.expect(worker.process.poll() is None, "the worker came to an end")


#: Both clocks of Python, ahead by a while; base classes are taken for the class that stands in their place.
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
