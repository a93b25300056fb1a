"""Workers shut down with a backlog, and are killed by a message each time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from faults.app import POISON
from faults.worker_group import own_worker_group

#: Messages that a worker prefetches.
PREFETCH = 16


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_a_shutdown_returns_prefetched_messages(pool: str, how: signal.Signals, tmp_path: Path) -> None:
    """No message is lost or waits for its lease, and only messages that Celery had are marked as redelivered.

    A prefork pool gets all prefetched messages at once; a solo pool gets each message when it begins it.
    """
    with own_worker_group(tmp_path, pool=pool, prefetch=PREFETCH) as group:
        ids = [group.publish(seconds=0.05) for _ in range(40)]
        group.start()
        group.until(lambda: group.handled(*ids[:3]), "the first messages")
        group.send(how)
        group.reap()
        begun = {effect.id for effect in group.effects()}
        waiting = group.waiting()
        assert waiting, "the shutdown came too late for this test"
        assert not group.held()
        marked = {message["headers"]["id"] for message in waiting if message["headers"].get("redelivered")}
        assert marked <= (begun if pool == "solo" else set(ids[: len(begun) + PREFETCH]))
        group.start()
        group.drain()
        account = group.account()
    assert not account.lost
    assert not account.dead


def test_a_poisonous_message_becomes_a_dead_letter(tmp_path: Path) -> None:
    """A message that kills its worker each time becomes a dead letter; others are handled."""
    limit = 1
    with own_worker_group(tmp_path, delivery_limit=limit) as group:
        neighbours = [group.publish() for _ in range(5)]
        poison = group.publish(task=POISON)
        neighbours += [group.publish() for _ in range(5)]
        for _ in range(limit + 1):
            group.start()
            worker = group.worker
            assert worker is not None
            group.until(lambda worker=worker: worker.poll() is not None, "the death of the worker")  # type: ignore[misc]
            group.reap()
        group.start()
        group.drain()
        assert group.dead() == {poison}
        assert len(group.redelivered_flags(poison)) == limit + 1
        assert group.handled(*neighbours)
        assert not group.account().lost
