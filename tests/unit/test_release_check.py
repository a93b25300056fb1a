"""The check-list of a release: what it finds, and that each check says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import release_check
from release_check import CHECKS, check_licences, check_migrations, check_version, main


def test_each_check_says_what_it_finds_and_what_to_do() -> None:
    """A check is one sentence, and so is the advice."""
    for check, advice in CHECKS.values():
        assert (check.__doc__ or "").endswith(".")
        assert len(advice) > 20


def test_what_is_checked_of_the_sources_holds() -> None:
    """There is one head of the migrations, and all bundled files have their licence."""
    assert check_migrations() == []
    assert check_licences() == []


@pytest.mark.parametrize(
    ("heading", "found"),
    [
        ("[0.2.0] - 2026-12-01", []),
        ("[Unreleased]", ["setup.cfg has 0.2.0, and the first heading of CHANGELOG.md is '[Unreleased]'"]),
        (
            "[0.1.0] - 2026-11-01",
            ["setup.cfg has 0.2.0, and the first heading of CHANGELOG.md is '[0.1.0] - 2026-11-01'"],
        ),
    ],
)
def test_the_version_needs_a_day_in_the_changelog(
    heading: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first version there."""
    (tmp_path / "setup.cfg").write_text("[metadata]\nversion = 0.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    assert check_version() == found


def test_a_failed_check_is_shown_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1; a check that does not exist is 2."""
    monkeypatch.setitem(CHECKS, "tree", (lambda: ["M README.md"], "commit it"))
    assert main(["tree", "migrations"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL tree" in shown
    assert "     M README.md\n     Do this: commit it." in shown
    assert "ok   migrations: The migrations have one head." in shown
    assert main(["trea"]) == 2
