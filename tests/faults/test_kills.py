"""Workers are killed under load, and after they froze: our transport loses nothing, and stock Celery does."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.lane import PATIENCE, lone_lane
from faults.rounds import LANES, kill_frozen, kill_under_load


@pytest.mark.parametrize("workers", ["prefork 1", "solo, 16 ahead"])
def test_a_kill_under_load_loses_nothing(workers: str, tmp_path: Path) -> None:
    """A worker is killed at random moments under load, five times: all that was accepted was handled."""
    with lone_lane("ours", tmp_path, **LANES[workers]) as lane:
        account = kill_under_load(lane, 5, seed=1)
    assert account.accepted == account.published > 100
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published


def test_a_kill_of_a_frozen_worker_loses_nothing(tmp_path: Path) -> None:
    """A worker freezes, messages arrive, it is killed, five times: all that was accepted was handled."""
    with lone_lane("ours", tmp_path) as lane:
        account = kill_frozen(lane, 5, seed=1)
    assert account.accepted == account.published
    assert not account.lost
    assert not account.dead


def test_a_new_worker_looks_at_once_for_what_others_left(tmp_path: Path) -> None:
    """What a killed worker held, whose lease is over, does not wait until its successor has lived for a while."""
    with lone_lane("ours", tmp_path, unacked_restore_interval=300) as lane:
        lane.start()
        id_ = lane.publish(seconds=PATIENCE)
        lane.until(lambda: id_ in {effect.id for effect in lane.effects()}, "the message")
        lane.kill()
        lane.until(lambda: lane.overdue() == {id_}, "the end of the lease")
        lane.start()
        lane.until(lambda: [effect.id for effect in lane.effects()].count(id_) == 2, "the message again", 10)


def test_this_would_see_a_loss(tmp_path: Path) -> None:
    """The same on Kombu's own transport loses messages, at least one, so that the tests above can fail."""
    with lone_lane("kombu", tmp_path) as lane:
        account = kill_frozen(lane, 3, seed=1)
    assert account.lost
