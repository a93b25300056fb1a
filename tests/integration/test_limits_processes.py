"""Eight processes that share a quota send exactly as much as its rules allow together."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from waooaw_celery import RateLimiter
from waooaw_celery.limits.redis import RedisStorage
from waooaw_celery.limits.rules import STEPS
from waooaw_celery.store.connection import connect, store_url

PROCESSES = 8
SECONDS = 5.3


@pytest.fixture(autouse=True)
def _reset(redis_url: str) -> None:
    """Delete the counts of other tests."""
    limiter = RateLimiter(RedisStorage(connect(store_url(redis_url))))
    limiter.reset("hammered")
    limiter.close()


def run_hammers(url: str, quota: str) -> tuple[int, list[tuple[float, float]], float, float]:
    """Return the number of tries, when each message passed (earliest, latest), and the first and last try."""
    command = [sys.executable, str(Path(__file__).with_name("limits_hammer.py")), url, quota, str(SECONDS)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    results: list[dict[str, Any]] = []
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            out, _ = process.communicate(timeout=60)
            results.append(json.loads(out))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
    passed = sorted(tuple(one) for result in results for one in result["passed"])
    return (
        sum(result["tries"] for result in results),
        passed,
        min(result["first"] for result in results),
        max(result["last"] for result in results),
    )


def max_in_window(passed: list[tuple[float, float]], seconds: float) -> int:
    """Return the largest number of messages that certainly passed within one window of this length."""
    most = 0
    for begin, _ in passed:
        most = max(most, sum(begin <= before and after <= begin + seconds for before, after in passed))
    return most


@pytest.mark.slow
def test_a_window_is_never_exceeded_and_fully_used(redis_url: str) -> None:
    """40 a second: no second holds 41. Of the six seconds that begin in 5.3 s, a busy computer may miss one."""
    tries, passed, first, last = run_hammers(store_url(redis_url), "40/second")
    assert max_in_window(passed, 1.0) <= 40
    rounds = math.floor((last - first) / (1 + 1 / STEPS)) + 1
    assert 40 * (rounds - 1) <= len(passed) <= 40 * rounds, f"{len(passed)} of {tries} in {last - first:.2f} s"
    assert tries > 2 * len(passed)


@pytest.mark.slow
def test_a_burst_is_followed_by_the_rate(redis_url: str) -> None:
    """20 at once, then 10 a second, and never more than 45 in four seconds."""
    tries, passed, first, last = run_hammers(store_url(redis_url), "100/10 seconds burst 20; 45/4 seconds")
    assert max_in_window(passed, 4.0) <= 45
    assert max_in_window(passed, 1.0) <= 20 + 10
    assert tries > 2 * len(passed)
    # 20 at once and 25 more in 2.5 s; then none until the 20 are 4 s old; then 15 from a bucket that refilled
    # for 1.5 s, and 10 a second.
    seconds = last - first
    expected = 20 + 25 + 15 + 10 * (seconds - 4.0)
    # A busy computer may miss a second.
    assert expected - 12 <= len(passed) <= expected + 1, f"{len(passed)} of {tries} in {seconds:.2f} s"
