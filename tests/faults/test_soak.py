"""A short soak of about a minute; `python3 dev.py soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from selection import ALL
from soak.run import soak

#: Seconds of the soak: enough for about six faults, or fifteen in the whole suite.
SECONDS = 90.0 if ALL else 40.0


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_short_soak_loses_nothing_and_leaves_nothing_stuck(tmp_path: Path) -> None:
    """Workers are killed and connections cut; each message has one final event, and nothing grows."""
    result = soak(SECONDS, 5, tmp_path)
    assert not result.violations, result.show()
