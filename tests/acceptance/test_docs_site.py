"""The documentation site: it is built without a warning, and shows what is made at build time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from release_check import SPHINX

ROOT = Path(__file__).parents[2]
#: Seconds for the build, which takes 25 on two idle cores.
BUILD_SECONDS = 300


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *SPHINX, "-d", folder / "doctrees", ROOT / "docs", folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS)
def test_the_site_is_built_without_a_warning(site: Path) -> None:
    """Every page of docs/ is a page of the site, and the pictures are there."""
    for path in (ROOT / "docs").rglob("*.md"):
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").exists(), path
    assert (site / "images" / "console-agents-dark.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(BUILD_SECONDS)
@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("reference/api/agents", ("waooaw_celery.agents.MessageBus.send", "wait", "DeliveryReceipt")),
        ("reference/command-options", ("Usage: waooaw dead retry", "--priority")),
        ("reference/schema", ("waooaw_messages", "waooaw_workflow", "retain_until", "primary key")),
        ("changelog", ("Keep a Changelog", "Unreleased")),
        ("index", ("Getting started", "Glossary")),
    ],
)
def test_a_generated_page_has_its_contents(site: Path, page: str, texts: tuple[str, ...]) -> None:
    """The API from docstrings, the options of the commands, the tables of the ledger, the files above docs/."""
    text = (site / f"{page}.html").read_text()
    for each in texts:
        assert each in text, each
