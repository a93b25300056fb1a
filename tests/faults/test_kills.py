"""Workers that hold many messages on our transport are killed, and their messages are restored."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from faults.worker_group import LEASE, WAIT_SECONDS, own_worker_group

#: Maximum of seconds between a worker's first message and its kill.
KILL_WITHIN_SECONDS = 1.0


@pytest.mark.slow
def test_a_kill_of_a_worker_that_holds_many_loses_nothing(tmp_path: Path) -> None:
    """A worker with sixteen prefetched messages is killed five times under load."""
    rng = random.Random(1)  # noqa: S311 - no secret
    with own_worker_group(tmp_path, pool="solo", prefetch=16) as group:
        with group.load():
            for _ in range(5):
                group.start()
                time.sleep(rng.uniform(0, KILL_WITHIN_SECONDS))
                group.kill()
        group.start()
        group.drain(WAIT_SECONDS + 10 * LEASE)
        account = group.account()
    assert account.accepted == account.published > 100
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published


def test_a_new_worker_restores_messages_at_once(tmp_path: Path) -> None:
    """A new worker restores messages whose lease has ended when it starts, not only after its interval."""
    with own_worker_group(tmp_path, unacked_restore_interval=300) as group:
        group.start()
        id_ = group.publish(seconds=WAIT_SECONDS)
        group.until(lambda: group.redelivered_flags(id_), "the message")
        group.kill()
        group.until(lambda: group.overdue() == {id_}, "the end of the lease")
        group.start()
        group.until(lambda: group.redelivered_flags(id_) == [False, True], "the message again", 10)
