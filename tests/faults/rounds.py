"""Faults of our transport alone, in a plain Celery application: killed under load, and frozen before the kill."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

from faults.lane import LEASE, Account, Lane

#: How workers are made.
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
