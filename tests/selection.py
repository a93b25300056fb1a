"""Which tests run: the quick ones by default, all of them with ``--all``, the longest with WAOOAW_TEST_ALL=1.

The quick run holds every unit test, and the first tests of every other file, each with the first of its
parameters, unless they are marked ``slow``. So it covers each subpackage and each guarantee in a few minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

#: Whether the longest tests run too.
ALL = bool(os.environ.get("WAOOAW_TEST_ALL"))

#: For a test that takes minutes. Every run has a smaller form of it.
takes_long = pytest.mark.skipif(not ALL, reason="takes long: WAOOAW_TEST_ALL=1")

UNIT = Path(__file__).parent / "unit"
#: Tests of each other file that the quick run holds: more would take longer than five minutes on two cores.
FIRST = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the quick run."""
    parser.addoption("--quick", action="store_true", help="run each test once, and leave out the slow ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the quick run does not need."""
    if not config.getoption("--quick"):
        return
    kept, dropped, seen = [], [], set()
    of_file: Counter[Path] = Counter()
    for item in items:
        name = item.nodeid.partition("[")[0]
        is_first = name not in seen and item.get_closest_marker("slow") is None and of_file[item.path] < FIRST
        if UNIT in item.path.parents or is_first:
            kept.append(item)
            of_file[item.path] += 1
        else:
            dropped.append(item)
        seen.add(name)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
