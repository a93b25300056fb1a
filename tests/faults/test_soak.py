"""A short soak: what the long one does for half an hour (`python3 dev.py soak`), for about a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from selection import ALL
from soak.run import soak

#: Seconds of a short soak: six accidents or so, or fifteen in the whole suite.
SECONDS = 90.0 if ALL else 40.0


@pytest.mark.timeout(360)
def test_a_short_soak_loses_nothing_and_leaves_nothing_stuck(tmp_path: Path) -> None:
    """Workers are killed and lines are cut; each message has one end, each once effect is one, all stays flat."""
    result = soak(SECONDS, 5, tmp_path)
    assert not result.violations, result.show()
