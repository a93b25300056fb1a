"""The faults that are repeated many times: killed under load, frozen before the kill, and all kinds in turns."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from faults.lane import LEASE, TIMEOUT, Account, Lane, lone_lane

#: What the long form runs side by side, and how its workers are made.
LANES: dict[str, dict[str, Any]] = {
    "prefork 1": {"pool": "prefork", "processes": 1},
    "prefork 2": {"pool": "prefork", "processes": 2},
    "solo": {"pool": "solo", "processes": 1},
    "solo, 16": {"pool": "solo", "processes": 1, "prefetch": 16},
}

#: Seconds that draining may take beside the leases: a computer may be busy.
PATIENCE = 60.0 + 10 * LEASE
#: Seconds within which a kill falls after the first message of a worker.
SOON = 1.0
#: Seconds within which work goes on after a fault is over.
SLOW = 20.0
#: Messages that are published to a frozen worker.
FEW = 5


def kill_under_load(lane: Lane, kills: int, seed: int) -> Account:
    """Kill the worker's parent at random moments while messages are published, and count them all.

    Args:
        lane: where.
        kills: how many times.
        seed: of the moments.
    """
    moments = random.Random(seed)  # noqa: S311 - no secret
    with lane.load():
        for _ in range(kills):
            lane.start()
            time.sleep(moments.uniform(0, SOON))  # the moment of the kill is what is random
            lane.kill()
    lane.start()
    lane.drain(PATIENCE)
    return lane.account()


def kill_frozen(lane: Lane, stops: int, seed: int) -> Account:
    """Freeze the worker's parent, publish a few messages, kill it, and count them all; every other time amid load.

    Args:
        lane: where.
        stops: how many times.
        seed: of the moments.
    """
    moments = random.Random(seed)  # noqa: S311 - no secret
    lane.start()
    for number in range(stops):
        lane.drain(PATIENCE)
        if number % 2:
            for _ in range(moments.randint(1, 30)):
                lane.publish()
        else:
            time.sleep(moments.uniform(0, 0.5))  # an idle worker waits in turns: any of them may be met
        lane.send(signal.SIGSTOP)
        for _ in range(FEW):
            lane.publish()
        lane.kill()
        lane.start()
    lane.drain(PATIENCE)
    return lane.account()


def all_kinds(lane: Lane, count: int, seed: int) -> Account:
    """End the worker or its server in a random way, see that work goes on, and count all messages.

    Args:
        lane: where; its server keeps a log of all commands.
        count: how many times.
        seed: of the kinds and the moments.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    lane.start()
    with lane.load():
        for number in range(count):
            kind = chance.choice(
                ("kill", "end", "kill the server", "freeze the server", "freeze the server shortly")
            )
            moment = chance.random()
            if kind == "kill":
                lane.kill()
                lane.start()
            elif kind == "end":
                lane.send(signal.SIGTERM)
                lane.bury()
                lane.start()
            elif kind == "kill the server":
                lane.server.kill()
                time.sleep(2 * moment)
                lane.server.start()
            else:
                short = kind.endswith("shortly")
                lane.server.freeze()
                time.sleep(TIMEOUT * (moment if short else 1 + moment))
                lane.server.thaw()
            lane.progress(SLOW, f"progress after fault {number + 1}, {kind!r},")
            time.sleep(moment / 2)
        lane.progress(SLOW, "progress at last")
    lane.drain(PATIENCE)
    return lane.account()


FAULTS = {"under load": kill_under_load, "frozen": kill_frozen, "all kinds": all_kinds}


def run(transport: str, fault: str, workers: str, count: int, seed: int) -> Account:
    """Run one fault in one lane, in a process of its own."""
    name = f"{fault}-{workers}-".replace(" ", "-").replace(",", "")
    with (
        tempfile.TemporaryDirectory(prefix="waooaw-lane-") as folder,
        lone_lane(transport, Path(folder), name=name, **LANES[workers]) as lane,
    ):
        return FAULTS[fault](lane, count, seed)
