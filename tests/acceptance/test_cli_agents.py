"""The commands about agents: `agents`, `agent show`, `find`, `maintenance`, `resume`, `drain`, `contracts`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import jsonschema
import pytest
from process_pool import spawn, waooaw
from support import PROBE_FOLDER, WAIT_SECONDS, until

from waooaw_celery.testing.embedded import end

pytestmark = pytest.mark.slow


class Shop:
    """An agent with capabilities, and the environment of the commands.

    Attributes:
        name: name of the agent.
        env: the environment.
        process: its worker.
    """

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.name = f"shop-{uuid4().hex[:8]}"
        self.env = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url}
        declares = {"agent": {"tags": ["eu"], "version": "3.2", "metadata": {"model": "small"}}}
        node = f"{self.name}@{socket.gethostname()}"
        command = [sys.executable, "-m", "celery", "-A", "capability_probe", "worker", "-n", node, "-c", "1"]
        env = {"PROBE_NAME": self.name, "PROBE_DECLARES": json.dumps(declares), "WAOOAW_HEARTBEAT_SECONDS": "0.5"}
        self.process = spawn(command, log=folder / "log", env=os.environ | self.env | env, cwd=PROBE_FOLDER)
        until(lambda: self.name in self.run("agents").stdout, "the agent")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command, which must succeed unless ``check`` is False."""
        done = waooaw(*command, env=self.env)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def shown(self, *command: str) -> str:
        """Return what a command prints, on one line."""
        return " ".join(self.run(*command).stdout.split())


@pytest.fixture(scope="module")
def shop(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The agent of this file."""
    found = Shop(redis_url, tmp_path_factory.mktemp("shop"))
    yield found
    end(found.process)


def test_agents_and_agent_show_status_health_and_version(shop: Shop) -> None:
    """Also as JSON."""
    [row] = [line for line in shop.run("agents").stdout.splitlines() if shop.name in line]
    assert row.split()[1:5] == ["alive", "online", "healthy", "3.2"]
    shown = shop.shown("agent", "show", shop.name)
    for part in ("healthy", "summarise@2.1, tell@3.2", "eu", '{"model": "small"}', f"{shop.name}@"):
        assert part in shown
    info = json.loads(shop.run("agent", "show", shop.name, "--json").stdout)
    assert info["workers"][0]["profile"]["contracts"]["tell"]["part"] == {"type": "integer"}
    failed = shop.run("agent", "show", "nobody-has-this-name", check=False)
    assert failed.returncode == 4
    assert "is not known" in failed.stderr


def test_find_lists_the_agents_with_a_capability(shop: Shop) -> None:
    """It says which of them get messages, and why not."""
    assert f"{shop.name} summarise@2.1 online healthy yes eu" in shop.shown("find", "summarise", "--tag", "eu")
    assert shop.name not in shop.shown("find", "summarise", "--version", ">=3")
    shop.run("maintenance", shop.name, "--by", "ada", "--reason", "new model")
    shown = shop.shown("find", "summarise", "--version", "2")
    assert f"{shop.name} summarise@2.1 maintenance healthy no" in shown
    assert "ada set it to maintenance" in shown
    refused = shop.run("send", "capability:summarise", "{}", check=False)
    assert refused.returncode == 1
    assert "no agent is available for capability:summarise" in refused.stderr
    assert "is online" in shop.shown("resume", shop.name)
    sent = json.loads(shop.run("send", "--json", "capability:summarise@2", '{"file": "/dev/null"}').stdout)
    assert sent["to_agent"] == shop.name


def test_a_request_by_capability_from_the_shell(shop: Shop) -> None:
    """Wrong arguments are named before anything is sent."""
    good = json.dumps({"text": {"body": "a"}})
    assert json.loads(shop.run("request", "capability:summarise", "shorten", good).stdout)["by"] == shop.name
    refused = shop.run("request", shop.name, "shorten", '{"text": {"body": 5}}', check=False)
    assert refused.returncode == 1
    assert "$.text.body: 5 is not of type 'string'" in refused.stderr


def test_contracts_are_printed_compared_and_written_as_asyncapi(shop: Shop, tmp_path: Path) -> None:
    """A change that breaks callers makes the command fail, for CI."""
    shown = shop.shown("contracts", shop.name)
    assert f"{shop.name}.shorten summarise@2.1 text: object, words?: integer" in shown
    assert "parts: integer" in shown
    document = json.loads(shop.run("contracts", shop.name, "--json").stdout)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    assert "No change breaks callers" in shop.shown("contracts", "--check", str(old))
    properties = document["agents"][shop.name]["methods"]["shorten"]["parameters"]["properties"]
    properties["words"] = {"type": "string"}
    old.write_text(json.dumps(document))
    failed = shop.run("contracts", "--check", str(old), check=False)
    assert failed.returncode == 1
    assert f"{shop.name}.shorten parameters.words: string is not accepted any more, only integer" in failed.stdout
    official = json.loads((Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json").read_text())
    made = json.loads(shop.run("contracts", "--asyncapi").stdout)
    jsonschema.Draft7Validator(official).validate(made)
    assert made["channels"][f"agent.{shop.name}"]["address"] == f"agent.{shop.name}"


def test_traffic_sets_weights(shop: Shop) -> None:
    """With the weight 0, the agent gets no message by capability."""
    assert f"{shop.name} has the weight 0." in shop.shown("traffic", f"{shop.name}=0")
    refused = shop.run("send", "capability:summarise", "{}", check=False)
    assert "its weight is 0" in refused.stderr
    assert f"{shop.name} has the weight 1." in shop.shown("traffic", f"{shop.name}=declared")
    assert "is not AGENT=WEIGHT" in shop.run("traffic", f"{shop.name}=much", check=False).stderr


def test_drain_waits_until_the_workers_have_stopped(shop: Shop) -> None:
    """It is the last test: the agent ends."""
    shown = shop.shown("drain", shop.name, "--by", "ada", "--wait", "30")
    assert "its workers (1) take nothing new" in shown
    assert "all of them have stopped" in shown
    assert shop.process.wait(WAIT_SECONDS) == 0
