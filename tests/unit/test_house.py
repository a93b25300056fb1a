"""The structure of the package: imports point to lower layers, the public API is small, tests use no mocks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import waooaw_celery

ROOT = Path(__file__).parents[2]
PACKAGE = "waooaw_celery"

#: The layers, from the top: a subpackage imports from its own layer and from lower ones, without a cycle.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("workers", "beat_schedule"),
    ("__main__",),
    ("demo", "console", "edges"),
    ("cli", "testing"),
    ("agents", "maintenance"),
    ("workflows",),
    ("app",),
    ("worker",),
    ("discovery", "ledger", "limits"),
    ("broker", "results", "settings"),
    ("store", "wire", "monitoring"),
    ("messages",),
    ("errors",),
)
#: The largest numbers of subpackages, of layers, and of files in one folder.
MAX_SUBPACKAGES, MAX_LAYERS, MAX_FLAT_FILES = 22, 12, 12
#: The public API. Only cli and the layers above it import it.
PUBLIC_API = ("__init__", "aio")


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package, of workers/ and beat_schedule.py, by dotted name."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "workers").glob("*.py"), ROOT / "beat_schedule.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def subpackage(module: str) -> str:
    """Return the subpackage of a module: ``demo`` for waooaw_celery.demo.command, ``workers`` for workers.x."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def imported(path: Path) -> set[str]:
    """Return the project's modules that a file imports, anywhere in it, including imports for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    known = modules()
    packages = {name.removesuffix(".__init__") for name in known if name.endswith(".__init__")}
    return {name for name in names if name in known or name in packages}


def layer(name: str) -> int:
    """Return the number of a subpackage's layer; the top one is 0."""
    return next(number for number, names in enumerate(LAYERS) if name in names)


def test_every_subpackage_has_a_layer() -> None:
    """LAYERS names every subpackage, and no other."""
    assert {subpackage(module) for module in modules()} - {*PUBLIC_API} == {
        name for names in LAYERS for name in names
    }


@pytest.mark.parametrize("module", [module for module in modules() if subpackage(module) not in PUBLIC_API])
def test_imports_point_to_lower_layers(module: str) -> None:
    """No module imports from a layer above its own; only cli and the layers above it import the public API."""
    here = subpackage(module)
    for target in imported(modules()[module]):
        if subpackage(target) in PUBLIC_API:
            assert layer(here) <= layer("cli"), f"{module} imports the public API"
        elif subpackage(target) != here:
            assert layer(subpackage(target)) >= layer(here), f"{module} imports {target} from a higher layer"


def test_the_number_of_subpackages_and_layers_is_limited() -> None:
    """The package has at most 22 subpackages in 12 layers; a failure prints the subpackages of each layer."""
    below: dict[str, set[str]] = {}
    for module, path in modules().items():
        if module.startswith(f"{PACKAGE}.") and subpackage(module) not in (*PUBLIC_API, "__main__"):
            targets = {subpackage(target) for target in imported(path)} - {subpackage(module), *PUBLIC_API}
            below.setdefault(subpackage(module), set()).update(targets)
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(target) for target in below[name]), default=0)
        return heights[name]

    layers: dict[int, list[str]] = {}
    for name in sorted(below):
        layers.setdefault(height(name), []).append(name)
    picture = "\n".join(f"{number}: {', '.join(layers[number])}" for number in sorted(layers, reverse=True))
    assert len(below) <= MAX_SUBPACKAGES, picture
    assert len(layers) <= MAX_LAYERS, picture


def test_no_folder_is_crowded() -> None:
    """A folder of the package has at most 12 modules directly in it; a failure names the folder."""
    counts = Counter(path.parent for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FLAT_FILES} == {}


def test_there_is_no_import_cycle() -> None:
    """No module imports itself through other modules."""
    graph = {
        module: {target for target in imported(path) if subpackage(target) not in PUBLIC_API and target != module}
        for module, path in modules().items()
        if subpackage(module) not in PUBLIC_API
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_agent_imports_anothers_code() -> None:
    """Agents know each other by name only."""
    folder = f"{PACKAGE}.demo.agents."
    agents = {name for name, path in modules().items() if name.startswith(folder) and "Agent(" in path.read_text()}
    assert len(agents) >= 4
    for agent in agents:
        assert not imported(modules()[agent]) & (agents - {agent})


def test_messages_do_not_import_celery() -> None:
    """A process that imports every module of messages, and the settings, has not loaded Celery."""
    names = [name for name in modules() if subpackage(name) == "messages"] + [f"{PACKAGE}.settings"]
    assert len(names) > 10
    code = f"import {', '.join(names)}, sys; print('celery' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_the_public_api_is_small_and_sorted() -> None:
    """The package offers at most 20 names, sorted, and each of them can be imported."""
    names = waooaw_celery.__all__
    assert len(names) <= 20
    assert names == sorted(names)
    for name in names:
        assert getattr(waooaw_celery, name).__module__.startswith(f"{PACKAGE}."), name
    assert set(names) <= set(dir(waooaw_celery))
    with pytest.raises(AttributeError, match="has no attribute 'Agnet'"):
        _ = waooaw_celery.Agnet  # type: ignore[attr-defined]


def test_tests_use_no_mocks() -> None:
    """No test imports unittest.mock: tests use real servers and workers."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import)\b.*\bmock\b", path.read_text(), re.MULTILINE), path


def test_every_test_has_a_docstring() -> None:
    """Each test function has a docstring that says what it checks."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}::{node.name}"


def test_every_test_module_has_its_own_name() -> None:
    """Two test files of one name in two folders cannot be imported in one run."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, number in names.items() if number > 1]
