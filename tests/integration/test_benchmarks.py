"""The comparison of `dev.py bench` runs, and writes its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from postgres_server import Server

from benchmarks.suite.groups.sending import commit_a_row

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


def test_two_groups_of_a_run_measure_the_same_floor(server: Server) -> None:
    """Each begins with an empty table."""
    for _ in range(2):
        assert commit_a_row(server.url)() == 1
