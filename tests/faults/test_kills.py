"""Workers of our transport alone that hold many messages are killed, and what they left is looked for."""

from __future__ import annotations

import random
import time
from pathlib import Path

from faults.worker_group import LEASE, PATIENCE, own_worker_group

#: Seconds within which a kill falls after the first message of a worker.
KILL_WITHIN_SECONDS = 1.0


def test_a_kill_of_a_worker_that_holds_many_loses_nothing(tmp_path: Path) -> None:
    """It is killed at random moments under load, five times, with sixteen messages fetched ahead."""
    moments = random.Random(1)  # noqa: S311 - no secret
    with own_worker_group(tmp_path, pool="solo", prefetch=16) as group:
        with group.load():
            for _ in range(5):
                group.start()
                time.sleep(moments.uniform(0, KILL_WITHIN_SECONDS))  # the moment of the kill is what is random
                group.kill()
        group.start()
        group.drain(PATIENCE + 10 * LEASE)
        account = group.account()
    assert account.accepted == account.published > 100
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published


def test_a_new_worker_looks_at_once_for_what_others_left(tmp_path: Path) -> None:
    """What a killed worker held, whose lease is over, does not wait until its successor has lived for a while."""
    with own_worker_group(tmp_path, unacked_restore_interval=300) as group:
        group.start()
        id_ = group.publish(seconds=PATIENCE)
        group.until(lambda: group.redelivered_flags(id_), "the message")
        group.kill()
        group.until(lambda: group.overdue() == {id_}, "the end of the lease")
        group.start()
        group.until(lambda: group.redelivered_flags(id_) == [False, True], "the message again", 10)
