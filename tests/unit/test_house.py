"""The house: imports go down only, the public API is small, nothing is asserted by mocks."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import waooaw_celery

ROOT = Path(__file__).parents[2]
PACKAGE = "waooaw_celery"

#: The floors, from the top: a room imports from floors below its own, and from itself without a circle.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("workers", "beat_schedule"),
    ("__main__",),
    ("demo",),
    ("cli",),
    ("agents", "maintenance"),
    ("app",),
    ("worker",),
    ("ledger", "limits"),
    ("broker", "results", "settings"),
    ("store", "wire"),
    ("embedded", "messages"),
    ("errors",),
)
#: The limits of the house.
MAX_ROOMS, MAX_FLOORS, MAX_FLAT_FILES = 22, 12, 12
#: The public API; nothing below the command line imports it.
PUBLIC_API = ("__init__", "aio")


def modules() -> dict[str, Path]:
    """Return every module of the package and of what stands above it, by dotted name."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "workers").glob("*.py"), ROOT / "beat_schedule.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def room(module: str) -> str:
    """Return the room of a module: ``cli`` for waooaw_celery.demo.command, ``workers`` for workers.analyst."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> set[str]:
    """Return the project's modules that a file imports, anywhere in it, also for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    known = modules()
    packages = {name.removesuffix(".__init__") for name in known if name.endswith(".__init__")}
    return {name for name in names if name in known or name in packages}


def floor(name: str) -> int:
    """Return the number of a room's floor, the top one 0."""
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor() -> None:
    """A new room is put on a floor on purpose."""
    assert {room(module) for module in modules()} - {*PUBLIC_API} == {name for rooms in FLOORS for name in rooms}


@pytest.mark.parametrize("module", [module for module in modules() if room(module) not in PUBLIC_API])
def test_imports_go_down_only(module: str) -> None:
    """No module imports from a floor above its own; the public API is for those above the library."""
    here = room(module)
    for target in imported(modules()[module]):
        if room(target) in PUBLIC_API:
            assert floor(here) <= floor("cli"), f"{module} imports the public API"
        elif room(target) != here:
            assert floor(room(target)) >= floor(here), f"{module} imports {target} from above"


def test_the_house_stays_within_its_limits() -> None:
    """The package has at most 22 rooms on 12 floors; a failure prints the rooms of each floor."""
    below: dict[str, set[str]] = {}
    for module, path in modules().items():
        if module.startswith(f"{PACKAGE}.") and room(module) not in (*PUBLIC_API, "__main__"):
            targets = {room(target) for target in imported(path)} - {room(module), *PUBLIC_API}
            below.setdefault(room(module), set()).update(targets)
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(target) for target in below[name]), default=0)
        return heights[name]

    floors: dict[int, list[str]] = {}
    for name in sorted(below):
        floors.setdefault(height(name), []).append(name)
    picture = "\n".join(f"{number}: {', '.join(floors[number])}" for number in sorted(floors, reverse=True))
    assert len(below) <= MAX_ROOMS, picture
    assert len(floors) <= MAX_FLOORS, picture


def test_no_folder_is_crowded() -> None:
    """A folder of the package has at most 12 files flat in it; a failure names the folder."""
    counts = Counter(path.parent for path in (ROOT / PACKAGE).rglob("*.py") if path.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FLAT_FILES} == {}


def test_there_is_no_circle() -> None:
    """Following imports never comes back to where it began."""
    graph = {
        module: {target for target in imported(path) if room(target) not in PUBLIC_API and target != module}
        for module, path in modules().items()
        if room(module) not in PUBLIC_API
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
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


def test_messages_know_no_celery() -> None:
    """The modules of messages and the settings do not import Celery."""
    for path in (*(ROOT / PACKAGE / "messages").rglob("*.py"), ROOT / PACKAGE / "settings.py"):
        assert "celery" not in {
            alias.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for alias in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }


def test_the_public_face_is_small_and_sorted() -> None:
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
    """No test imports unittest.mock: what is tested is the real thing."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import)\b.*\bmock\b", path.read_text(), re.MULTILINE), path


def test_every_test_is_a_sentence() -> None:
    """Each test function has a docstring that says what holds."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}::{node.name}"
