"""Workers end in order with a backlog, and by a message that kills them each time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from faults.app import POISON
from faults.lane import lone_lane

#: Messages that a worker fetches ahead.
AHEAD = 16


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_an_orderly_end_leaves_nothing_behind(pool: str, how: signal.Signals, tmp_path: Path) -> None:
    """Nothing is lost, nothing waits for a lease, and nothing is marked as redelivered that Celery did not have.

    A pool of processes is handed all that is fetched ahead at once; a solo one gets a message when it begins.
    """
    with lone_lane(tmp_path, pool=pool, prefetch=AHEAD) as lane:
        ids = [lane.publish(seconds=0.05) for _ in range(40)]
        lane.start()
        lane.until(lambda: lane.handled(*ids[:3]), "the first messages")
        lane.send(how)
        lane.bury()
        begun = {effect.id for effect in lane.effects()}
        waiting = lane.waiting()
        assert waiting, "the end came too late to tell"
        assert not lane.held()
        marked = {message["headers"]["id"] for message in waiting if message["headers"].get("redelivered")}
        assert marked <= (begun if pool == "solo" else set(ids[: len(begun) + AHEAD]))
        lane.start()
        lane.drain()
        account = lane.account()
    assert not account.lost
    assert not account.dead


def test_a_poisonous_message_becomes_a_dead_letter(tmp_path: Path) -> None:
    """A message that kills its worker each time is a dead letter after the limit; its neighbours are handled."""
    limit = 1
    with lone_lane(tmp_path, delivery_limit=limit) as lane:
        neighbours = [lane.publish() for _ in range(5)]
        poison = lane.publish(task=POISON)
        neighbours += [lane.publish() for _ in range(5)]
        for _ in range(limit + 1):
            lane.start()
            worker = lane.worker
            assert worker is not None
            lane.until(lambda worker=worker: worker.poll() is not None, "the death of the worker")  # type: ignore[misc]
            lane.bury()
        lane.start()
        lane.drain()
        assert lane.dead() == {poison}
        assert len(lane.beginnings(poison)) == limit + 1
        assert lane.handled(*neighbours)
        assert not lane.account().lost
