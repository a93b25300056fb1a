"""The code and the commands of the README and of the first guides, run as a newcomer runs them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import until

from waooaw_celery import AgentApp, create_app
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.testing.embedded import running

ROOT = Path(__file__).parents[2]
#: The pages whose files and ``console`` blocks are run, in the order in which a newcomer reads them.
PAGES = ("README.md", "docs/getting-started.md", "docs/async.md", "docs/streams.md")
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)


def files() -> dict[str, str]:
    """Return the files that the pages show, by the name in their first line."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", TEXT, re.DOTALL)
    return {name: text for text, name in blocks}


def console() -> list[tuple[str, str]]:
    """Return the commands that the pages show, each once, with the output below it."""
    text = "\n".join(re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL))
    found = re.findall(r"^\$ (.+)\n((?:(?!\$).*\n?)*)", text, re.M)
    return list(dict.fromkeys((command, output.strip()) for command, output in found))


@pytest.fixture(scope="module")
def newcomer(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the files of the pages, and their agents running as the pages say."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, text in files().items():
        (folder / name).write_text(text)
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "CELERY_BROKER_URL": redis_url,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    app = create_app(broker_url=redis_url)
    with ExitStack() as workers:
        for name in ("greeter", "advisor"):
            [start] = [command for command, _ in console() if command.startswith(f"celery -A {name} worker")]
            log = folder / f"{name}.log"
            worker = workers.enter_context(running(shlex.split(start), log=log, env=env, cwd=folder))
            until(
                lambda name=name, worker=worker, log=log: declared(app, name, worker, log), f"the start of {name}"
            )
        yield folder, env
    app.close()


def declared(app: AgentApp, name: str, worker: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether an agent has said that it lives; its worker must not have ended."""
    assert worker.poll() is None, log.read_text()
    try:
        return bool(app.registry.get(name).workers)
    except UnknownAgent:
        return False


def run(command: str, folder: Path, env: dict[str, str]) -> str:
    """Run a command of a page and return what it printed."""
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_agent_is_about_fifteen_lines() -> None:
    """The README's agent is one short file."""
    assert len([line for line in files()["greeter.py"].splitlines() if line.strip()]) <= 15


def test_the_caller_prints_what_the_guide_says(newcomer: tuple[Path, dict[str, str]]) -> None:
    """caller.py gets its answer and its receipt."""
    [expected] = [output for command, output in console() if command == "python caller.py"]
    assert run("python caller.py", *newcomer).strip() == expected
    log = newcomer[0] / "greeter.log"
    until(lambda: "caller says {'task': 7}" in log.read_text(), "the agent's print")


def test_the_listener_prints_what_the_guide_says(newcomer: tuple[Path, dict[str, str]]) -> None:
    """listener.py takes an answer in parts, and another one whole, from an agent that asks another."""
    [expected] = [output for command, output in console() if command == "python listener.py"]
    assert run("python listener.py", *newcomer).strip() == expected


@pytest.mark.slow
def test_the_planner_hears_what_the_publisher_publishes(newcomer: tuple[Path, dict[str, str]]) -> None:
    """publisher.py reaches the subscriber, as soon as that has started once."""
    folder, env = newcomer
    log = folder / "planner.log"
    [start] = [command for command, _ in console() if command.startswith("celery -A planner worker")]
    [expected] = [output for command, output in console() if command == "python publisher.py"]
    with running(shlex.split(start), log=log, env=env, cwd=folder) as worker:
        shown = "waooaw events subscriptions"
        until(lambda: worker.poll() is not None or "planner.plan" in run(shown, folder, env), "the subscription")
        assert run("python publisher.py", folder, env).strip() == expected
        said = "task.created: {'task_id': '123', 'hours': 3} from publisher"
        until(lambda: said in log.read_text(), "the subscriber's print")


@pytest.mark.parametrize("command", [c for c, _ in console() if c.startswith("waooaw") and "MESSAGE_ID" not in c])
def test_the_commands_of_the_pages_work(command: str, newcomer: tuple[Path, dict[str, str]]) -> None:
    """Each `waooaw` command of the pages ends well, also with --json and as `celery -A greeter waooaw`."""
    for variant in (command, f"{command} --json", command.replace("waooaw", "celery -A greeter waooaw", 1)):
        assert run(variant, *newcomer).strip()
