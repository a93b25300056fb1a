"""The comparison of `dev.py bench` runs, and writes its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_comparison_writes_its_page_and_its_plot(tmp_path: Path) -> None:
    """One round of sends and events: each row has a ratio, and the page says what was not compared."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.suite", "--no-peers"]
    command += ["--only", "sending", "--only", "events", "--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run(
        [*command, "--write", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "performance.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| send", "| publish"))]
    assert len(rows) == 13
    assert all(line.count("|") == 8 for line in rows)
    assert "- huey: the run was to leave it out" in page
    assert (tmp_path / "performance.svg").read_text().count("<circle") == len(rows)
