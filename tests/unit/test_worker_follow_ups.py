"""Follow-ups that could not be sent are kept, sent later, and never sent twice; what is dropped is logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support import until

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.worker.outcomes import follow_ups as module
from waooaw_celery.worker.outcomes.follow_ups import FollowUp, FollowUps

AWAY = StoreUnavailable("the store is away")


class Target:
    """What follow-ups are sent to.

    Attributes:
        sent: what was sent.
        refused: the errors of what can never be sent.
        error: what each attempt raises; None: it is sent.
        attempts: how often something was tried.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.refused: list[str] = []
        self.error: Exception | None = None
        self.attempts = 0

    def follow_up(self, name: str = "one", **more: Any) -> FollowUp:
        def send() -> None:
            self.attempts += 1
            if self.error is not None:
                raise self.error
            self.sent.append(name)

        def refuse(error: Exception) -> None:
            self.refused.append(str(error))

        return FollowUp(message_id=name, what=f"the follow-up {name}", send=send, refuse=refuse, **more)


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[FollowUps]:
    """Follow-ups of a process, with short pauses between attempts."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.3)
    follow_ups = FollowUps(lambda: datetime.now(UTC))
    yield follow_ups
    follow_ups.close()


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the actions of the log lines."""
    return [getattr(record, "action", "") for record in caplog.records]


def test_follow_ups_are_sent_when_the_store_is_back(kept: FollowUps, target: Target) -> None:
    """It is tried until it succeeds, and then forgotten."""
    target.error = AWAY
    kept.keep(target.follow_up(), AWAY)
    until(lambda: target.attempts > 2, "some attempts")
    assert len(kept) == 1
    target.error = None
    until(lambda: not len(kept), "it to be sent")
    assert target.sent == ["one"]


def test_what_can_never_be_sent_is_refused_and_does_not_hold_up_the_others(
    kept: FollowUps, target: Target
) -> None:
    """An error that no later attempt can mend goes to `refuse`; the next follow-up is sent."""
    bad = Target()
    bad.error = ValueError("no such agent")
    kept.keep(bad.follow_up("bad"), AWAY)
    kept.keep(target.follow_up("good"), AWAY)
    until(lambda: not len(kept), "both to be settled")
    assert (bad.refused, bad.attempts, target.sent) == (["no such agent"], 1, ["good"])


def test_expired_follow_ups_are_not_sent(
    kept: FollowUps, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """A message must not arrive after its time to live."""
    kept.keep(target.follow_up(expires_at=datetime.now(UTC) - timedelta(seconds=1)), AWAY)
    until(lambda: not len(kept), "it to be settled")
    assert target.attempts == 0
    assert "follow_up_expired" in actions(caplog)


def test_close_does_not_send_what_its_thread_still_sends(
    kept: FollowUps, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that answers slowly must not get the same message twice."""
    begun, may_end, sent = threading.Event(), threading.Event(), []

    def send() -> None:
        begun.set()
        assert may_end.wait(30)
        sent.append("slow")

    slow = FollowUp(message_id="slow", what="the slow follow-up", send=send, refuse=lambda _: None)
    kept.keep(slow, AWAY)
    assert begun.wait(30)
    kept.close()
    assert actions(caplog).count("follow_up_left") == 1
    may_end.set()
    until(lambda: not thread_runs(), "the end of the thread")
    assert sent == ["slow"]


def thread_runs() -> bool:
    """Return whether the thread that sends follow-ups runs."""
    return any(thread.name == "waooaw-follow-ups" for thread in threading.enumerate())


def test_close_makes_a_last_attempt_and_logs_what_is_lost(
    kept: FollowUps, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    """What the ledger's recovery will publish is a warning; what nobody will send is an error."""
    target.error = AWAY
    kept.keep(target.follow_up("lost"), AWAY)
    kept.keep(target.follow_up("recorded", recorded=True), AWAY)
    kept.close()
    levels = {
        record.message_id: record.levelno
        for record in caplog.records
        if getattr(record, "action", "") == "follow_up_left"
    }
    assert levels == {"lost": logging.ERROR, "recorded": logging.WARNING}
    assert target.attempts > 0
    assert not len(kept)


def test_a_closed_process_keeps_nothing(kept: FollowUps, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would send it: it is dropped with a line in the log, which names the error."""
    kept.close()
    kept.keep(target.follow_up(), AWAY)
    assert not len(kept)
    assert "was not sent and is lost: this process ends: the store is away" in caplog.text


def test_a_process_keeps_a_limited_number(
    kept: FollowUps, target: Target, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one over the limit is dropped with a line in the log."""
    monkeypatch.setattr(module, "MAX_FOLLOW_UPS", 2)
    target.error = AWAY
    for name in ("one", "two", "three"):
        kept.keep(target.follow_up(name), AWAY)
    assert len(kept) == 2
    left = [record.message_id for record in caplog.records if getattr(record, "action", "") == "follow_up_left"]
    assert left == ["three"]
