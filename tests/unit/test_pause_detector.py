"""The pause detector: when an ended lease proves that its consumer died."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from waooaw_celery.broker.redis.leases.pause_detector import MAX_GAPS, PauseDetector


@pytest.fixture(autouse=True)
def first_detector() -> None:
    """Use up the first detector of the process, which starts without a gap, also if a test runs alone."""
    PauseDetector(longest_gap=1.0, quiet_seconds=1.0)


def test_first_detector_of_a_process_does_not_wait_and_later_ones_do() -> None:
    """A process that may die soon restores messages at once. A channel that replaces a lost one waits."""
    code = "from waooaw_celery.broker.redis.leases.pause_detector import PauseDetector as D\n"
    code += "print(D(9, 60).record_answer(), D(9, 60).record_answer())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_after_a_gap_it_waits_for_the_quiet_time() -> None:
    """After a gap, ended leases prove nothing until answers have come without a gap for long enough."""
    detector = PauseDetector(longest_gap=0.3, quiet_seconds=0.2)
    time.sleep(0.4)  # the gap
    assert not detector.record_answer()
    time.sleep(0.2)
    assert detector.record_answer()


def test_after_many_gaps_it_no_longer_waits() -> None:
    """An overloaded computer, which never has a quiet time, still restores the messages of dead workers."""
    detector = PauseDetector(longest_gap=0.01, quiet_seconds=0.2)
    answers = []
    for _ in range(MAX_GAPS + 1):
        time.sleep(0.02)  # each answer follows a gap
        answers.append(detector.record_answer())
    assert answers == [False] * MAX_GAPS + [True]
