"""`waooaw init`: the project that it writes runs as it is, and passes this project's checks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from process_pool import waooaw
from support import until

from waooaw_celery.cli.project.init import FILES
from waooaw_celery.testing.embedded import running, valkey

ROOT = Path(__file__).parents[2]
#: Seconds for the project's own tests, which start a server and a worker.
TEST_SECONDS = 110.0

Json = dict[str, Any]


def init(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `waooaw init`."""
    return waooaw("init", *arguments, env={})


def clean(**more: str) -> dict[str, str]:
    """Return an environment without settings of Celery and of this package, in which programs are found."""
    hidden = ("CELERY_", "WAOOAW_", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    scripts = Path(sys.executable).parent
    return env | {"PATH": f"{scripts}{os.pathsep}{env['PATH']}"} | more


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project."""
    folder = tmp_path_factory.mktemp("new") / "my_agents"
    done = init(str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Wrote {len(FILES)} files into {folder}. Next: cd {folder}, and read README.md.\n"
    return folder


def commands(project: Path) -> list[str]:
    """Return the commands that the project's README shows."""
    return re.findall(r"^\$ (.+)$", (project / "README.md").read_text(), re.MULTILINE)


def test_all_files_are_written(project: Path, tmp_path: Path) -> None:
    """Each template is a file, with the project's name in place of the mark."""
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {"README.md", "docker-compose.yml", ".gitignore", "pyproject.toml", "my_agents/greeter.py"} <= written
    assert len(written) == len(FILES)
    for path in written:
        assert "@PROJECT@" not in (project / path).read_text()
    done = init(str(tmp_path / "others"), "--json")
    found = json.loads(done.stdout)
    assert found["files"] == sorted(path.replace("my_agents", "others") for path in written)
    folder = ROOT / "waooaw_celery" / "cli" / "project" / "templates"
    assert {path.name for path in folder.iterdir()} == set(FILES.values())


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS + 10)
def test_its_own_tests_pass(project: Path) -> None:
    """The first command of the README, with a server from a wheel."""
    program, *words = shlex.split(commands(project)[0])
    assert program == "pytest"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-p", "no:cacheprovider"],
        cwd=project,
        env=clean(),
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_its_worker_handles_a_message(project: Path, tmp_path: Path) -> None:
    """The second command of the README starts the worker, and the third sends it a message, which it handles."""
    _, start, send = commands(project)
    with valkey() as url:
        env = clean(CELERY_BROKER_URL=url)
        log = tmp_path / "log"
        with running(shlex.split(start), log=log, env=env, cwd=project) as worker:

            def run(command: str) -> subprocess.CompletedProcess[str]:
                assert worker.poll() is None, log.read_text()
                return subprocess.run(
                    shlex.split(command), env=env, capture_output=True, text=True, timeout=60, check=False
                )

            until(lambda: run("waooaw agent show greeter").returncode == 0, "the start of the worker")
            sent = run(f"{send} --json")
            assert sent.returncode == 0, sent.stderr
            id_ = json.loads(sent.stdout)["message_id"]
            until(
                lambda: json.loads(run(f"waooaw receipt {id_} --json").stdout)["status"] == "handled",
                "the end of the message",
            )
            assert "operator says {'task': 8}" in log.read_text()


@pytest.mark.parametrize(
    "check",
    [
        ("ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), "."),
        ("ruff", "format", "--no-cache", "--check", "--config", str(ROOT / "pyproject.toml"), "."),
        ("ruff", "check", "--no-cache", "."),
    ],
    ids=["ruff check", "ruff format", "its own ruff check"],
)
def test_its_code_passes_ruff(project: Path, check: tuple[str, ...]) -> None:
    """With this project's rules, and with its own."""
    done = subprocess.run(
        [sys.executable, "-m", *check],
        cwd=project,
        env=clean(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_code_passes_mypy(project: Path) -> None:
    """With --strict and this project's configuration; run here, it uses what mypy's cache of the linter has."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(project / "my_agents"), str(project / "tests")],
        cwd=ROOT,
        env=clean(MYPYPATH=str(project)),
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_compose_file_is_valid(project: Path) -> None:
    """It conforms to the Compose specification, has all services, and names modules that exist."""
    path = project / "docker-compose.yml"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)],
        env=clean(http_proxy="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    services: Json = yaml.safe_load(path.read_text())["services"]
    assert set(services) == {"valkey", "postgres", "migrate", "greeter", "system", "beat"}
    for name in ("greeter", "system", "beat"):
        words = shlex.split(services[name]["command"])
        module = words[words.index("-A") + 1]
        assert (project / Path(*module.split("."))).with_suffix(".py").exists()
        assert services[name]["environment"]["CELERY_BROKER_URL"] == "redis://valkey:6379/0"
    assert shlex.split(services["greeter"]["command"])[:6] == shlex.split(commands(project)[1])


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    """The error says so, and nothing is written. An empty folder is taken."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    done = init(str(folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {folder} is not empty: nothing was written\n"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    assert init(str(folder)).returncode == 0
    assert (folder / "mine" / "greeter.py").exists()


@pytest.mark.parametrize("name", ["my-agents", "2agents", "class", "a b", "agenté", "celery", "json", "tests"])
def test_a_name_that_is_no_package_is_refused(name: str, tmp_path: Path) -> None:
    """Nor is the name of a package that the project needs; nothing is written."""
    done = init(str(tmp_path / name))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Error: {name!r} is" in done.stderr or "Error: 'agent\\xe9' is" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """The file in its way is named."""
    (tmp_path / "file").write_text("")
    done = init(str(tmp_path / "file" / "agents"))
    assert done.returncode == 1
    assert "cannot be written: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr
