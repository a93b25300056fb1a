"""Workers of our transport alone that hold many messages are killed, and what they left is looked for."""

from __future__ import annotations

import random
import time
from pathlib import Path

from faults.lane import LEASE, PATIENCE, lone_lane

#: Seconds within which a kill falls after the first message of a worker.
SOON = 1.0


def test_a_kill_of_a_worker_that_holds_many_loses_nothing(tmp_path: Path) -> None:
    """It is killed at random moments under load, five times, with sixteen messages fetched ahead."""
    moments = random.Random(1)  # noqa: S311 - no secret
    with lone_lane(tmp_path, pool="solo", prefetch=16) as lane:
        with lane.load():
            for _ in range(5):
                lane.start()
                time.sleep(moments.uniform(0, SOON))  # the moment of the kill is what is random
                lane.kill()
        lane.start()
        lane.drain(PATIENCE + 10 * LEASE)
        account = lane.account()
    assert account.accepted == account.published > 100
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published


def test_a_new_worker_looks_at_once_for_what_others_left(tmp_path: Path) -> None:
    """What a killed worker held, whose lease is over, does not wait until its successor has lived for a while."""
    with lone_lane(tmp_path, unacked_restore_interval=300) as lane:
        lane.start()
        id_ = lane.publish(seconds=PATIENCE)
        lane.until(lambda: lane.beginnings(id_), "the message")
        lane.kill()
        lane.until(lambda: lane.overdue() == {id_}, "the end of the lease")
        lane.start()
        lane.until(lambda: lane.beginnings(id_) == [False, True], "the message again", 10)
