"""Retry policies: how often and how soon a handler is tried again, and which values are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.worker.retries.retry_policy import RetryPolicy


def test_pauses_grow_up_to_the_longest() -> None:
    """Each pause is ``factor`` times as long as the last, up to ``longest_delay``."""
    retries = RetryPolicy(attempts=1000, first_delay=1.0, factor=3, longest_delay=20.0, jitter=False)
    assert retries.delays()[:4] == (1.0, 3.0, 9.0, 20.0)
    assert retries.delays()[-1] == 20.0
    assert len(retries.delays()) == 999
    assert RetryPolicy(attempts=3, first_delay=0, jitter=False).delays() == (0, 0)


def test_jitter_takes_up_to_a_half() -> None:
    """Pauses differ, and none is shorter than half of the nominal pause."""
    pauses = [RetryPolicy(first_delay=10.0).delay(0) for _ in range(200)]
    assert all(5.0 <= pause <= 10.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 2
    assert any(a != b for a, b in pairwise(pauses))


def test_a_number_means_that_many_further_attempts() -> None:
    """``retries=5`` means the same as Celery's ``max_retries=5``."""
    assert RetryPolicy.of(5) == RetryPolicy(attempts=6)
    assert RetryPolicy.of(0).delays() == ()
    assert RetryPolicy.of(RetryPolicy(attempts=2)) == RetryPolicy(attempts=2)


def test_errors_are_chosen_by_class() -> None:
    """Errors of ``on`` are retried, with their subclasses, except those of ``never``."""
    retries = RetryPolicy(on=(OSError,), never=(FileNotFoundError,))
    assert retries.should_retry(ConnectionError())
    assert not retries.should_retry(FileNotFoundError())
    assert not retries.should_retry(ValueError())
    assert RetryPolicy(on=OSError) == RetryPolicy(on=(OSError,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 1.5}, "attempts"),
        ({"attempts": True}, "attempts"),
        ({"first_delay": -1}, "first_delay"),
        ({"first_delay": float("nan")}, "first_delay"),
        ({"factor": 0.5}, "factor"),
        ({"longest_delay": float("inf")}, "longest_delay"),
        ({"on": ("ConnectionError",)}, "on"),
        ({"never": (1,)}, "never"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], field: str) -> None:
    """The error names the field."""
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "3", None])
def test_other_types_are_refused(wrong: Any) -> None:
    """``retries=`` takes a number or a RetryPolicy."""
    with pytest.raises(ConfigurationError, match=r"^retries"):
        RetryPolicy.of(wrong)
