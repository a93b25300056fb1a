"""The page about testing: its tests are run, in a process of their own, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def files(page: str) -> dict[str, str]:
    """Return the Python files that a page shows, by the name in their first line."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return {name: text for text, name in blocks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, the agent of the guide, and the workflow of the example."""
    found = tmp_path_factory.mktemp("testing-page")
    shown = files("testing.md") | {"greeter.py": files("getting-started.md")["greeter.py"]}
    shown |= {"reports.py": files("workflows.md")["reports.py"]}
    for name, text in shown.items():
        (found / name).write_text(text)
    (found / "pytest.ini").write_text("[pytest]\nwaooaw_app = greeter:app\n")
    return found


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in the folder, with the plugin of this package and those of Celery."""
    is_registered = any(each.name == "waooaw" for each in entry_points(group="pytest11"))
    plugins = [] if is_registered else ["-p", "waooaw_celery.testing.plugin"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "WAOOAW_"))}
    # A broker that nobody reaches: the kit hides it.
    env |= {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest", *plugins, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=110)


def test_the_tests_of_the_page_pass_without_a_server(folder: Path) -> None:
    """All tests that the page shows for the kit pass, beside Celery's own fixtures."""
    result = run(folder, "--ignore=test_worker.py", "--ignore=conftest.py")
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 14
    assert "skipped" not in result.stdout


@pytest.mark.slow
def test_the_fixture_says_what_is_missing_when_the_application_is_wrong(folder: Path) -> None:
    """A wrong setting waooaw_app is an error that names it."""
    result = run(folder, "-o", "waooaw_app=nowhere:app", "test_greeter.py")
    assert result.returncode == 1
    assert "waooaw_app" in result.stdout
    assert "nowhere" in result.stdout
