"""The folder ``examples``: the tests of each example pass, and its README's commands work with real workers."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest
from support import lone_database, until

from waooaw_celery import create_app
from waooaw_celery.agents import AgentStatus, Registry
from waooaw_celery.testing.embedded import end_all, free_port, spawn, valkey

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Example(NamedTuple):
    """What the commands of an example need, and what they print."""

    agents: tuple[str, ...]
    printed: tuple[str, ...]
    needs_postgres: bool = False


EXPECTED = {
    "support_desk": Example(("desk", "triage", "billing", "technician"), ("turn it off", "500.00 euros back")),
    "research_crew": Example(
        ("lead", "writer", "researcher-1", "researcher-2"), ("On history: Queues are", '"left_out"', "Agents")
    ),
    "order_saga": Example(
        ("shop", "payment", "stock"), ("parcel-o-1", "more than the account has", "compensated"), True
    ),
    "document_pipeline": Example(("reader", "indexer", "archivist"), ("is on its way", '"bytes": 2')),
    "fastapi_service": Example(("assistant",), ("It depends. (Is it late?)", 'data: "Let"', '"status":"sent"')),
}

#: A guide in stages, which tests/integration/test_migration_example.py runs.
MIGRATION = "migration"

each_example = pytest.mark.parametrize("name", EXPECTED)


@pytest.fixture
def own_redis() -> Iterator[str]:
    """A Valkey of its own: the agents of the examples have plain names, which other tests must not know."""
    with valkey() as url:
        yield url


@pytest.fixture
def own_database(postgres_url: str) -> Iterator[str]:
    """A database of its own, for the same reason."""
    with lone_database(postgres_url) as url:
        yield url


def environment(name: str, **more: str) -> dict[str, str]:
    """Return the variables of a process of an example: no setting of this one, and its folder on the path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CELERY_", "WAOOAW_"))}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | {"PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES / name}", "PYTEST_ADDOPTS": "", **more}


def test_every_example_is_tested_and_listed() -> None:
    """Each folder is in this file and in the table of docs/examples.md, and its modules are short."""
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    listed = re.findall(r"examples/(\w+)/README\.md", (ROOT / "docs/examples.md").read_text())
    assert folders - {MIGRATION} == set(EXPECTED)
    assert folders == set(listed)
    for path in EXAMPLES.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 125, path


@pytest.mark.slow
@each_example
def test_the_tests_of_an_example_pass_without_a_server(name: str, tmp_path: Path) -> None:
    """They pass in a process of their own, with the kit alone; warnings are errors, and none is skipped."""
    is_registered = any(each.name == "waooaw" for each in entry_points(group="pytest11"))
    plugins = [] if is_registered else ["-p", "waooaw_celery.testing.plugin"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    options = ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(EXAMPLES / name), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *options, *plugins, "."]
    env = environment(name, CELERY_BROKER_URL="redis://127.0.0.1:1/0")  # nobody is there: the kit hides it
    result = subprocess.run(
        command, cwd=EXAMPLES / name, env=env, capture_output=True, text=True, check=False, timeout=110
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout


@pytest.mark.slow
@each_example
def test_the_commands_of_an_example_work_with_real_workers(
    name: str, own_redis: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The commands of the README start the workers, and print what they promise."""
    example = EXPECTED[name]
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    if example.needs_postgres:
        ledger = request.getfixturevalue("own_database")
    servers = {"CELERY_BROKER_URL": own_redis, "CELERY_RESULT_BACKEND": own_redis, "WAOOAW_DATABASE_URL": ledger}
    folders = {"WAOOAW_SPOOL_FOLDER": str(tmp_path), "ARCHIVE_FOLDER": str(tmp_path / "archive")}
    env = environment(name, **servers, **folders)
    port = free_port()
    commands = [shlex.split(line.replace("8000", str(port))) for line in commands_of(name)]
    running = [command for command in commands if is_server(command)]
    assert running
    done(["waooaw", "db", "upgrade"], name, env)
    with processes(running, name, env, tmp_path / "log"):
        wait_for_agents(example.agents, servers)
        if any(command[0] == "uvicorn" for command in running):
            until(lambda: answers(port), "the service")
        others = [command for command in commands if not is_server(command)]
        printed = [done(command, name, env) for command in others]

        def is_complete() -> bool:
            if all(text in "".join(printed) for text in example.printed):
                return True
            printed.append(done(others[-1], name, env))  # it asks for what may not have happened yet
            return False

        until(is_complete, f"{example.printed} in {printed}", 30)


def commands_of(name: str) -> list[str]:
    """Return the commands that a README shows under "Run it"."""
    text = (EXAMPLES / name / "README.md").read_text()
    section = text.partition("## Run it\n")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def is_server(command: list[str]) -> bool:
    """Return whether a command runs until it is ended."""
    return command[0] in {"celery", "uvicorn"}


@contextmanager
def processes(commands: list[list[str]], name: str, env: dict[str, str], log: Path) -> Iterator[None]:
    """Run processes during the block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for program, *arguments in commands:
            started.append(spawn([which(program), *arguments], log=log, env=env, cwd=EXAMPLES / name))
        yield
    finally:
        end_all(started)


def done(command: list[str], name: str, env: dict[str, str]) -> str:
    """Run a command to its end, and return what it prints."""
    program = [which(command[0]), *command[1:]]
    result = subprocess.run(
        program, cwd=EXAMPLES / name, env=env, capture_output=True, text=True, check=False, timeout=90
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def which(program: str) -> str:
    """Return the program of this environment, or the one on the path."""
    here = Path(sys.executable).parent / program
    return str(here) if here.exists() else program


def wait_for_agents(agents: tuple[str, ...], servers: dict[str, str]) -> None:
    """Wait until the workers of all agents are there."""
    app = create_app(broker_url=servers["CELERY_BROKER_URL"], waooaw_database_url=servers["WAOOAW_DATABASE_URL"])
    registry = Registry(app)
    try:
        until(
            lambda: set(agents) <= {agent.name for agent in registry.list() if agent.status is AgentStatus.ONLINE},
            "the workers",
            60,
        )
    finally:
        app.close()


def answers(port: int) -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_model_of_the_support_desks_page_asks_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class that the README shows sends the prompt, and returns the text of the answer."""
    asked = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((given["prompt"], self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"text": "technical"}')

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    text = (EXAMPLES / "support_desk/README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, type] = {}
    exec(compile(code, "http_model.py", "exec"), names)  # noqa: S102 - the page's own code
    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("MODEL_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("MODEL_KEY", "secret")
        assert names["HttpModel"]().complete("Which topic?") == "technical"
        thread.join(10)
    assert asked == [("Which topic?", "Bearer secret")]
