"""The code in the documents names what is there."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_the_code_in_the_documents_can_be_read_and_imports_what_is_there(path: Path) -> None:
    """Each Python block compiles, and each name that it imports exists."""
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("waooaw_celery"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), alias.name
