"""A worker freezes for longer than its lease while another one lives, and goes on afterwards."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest

from faults.lane import Lane, lone_lane


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_that_wakes_up_late_harms_nobody(pool: str, tmp_path: Path) -> None:
    """What it held was handled by another one; it goes on, and its late word takes nothing away."""
    with (
        lone_lane(tmp_path, pool=pool) as lane,
        closing(Lane(lane.server, tmp_path, pool=pool, name="other")) as other,
    ):
        lane.start()
        held = lane.publish(seconds=0.5)
        lane.until(lambda: lane.beginnings(held), "the message")
        lane.send(signal.SIGSTOP)
        later = [lane.publish() for _ in range(5)]
        other.start()
        lane.until(lambda: sorted(lane.beginnings(held)) == [False, True], "its beginning by the other one")
        lane.until(lambda: lane.handled(held, *later), "the end of them all")
        lane.send(signal.SIGCONT)
        with lane.load():
            before = len(lane.effects())
            lane.until(lambda: len({effect.pid for effect in lane.effects()[before:]}) == 2, "work for both")
        lane.drain()
        account = lane.account()
        assert lane.worker is not None
        assert lane.worker.poll() is None
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published
