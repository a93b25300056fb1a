"""The cache of the paused senders: how old it may be, and for what a send waits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from support import until

from waooaw_celery.errors import SenderPaused, StoreUnavailable
from waooaw_celery.store import restrictions as module
from waooaw_celery.store.restrictions import KnownRestrictions, Pause, Restrictions

NOBODY = KnownRestrictions({}, frozenset())
PAUSED = KnownRestrictions(
    {"a": Pause(agent="a", by="ada", since=module.datetime.now(module.UTC), reason=None)}, frozenset()
)


class Stored(Restrictions):
    """Restrictions in memory.

    Attributes:
        stored: what is stored; an exception is raised.
        gate: a read waits for it.
        reads: how often it was read.
        created_at: when it was created, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored: Any = NOBODY
        self.gate = threading.Event()
        self.gate.set()
        self.reads, self.created_at = 0, time.monotonic()

    def _read(self) -> KnownRestrictions:
        self.reads += 1
        assert self.gate.wait(30)
        if isinstance(self.stored, Exception):
            raise self.stored
        found: KnownRestrictions = self.stored
        return found

    def _pause(self, *_: Any) -> None: ...

    def _resume(self, agent: str) -> bool:
        return True

    def _set_limited(self, agent: str, limited: bool) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Stored:
    """Restrictions that were read once, with a cache of 50 ms."""
    monkeypatch.setattr(module, "CACHE_SECONDS", 0.05)
    restrictions = Stored()
    restrictions.check(["a"])
    return restrictions


def refuses(restrictions: Restrictions) -> bool:
    """Return whether the sender is refused."""
    try:
        restrictions.check(["a"])
    except SenderPaused:
        return True
    return False


def test_a_pause_is_noticed_without_a_round_trip_for_each_send(found: Stored) -> None:
    """Within the cache's time nothing is read."""
    while time.monotonic() - found.created_at < 0.04:
        found.check(["a"])
        assert found.reads == 1 or time.monotonic() - found.created_at > 0.05
    found.stored = PAUSED
    until(lambda: refuses(found), "the pause")
    found.stored = NOBODY
    until(lambda: not refuses(found), "its end")


def test_a_store_that_is_frozen_stops_no_send(found: Stored) -> None:
    """One thread waits for it. The others use what was read last."""
    found.gate.clear()
    until(lambda: found.check(["a"]) or found.reads == 2, "the read")
    began = time.monotonic()
    ends_at = began + 0.3
    until(lambda: found.check(["a"]) or time.monotonic() > ends_at, "some sends")
    assert found.reads == 2
    found.gate.set()


def test_a_process_that_was_idle_waits_for_the_store(found: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its first send would use what was true hours ago."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(module, "WAIT_SECONDS", 30.0)
    found.stored = PAUSED
    ends_at = time.monotonic() + 0.1
    until(lambda: time.monotonic() > ends_at, "the end of the cache")
    assert refuses(found)


def test_a_store_that_does_not_answer_is_asked_less_often_and_logged(
    found: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    """What was read last applies."""
    found.stored = StoreUnavailable("it is away")
    until(lambda: found.check(["a"]) or found.reads == 2, "the read")
    until(lambda: "it is away" in caplog.text, "the warning")
    ends_at = time.monotonic() + 0.2
    until(lambda: found.check(["a"]) or time.monotonic() > ends_at, "some sends")
    assert found.reads == 2


def test_the_own_change_of_a_process_holds_for_its_next_send(found: Stored) -> None:
    """It waits for the store."""
    found.stored = PAUSED
    found.pause("a", by="ada")
    assert refuses(found)
