"""The rules of a circuit breaker, at exact times."""

from __future__ import annotations

import math

import pytest

from waooaw_celery.store.resilience import breaker_rules as rules
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord, BreakerState, Counted

LIMITS = BreakerLimits(failures=3, window=10.0, open_seconds=5.0)


def reported(record: BreakerRecord | None, now: float, failures: int, successes: int = 0) -> BreakerRecord | None:
    """Return the record after requests that have just ended."""
    return rules.report(record or BreakerRecord(), [Counted(0, failures, successes)], LIMITS, now)


def opened(now: float = 100.0) -> BreakerRecord:
    """Return the record of a breaker that has opened."""
    record = reported(None, now, 3)
    assert record is not None
    assert record.opened_at == now
    return record


def test_it_opens_at_the_number_of_failures() -> None:
    """Two of three failures leave it closed; the third opens it, whoever reports it."""
    record = reported(reported(None, 100.0, 1), 103.0, 1)
    assert record is not None
    assert record.state(103.0) is BreakerState.CLOSED
    record = reported(record, 106.0, 1)
    assert record is not None
    assert record.state(106.0) is BreakerState.OPEN
    assert record.retry_after(107.0) == 4.0


def test_failures_older_than_the_window_do_not_count() -> None:
    """A failure each five seconds never opens a breaker of three in ten."""
    record: BreakerRecord | None = None
    for number in range(20):
        record = reported(record, 100.0 + 5 * number, 1)
        assert record is not None
        assert record.state(100.0 + 5 * number) is BreakerState.CLOSED


def test_it_opens_only_if_half_of_the_requests_failed() -> None:
    """Three of seven are too few; four of eight are enough."""
    record = reported(None, 100.0, 3, 4)
    assert record is not None
    assert record.state(100.0) is BreakerState.CLOSED
    record = reported(record, 100.0, 1)
    assert record is not None
    assert record.state(100.0) is BreakerState.OPEN


def test_answers_alone_open_nothing() -> None:
    """A report without a failure does not open it, even if old failures suffice."""
    record = reported(reported(None, 100.0, 2, 2), 100.0, 1, 0)
    assert record is not None
    assert rules.report(reported(None, 100.0, 3, 4) or record, [Counted(9, 0, 0)], LIMITS, 100.0) is not None
    assert reported(None, 100.0, 0, 5) is None


def test_requests_that_were_counted_late_count_when_they_ended() -> None:
    """What ended more than a window ago is dropped."""
    record = rules.report(BreakerRecord(), [Counted(10, 9, 0), Counted(9, 1, 0)], LIMITS, 100.0)
    assert record is not None
    assert record.failures() == 1
    assert reported(record, 101.0, 1) == BreakerRecord(counts={101: (1, 0)})


def test_late_failures_of_an_open_breaker_do_not_count() -> None:
    """They were sent before it opened."""
    record = opened()
    assert reported(record, 101.0, 5) is record


def test_one_probe_at_a_time() -> None:
    """Its place is free when the pause is over, and again after its lease."""
    record = opened(100.0)
    assert not rules.take_probe(record, "early", 3.0, 104.9)
    assert record.state(105.0) is BreakerState.HALF_OPEN
    assert rules.take_probe(record, "first", 3.0, 105.0)
    assert not rules.take_probe(record, "second", 3.0, 107.9)
    assert record.retry_after(107.5) == 0.5
    assert rules.take_probe(record, "second", 3.0, 108.0)


def test_the_outcome_of_the_probe_decides() -> None:
    """An answer closes it, a failure opens it for another pause, and an unknown outcome frees the place."""
    record = opened(100.0)
    assert rules.take_probe(record, "probe", 30.0, 105.0)
    assert rules.end_probe(record, "another", True, LIMITS, 106.0) is record
    assert rules.end_probe(record, "probe", None, LIMITS, 106.0) is record
    assert rules.take_probe(record, "probe", 30.0, 106.0)
    after = rules.end_probe(record, "probe", False, LIMITS, 107.0)
    assert after is not None
    assert after.state(111.9) is BreakerState.OPEN
    assert rules.take_probe(after, "probe", 30.0, 112.0)
    assert rules.end_probe(after, "probe", True, LIMITS, 113.0) is None


def test_a_breaker_opened_by_hand_has_no_probe() -> None:
    """It closes when its time is over, or not by itself."""
    record = rules.open_by_hand("ada", "why", 60.0, 100.0)
    assert record.state(159.9) is BreakerState.OPEN
    assert record.retry_after(150.0) == 10.0
    assert not rules.take_probe(record, "probe", 3.0, 150.0)
    assert rules.end_probe(record, "probe", True, LIMITS, 150.0) is record
    assert reported(record, 150.0, 9) is record
    assert record.state(160.0) is BreakerState.CLOSED
    assert math.isinf(rules.open_by_hand("ada", None, None, 100.0).retry_after(1e9))


@pytest.mark.parametrize(
    "record", [opened(), rules.open_by_hand("ada", None, 3.0, 100.0), BreakerRecord(counts={7: (1, 2), 9: (3, 4)})]
)
def test_a_record_survives_its_json_form(record: BreakerRecord) -> None:
    """The stores keep it as JSON."""
    assert BreakerRecord.from_dict(record.to_dict()) == record
