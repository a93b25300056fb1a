"""The months of the ledger's partitions."""

from __future__ import annotations

import pytest

from waooaw_celery.ledger.database.partitions import Month


@pytest.mark.parametrize(
    ("month", "plus", "expected"),
    [
        (Month(2026, 11), 2, Month(2027, 1)),
        (Month(2026, 1), 0, Month(2026, 1)),
        (Month(2026, 12), 13, Month(2028, 1)),
    ],
)
def test_months_are_added_across_years(month: Month, plus: int, expected: Month) -> None:
    """January follows December."""
    assert month.plus(plus) == expected
