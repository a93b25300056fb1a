"""The code and the commands of the README and of the first guides, run as a newcomer runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from support import until

from waooaw_celery import AgentApp, MessageBus, MessageStatus, create_app
from waooaw_celery.agents import Workflows, WorkflowStatus
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.testing.embedded import running

ROOT = Path(__file__).parents[2]
#: The pages whose files and ``console`` blocks are run, in the order in which a newcomer reads them.
PAGES = ("README.md", "docs/getting-started.md", "docs/first-workflow.md", "docs/async.md", "docs/streams.md")
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)


def files() -> dict[str, str]:
    """Return the files that the pages show, by the name in their first line."""
    blocks = re.findall(r"```python\n(# (\w+\.py)\n.*?)```", TEXT, re.DOTALL)
    return {name: text for text, name in blocks}


def console() -> list[tuple[str, str]]:
    """Return the commands that the pages show, each once, with the longest output that is shown below it."""
    text = "\n".join(re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL))
    found = re.findall(r"^\$ (.+)\n((?:(?!\$).*\n?)*)", text, re.M)
    shown: dict[str, str] = {}
    for command, output in found:
        shown[command] = max(shown.get(command, ""), output.strip(), key=len)
    return list(shown.items())


@pytest.fixture(scope="module")
def newcomer(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the files of the pages, and their agents running as the pages say."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, text in files().items():
        (folder / name).write_text(text)
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "CELERY_BROKER_URL": redis_url,
        "WAOOAW_DATABASE_URL": f"sqlite:///{folder}/agents.sqlite",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    run("waooaw db upgrade", folder, env)
    app = create_app(broker_url=redis_url, waooaw_database_url=env["WAOOAW_DATABASE_URL"])
    with ExitStack() as workers:
        for name in ("greeter", "host", "advisor"):
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


def application(env: dict[str, str]) -> closing[AgentApp]:
    """Return an application that reads what the agents' workers write, and is closed in the end."""
    return closing(create_app(broker_url=env["CELERY_BROKER_URL"], waooaw_database_url=env["WAOOAW_DATABASE_URL"]))


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


def test_two_agents_talk_and_are_seen(newcomer: tuple[Path, dict[str, str]]) -> None:
    """The host asks the greeter and sends it a message: the conversation, and the console, show both."""
    folder, env = newcomer
    [send] = [command for command, _ in console() if command.startswith("waooaw send host")]
    id_ = json.loads(run(f"{send} --json", folder, env))["message_id"]
    receipt, shown = (
        f"{command.replace('MESSAGE_ID', id_)} --json" for command, _ in console() if "MESSAGE_ID" in command
    )
    with application(env) as app:
        until(lambda: MessageBus(app).receipt(id_).status is MessageStatus.HANDLED, "the end of the message")
    assert json.loads(run(receipt, folder, env))["status"] == "handled"
    log = folder / "greeter.log"
    until(lambda: "host says {'said': 'Hello, Ada!'}" in log.read_text(), "the message of the host")
    records = json.loads(run(shown, folder, env))
    assert {"command", "greet"} <= {record["receipt"]["handler"] for record in records}
    [start] = [command for command, _ in console() if command == "waooaw console"]
    page_log = folder / "console.log"
    with running(shlex.split(f"{start} --port 0"), log=page_log, env=env, cwd=folder) as server:
        said = "The console, read-only: "
        until(lambda: server.poll() is not None or said in page_log.read_text(), "the console")
        address = page_log.read_text().partition(said)[2].split()[0]
        with urlopen(f"{address}agents", timeout=10) as page:  # noqa: S310 - the console's own address
            text = page.read().decode()
    assert ">greeter<" in text
    assert ">host<" in text


@pytest.mark.slow
def test_the_first_workflow_survives_the_end_of_its_worker(newcomer: tuple[Path, dict[str, str]]) -> None:
    """It is started, its worker is killed, it is answered, and another worker brings its result."""
    folder, env = newcomer
    [worker] = [command for command, _ in console() if command.startswith("celery -A party worker")]
    begin, show, signal, result = [each for each in console() if each[0].startswith("waooaw workflow")]
    env = env | {"WAOOAW_WORKFLOW_LEASE_SECONDS": "2"}  # so that the next worker takes over soon
    log = folder / "party.log"
    with running(shlex.split(worker), log=log, env=env, cwd=folder) as first, application(env) as app:
        until(lambda: declared(app, "party", first, log), "the start of the party's worker")
        run(begin[0], folder, env)
        waits = WorkflowStatus.WAITING
        until(lambda: Workflows(app).get("party-1").status is waits, "the wait for the signal")
        first.kill()
    assert "signal approval" in run(show[0], folder, env)
    run(signal[0], folder, env)
    with running(shlex.split(worker), log=log, env=env, cwd=folder):
        assert json.loads(run(result[0], folder, env)) == json.loads(result[1])


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


#: Commands that the tests above run.
ABOVE = ("waooaw console", "waooaw db upgrade", "waooaw workflow")


@pytest.mark.parametrize(
    ("command", "output"),
    [(c, o) for c, o in console() if c.startswith("waooaw") and not c.startswith(ABOVE) and "MESSAGE_ID" not in c],
)
def test_the_commands_of_the_pages_work(command: str, output: str, newcomer: tuple[Path, dict[str, str]]) -> None:
    """Each `waooaw` command prints what is shown, and something; it takes --json."""
    shown = run(command, *newcomer)
    assert shown.strip()
    assert output in shown
    assert run(f"{command} --json", *newcomer).strip()


def test_celery_has_the_commands_too(newcomer: tuple[Path, dict[str, str]]) -> None:
    """`celery -A greeter waooaw` is the same with the application of a module."""
    assert "greeter" in run("celery -A greeter waooaw agents", *newcomer)
