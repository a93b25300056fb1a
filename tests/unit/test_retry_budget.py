"""A retry budget allows a number of retries, and a share of the requests, in each ten seconds."""

from __future__ import annotations

import pytest

from waooaw_celery.worker.retries.retry_budget import LEAST_RETRIES, WINDOW_SECONDS, RetryBudget


class Clock:
    """A clock that a test sets."""

    now = 1000.5

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("requests", "retries"), [(0, LEAST_RETRIES), (1000, LEAST_RETRIES + 200)])
def test_a_share_of_the_requests_is_retried(requests: int, retries: int) -> None:
    """A process without requests may retry a hundred times; a fifth of its requests is added."""
    budget = RetryBudget(0.2, Clock())
    for _ in range(requests):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(2000)) == retries


def test_requests_and_retries_count_for_ten_seconds() -> None:
    """What is older is forgotten."""
    clock = Clock()
    budget = RetryBudget(0.5, clock)
    for _ in range(100):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(500)) == LEAST_RETRIES + 50
    clock.now += WINDOW_SECONDS - 1
    assert not budget.withdraw()
    clock.now += 1
    assert sum(budget.withdraw() for _ in range(500)) == LEAST_RETRIES


def test_without_a_share_there_is_no_limit() -> None:
    """The setting None."""
    budget = RetryBudget(None, Clock())
    assert all(budget.withdraw() for _ in range(1000))
