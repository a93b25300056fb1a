"""The rule of the autoscaler, and how a size is spread over workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waooaw_celery.agents.scaling.spread import changed, evenly
from waooaw_celery.worker.scaling.scaling_rule import Backlog, Recommendations, recommended_size

SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 20), min_size=1)


@pytest.mark.parametrize(
    ("size", "held", "waiting", "seconds", "wanted"),
    [
        (2, 0, 0, 0.0, 0),  # idle
        (2, 2, 0, 0.0, 2),  # busy, and nothing waits
        (2, 2, 2, 0.5, 2),  # a short wait for few messages
        (2, 2, 1, 1.0, 3),  # an old message
        (2, 2, 3, 0.0, 5),  # many messages
        (1, 0, 5, 0.0, 5),  # at the start
    ],
)
def test_a_pool_gets_a_place_for_what_is_too_much_or_too_old(
    size: int, held: int, waiting: int, seconds: float, wanted: int
) -> None:
    """Few messages that wait for a short time add no place."""
    assert recommended_size(size, held, Backlog(waiting, seconds), age=1.0) == wanted


def test_a_pool_shrinks_to_the_largest_size_that_was_needed_lately() -> None:
    """A size counts for as long as the recommendations are kept."""
    recommendations = Recommendations(30.0)
    steps = [(0.0, 8), (10.0, 3), (29.0, 1), (30.5, 1), (40.5, 2), (71.0, 1)]
    assert [recommendations.highest(now, size) for now, size in steps] == [8, 8, 8, 3, 2, 1]


@given(SIZES, st.integers(0, 200))
def test_a_total_is_spread_evenly(sizes: dict[str, int], more: int) -> None:
    """The sum is the total, and no two workers differ by more than one place."""
    total = len(sizes) + more
    spread = evenly(total, sizes)
    assert spread.keys() == sizes.keys()
    assert sum(spread.values()) == total
    assert max(spread.values()) - min(spread.values()) <= 1


@given(SIZES, st.integers(-100, 100))
def test_a_change_leaves_each_worker_a_place(sizes: dict[str, int], change: int) -> None:
    """Growing takes no place from any worker, shrinking gives none to any."""
    change = max(change, len(sizes) - sum(sizes.values()))
    after = changed(change, sizes)
    assert sum(after.values()) == sum(sizes.values()) + change
    assert min(after.values()) >= 1
    assert all((after[name] - sizes[name]) * (1 if change >= 0 else -1) >= 0 for name in sizes)
