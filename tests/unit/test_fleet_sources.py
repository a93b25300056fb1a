"""A source of metrics is read in the background: a scrape never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support import until

from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.samples import Samples
from waooaw_celery.maintenance.fleet.sources import STALE_INTERVALS, Source


def found() -> Samples:
    """Return a sample."""
    samples = Samples()
    samples.set(metrics.LOST_MESSAGES, 1)
    return samples


@contextmanager
def reading(read: Callable[[], Samples], interval: float = 0.1, deadline: float = 5.0) -> Iterator[Source]:
    """Read a source during the block."""
    source = Source("broker", read, interval, deadline)
    source.start()
    try:
        yield source
    finally:
        source.stop()


def test_a_source_is_down_until_it_was_read() -> None:
    """And it was not tried."""
    state = Source("broker", found, 1.0).state()
    assert (state.up, state.tried, state.age, state.seconds) == (False, False, None, None)
    assert not state.samples.values


def test_a_source_is_read_again_and_again() -> None:
    """Its age stays about an interval."""
    times: list[float] = []

    def read() -> Samples:
        times.append(time.monotonic())
        return found()

    with reading(read) as source:
        until(lambda: len(times) > 3, "four readings")
        state = source.state()
        assert state.up
        assert state.age is not None
        assert state.age < 1
        assert state.samples.values == found().values
    assert not source.alive


def test_a_source_that_hangs_is_down_after_its_deadline() -> None:
    """Asking for its state takes no time, it hangs in one thread only, and it is up again when it answers."""
    hang, calls = threading.Event(), [0]

    def read() -> Samples:
        calls[0] += 1
        if calls[0] == 2:
            hang.wait(120)
        return found()

    with reading(read, deadline=0.5) as source:
        until(lambda: calls[0] == 2, "the second reading")
        until(lambda: not source.state().up, "the end of its deadline", 10)
        began = time.monotonic()
        assert source.state().samples.values, "what was read before is still there"
        assert time.monotonic() - began < 0.1
        assert calls[0] == 2
        hang.set()
        until(lambda: source.state().up, "the answer")


def test_old_samples_are_dropped() -> None:
    """After some intervals without success: nobody must take them for the present state."""
    fails = threading.Event()

    def read() -> Samples:
        if fails.is_set():
            raise BrokerUnavailable("the broker does not answer")
        return found()

    with reading(read, interval=0.2, deadline=0.2) as source:
        until(lambda: source.state().up, "the first reading")
        fails.set()
        until(lambda: not source.state().up, "the failure")
        assert source.state().samples.values
        until(lambda: not source.state().samples.values, "the end of the samples")
        age = source.state().age
        assert age is not None
        assert age > STALE_INTERVALS * 0.2
        fails.clear()
        until(lambda: source.state().up and source.state().samples.values, "the next reading")


@pytest.mark.parametrize("error", [BrokerUnavailable("no \x1b[2J answer"), KeyError("a defect")])
def test_an_error_is_logged_once_an_outage(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A known one in one escaped line, a defect with its traceback; the end of the outage too."""
    fails, calls = threading.Event(), [0]
    fails.set()

    def read() -> Samples:
        calls[0] += 1
        if fails.is_set():
            raise error
        return found()

    caplog.set_level("INFO", logger="waooaw_celery")
    with reading(read) as source:
        until(lambda: calls[0] > 3, "some failures")
        fails.clear()
        until(lambda: source.state().up, "the end of the outage")
        until(lambda: len(caplog.records) == 2, "both lines")
    down, up = caplog.records
    assert "the source broker of the metrics cannot be read" in down.getMessage()
    assert "\x1b" not in down.getMessage()
    assert (down.exc_info is not None) == isinstance(error, KeyError)
    assert "can be read again" in up.getMessage()


def test_a_reading_that_ends_too_late_counts_as_failed() -> None:
    """Its samples are kept, and the source is down: it is too slow."""

    def read() -> Samples:
        time.sleep(0.3)
        return found()

    with reading(read, deadline=0.1) as source:
        until(lambda: source.state().seconds is not None, "the first reading")
        state = source.state()
        assert not state.up
        assert state.samples.values
