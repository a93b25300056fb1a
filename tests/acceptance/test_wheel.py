"""The wheel and the sdist: what they hold, and that the installed package works without the repository.

uv installs, from its cache where it can: seconds for each environment. Where it reaches no index, pip does it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
#: The versions of Python that the package supports. The oldest must be on this computer.
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
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
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it; nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("built")
    build(copy_of_sources(folder / "source"), folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    [path] = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """Code, templates, scripts, py.typed, alerts, static files: nothing is missing, and nothing else is there."""
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in (ROOT / "waooaw_celery").rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc" and path.suffix != ".pyo"}
    assert packed == wanted
    assert {"waooaw_celery/py.typed", "waooaw_celery/cli/project/templates/greeter.py.template"} <= packed


@pytest.mark.slow
def test_the_sdist_has_what_a_distributor_needs(built: Path) -> None:
    """The licence, the changelog, the documentation and the tests come with the sources."""
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "README.md", "SECURITY.md", "docs/index.md", "tests/conftest.py"} <= packed


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + DEMO_SECONDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_installs_one_package_that_works(wheel: Path, tmp_path: Path, version: str) -> None:
    """In an empty environment it adds waooaw_celery alone, and an agent answers, is recorded and is seen."""
    python = find_python(version)
    if python is None and version != VERSIONS[0]:
        pytest.skip(f"no Python {version} on this computer")
    assert python is not None, f"Python {version} is needed: on PATH or in ~/.pyenv/versions"
    programs = install(python, tmp_path / "venv", f"waooaw-celery[embedded,protobuf] @ {wheel.as_uri()}")

    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    [info] = site.glob("waooaw_celery-*.dist-info")
    installed = {line.split(",")[0].split("/")[0] for line in (info / "RECORD").read_text().splitlines()}
    assert installed - {".."} == {"waooaw_celery", info.name}  # ".." are the programs in bin/
    assert not [name for name in ("workers", "beat_schedule.py", "waooaw_formats.py") if (site / name).exists()]

    # The entry point is loaded while Kombu is being imported, before anything of this package.
    encoded = "import kombu.serialization as s; print(s.dumps({'a': 1}, 'protobuf')[:2])"
    assert "application/x-protobuf" in run(programs / "python", "-c", encoded, cwd=tmp_path)
    assert "WaooawNoWorker" in run(programs / "waooaw", "monitoring", "rules", cwd=tmp_path)

    run(programs / "waooaw", "init", "my_agents", cwd=tmp_path)
    shutil.copy(Path(__file__).with_name("installed_agent.py"), tmp_path / "my_agents" / "smoke.py")
    shown = run(programs / "python", "smoke.py", cwd=tmp_path / "my_agents")
    assert json.loads(shown) == {"answer": "Hello, Ada!", "status": "handled", "messages": 1}

    if version == VERSIONS[0]:  # the demo takes a minute: once is enough
        documents = site / "waooaw_celery" / "messages"  # a few, so that a busy computer has the time
        shown = run(programs / "waooaw", "demo", "--input", documents, cwd=tmp_path, timeout=DEMO_SECONDS)
        assert f"{programs / 'waooaw'} up" in shown


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS)
def test_the_sdist_installs_with_all_extras(built: Path, tmp_path: Path) -> None:
    """`pip install 'waooaw-celery[all]'` brings what every command and every public name needs."""
    [sdist] = built.glob("*.tar.gz")
    programs = install(sys.executable, tmp_path / "venv", f"waooaw-celery[all] @ {sdist.as_uri()}")
    every = "import waooaw_celery.agents as a; print(len([getattr(a, name) for name in a.__all__]))"
    assert int(run(programs / "python", "-c", every, cwd=tmp_path)) > 100
    for command in ("console", "flower", "exporter", "demo"):
        assert "Usage:" in run(programs / "waooaw", command, "--help", cwd=tmp_path)
    needed = (
        "import starlette, uvicorn, flower, prometheus_client, opentelemetry.sdk, cryptography, pydantic_ai, "
        "google.protobuf, waooaw_celery.console.application"
    )
    done = run(programs / "python", "-W", "error::DeprecationWarning:authlib", "-c", needed, cwd=tmp_path)
    assert done == ""


def copy_of_sources(target: Path) -> Path:
    """Copy what a build reads, so that it leaves nothing in the repository."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis", "celerybeat*"
    )
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def build(source: Path, folder: Path) -> None:
    """Build the sdist, and the wheel from it."""
    command = (sys.executable, "-m", "build", "--outdir", folder)
    try:
        run(*command, "--installer", "uv", source, cwd=folder)
    except AssertionError:
        run(*command, source, cwd=folder)


def install(python: str, folder: Path, requirement: str) -> Path:
    """Install a requirement into a new, empty environment; return the folder of its programs."""
    run(python, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    programs = folder / "bin"
    uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", programs / "python")
    try:
        run(*uv, requirement, cwd=folder.parent)
    except AssertionError:  # without compiling what is never imported
        pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--no-compile", requirement, cwd=folder.parent)
    return programs
