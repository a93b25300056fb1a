"""When leases that are over prove that their consumers are gone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from waooaw_celery.broker.redis.leases.pause_detector import MOST_GAPS, PauseDetector


@pytest.fixture(autouse=True)
def not_the_first() -> None:
    """The first one of a process lets it look at once; a test may be run alone."""
    PauseDetector(longest_gap=1.0, patience=1.0)


def test_the_first_of_a_process_looks_at_once_and_later_ones_wait() -> None:
    """A process that dies soon looks; a channel that takes the place of a lost one waits."""
    code = "from waooaw_celery.broker.redis.leases.pause_detector import PauseDetector as S\n"
    code += "print(S(9, 60).answered(), S(9, 60).answered())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_after_a_gap_it_takes_a_quiet_time() -> None:
    """Answers without a gap between them prove something once they have come for long enough."""
    steadiness = PauseDetector(longest_gap=0.3, patience=0.2)
    time.sleep(0.4)  # the gap
    assert not steadiness.answered()
    time.sleep(0.2)
    assert steadiness.answered()


def test_gaps_without_end_are_not_waited_for() -> None:
    """A computer that is never quiet hands out what dead workers held all the same."""
    steadiness = PauseDetector(longest_gap=0.01, patience=0.2)
    answers = []
    for _ in range(MOST_GAPS + 1):
        time.sleep(0.02)  # one gap after the other
        answers.append(steadiness.answered())
    assert answers == [False] * MOST_GAPS + [True]
