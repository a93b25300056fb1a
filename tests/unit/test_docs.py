"""The documents: their code imports what exists, their links resolve, a file shown twice is the same."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
#: The modules from which users import.
PUBLIC = {
    "waooaw_celery.testing",
    "waooaw_celery",
    "waooaw_celery.agents",
    "waooaw_celery.aio",
    "waooaw_celery.testing.embedded",
}

pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@pages
def test_the_code_in_the_documents_can_be_read_and_imports_what_is_there(path: Path) -> None:
    """Each Python block compiles, and each name that it imports exists in a public module."""
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("waooaw_celery"):
                assert node.module in PUBLIC, f"{node.module} is not public"
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), alias.name


@pages
def test_the_links_between_the_documents_lead_somewhere(path: Path) -> None:
    """Each relative link names a file, and each anchor a heading of it."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_a_file_that_is_shown_twice_is_the_same() -> None:
    """A file that several documents show is the same in all of them."""
    shown: dict[str, str] = {}
    for path in PAGES:
        for text, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", path.read_text(), re.DOTALL):
            assert shown.setdefault(name, text) == text, f"{name} in {path.name}"
