"""Which tests run: the quick ones by default, all of them with ``--all``, the longest with WAOOAW_TEST_ALL=1.

The quick run holds every unit test, and every other test once, with the first of its parameters, unless it is
marked ``slow``. So it covers each subpackage and each guarantee.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Whether the longest tests run too.
ALL = bool(os.environ.get("WAOOAW_TEST_ALL"))

#: For a test that takes minutes. Every run has a smaller form of it.
takes_long = pytest.mark.skipif(not ALL, reason="takes long: WAOOAW_TEST_ALL=1")

UNIT = Path(__file__).parent / "unit"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the quick run."""
    parser.addoption("--quick", action="store_true", help="run each test once, and leave out the slow ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the quick run does not need."""
    if not config.getoption("--quick"):
        return
    kept, dropped, seen = [], [], set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if UNIT in item.path.parents or (name not in seen and item.get_closest_marker("slow") is None):
            kept.append(item)
        else:
            dropped.append(item)
        seen.add(name)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
