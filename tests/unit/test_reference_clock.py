"""The reference clock: when it is asked, what it corrects, and what it logs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.store.clock_reading import local_and_steady, read
from waooaw_celery.store.reference_clock import ReferenceClock

HOUR = 3600.0


class FakeReference:
    """A reference whose time a test sets."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead, self.readings, self.is_down = ahead, 0, False

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], float]]:
        if self.is_down:
            raise StoreUnavailable("it is down")
        yield self.read

    def read(self) -> float:
        self.readings += 1
        return time.time() + self.ahead


def offset(clock: ReferenceClock) -> float:
    """Return how many seconds a clock is ahead of this computer's."""
    return (clock.now() - datetime.now(UTC)).total_seconds()


def test_the_reference_is_not_asked_for_each_message() -> None:
    """It is asked at the first use, and not for the next thousand."""
    reference = FakeReference(HOUR)
    clock = ReferenceClock("a reference", reference)
    assert all(abs(offset(clock) - HOUR) < 1 for _ in range(1000))
    assert reference.readings <= 3


def test_a_reading_that_fails_late_corrects_nothing() -> None:
    """The seconds for which the first use waited are no difference between clocks."""
    ended = threading.Event()

    @contextmanager
    def slow() -> Iterator[Callable[[], float]]:
        ended.wait(0.3)
        raise StoreUnavailable("it is down")
        yield time.time

    clock = ReferenceClock("a reference", slow)
    local = LocalTime.read()
    assert clock.corrected(local) == local


def test_clocks_are_read_again_when_the_thread_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy computer seconds may pass between two lines."""
    readings = iter([10.0, 15.0, 15.1, 15.1001])
    monkeypatch.setattr("waooaw_celery.store.clock_reading.steady", lambda: next(readings))
    local, now = local_and_steady()
    assert now == pytest.approx(15.1, abs=0.001)
    assert local == pytest.approx(time.time(), abs=60)


def test_a_right_clock_is_not_corrected() -> None:
    """Small differences are not corrected, so that the times that one computer records stay in order."""
    clock = ReferenceClock("a reference", FakeReference(0.05))
    clock.measure()
    assert abs(offset(clock)) < 0.02
    local = LocalTime.read()
    assert clock.corrected(local) == local
    assert type(clock.corrected(local)) is datetime


def test_only_default_times_are_corrected() -> None:
    """A time that a caller gave is kept, and a corrected time is not corrected again."""
    clock = ReferenceClock("a reference", FakeReference(-HOUR))
    clock.measure()
    given, default = datetime.now(UTC), LocalTime.read()
    assert clock.corrected(given) is given
    corrected = clock.corrected(default)
    assert abs((default - corrected).total_seconds() - HOUR) < 1
    assert clock.corrected(corrected) is corrected


def test_a_reference_that_is_down_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """This computer's clock is used until the reference answers, and one line is logged."""
    reference = FakeReference(HOUR)
    reference.is_down = True
    clock = ReferenceClock("a reference", reference)
    with caplog.at_level(logging.WARNING):
        assert abs(offset(clock)) < 1
        with pytest.raises(StoreUnavailable):
            clock.measure()
        assert clock.report() is None
        reference.is_down = False
        clock.measure()
    assert abs(offset(clock) - HOUR) < 1
    actions = [getattr(record, "action", None) for record in caplog.records]
    assert actions == ["clock_not_read", "clock_wrong"]


def test_a_wrong_clock_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line names the difference and the remedy, and one follows when the clock is right again."""
    reference = FakeReference(3.0)
    clock = ReferenceClock("a reference", reference)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.measure()
        reference.ahead = 0.0
        clock.measure()
        clock.measure()
    assert [getattr(record, "action", None) for record in caplog.records] == ["clock_wrong", "clock_right"]
    assert "3.0 s behind" in caplog.records[0].getMessage()
    assert "NTP" in caplog.records[0].getMessage()


def test_a_slow_answer_does_not_make_a_clock_wrong() -> None:
    """The error of a reading is half its round trip. A difference within the error does not count."""

    class SlowReference(FakeReference):
        def read(self) -> float:
            answer = super().read()
            time.sleep(0.3)  # the answer takes long
            return answer

    reading = read("a slow reference", SlowReference())
    assert 0.14 < reading.error < 1.0
    assert not reading.differs_by(0.05)
