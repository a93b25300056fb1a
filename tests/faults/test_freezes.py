"""A worker freezes for longer than its lease while another worker runs, and then continues."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest

from faults.worker_group import WorkerGroup, own_worker_group


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_late_acknowledgement_does_no_harm(pool: str, tmp_path: Path) -> None:
    """Another worker handles the message; the late acknowledgement of the first removes nothing."""
    with (
        own_worker_group(tmp_path, pool=pool) as group,
        closing(WorkerGroup(group.server, tmp_path, pool=pool, name="other")) as other,
    ):
        group.start()
        held = group.publish(seconds=0.5)
        group.until(lambda: group.redelivered_flags(held), "the message")
        group.send(signal.SIGSTOP)
        later = [group.publish() for _ in range(5)]
        other.start()
        group.until(
            lambda: sorted(group.redelivered_flags(held)) == [False, True], "its beginning by the other one"
        )
        group.until(lambda: group.handled(held, *later), "the end of all messages")
        group.send(signal.SIGCONT)
        with group.load():
            before = len(group.effects())
            group.until(lambda: len({effect.pid for effect in group.effects()[before:]}) == 2, "work for both")
        group.drain()
        account = group.account()
        assert group.worker is not None
        assert group.worker.poll() is None
    assert not account.lost
    assert not account.dead
    assert account.handled == account.published
