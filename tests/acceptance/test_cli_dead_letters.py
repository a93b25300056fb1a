"""`waooaw dead`, as real processes against a real agent."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from process_pool import waooaw
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end_all, valkey

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that only this module uses, so that it has no other dead letters."""
    folder = tmp_path_factory.mktemp("dead")
    with valkey() as url:
        yield Broker(url, url, folder, f"sqlite:///{folder / 'ledger.sqlite'}")


@pytest.fixture(scope="module")
def app(broker: Broker) -> Iterator[AgentApp]:
    app = broker.app()
    schema.upgrade(app.database)
    yield app
    app.close()


@pytest.fixture(scope="module")
def agent(broker: Broker, app: AgentApp) -> Iterator[str]:
    """Name of a running agent."""
    name = broker.name()
    process = broker.start(name, app)
    yield name
    end_all([process])


@pytest.fixture
def cli(broker: Broker) -> Cli:
    """Run `waooaw dead` with these arguments."""

    def run(*arguments: str, stdin: str = "", columns: int = 250) -> subprocess.CompletedProcess[str]:
        assert broker.database_url is not None
        settings = {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": broker.database_url}
        return waooaw("dead", *arguments, env=settings | {"COLUMNS": str(columns)}, stdin=stdin)

    return run


def send_to_failing_handler(app: AgentApp, agent: str, payload: Any) -> str:
    """Send a message whose handler fails, wait for its end, and return its id."""
    message = Message(from_agent="boss", to_agent=agent, payload=payload)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    return message.message_id


@pytest.mark.slow
def test_dead_letters_are_listed_shown_retried_and_discarded(
    app: AgentApp, agent: str, cli: Cli, tmp_path: Path
) -> None:
    """Each command prints what it did; `retry` chooses by the reason, `discard` takes the rest."""
    needed = tmp_path / "needed"
    first, second = (send_to_failing_handler(app, agent, {"needs": str(needed), "n": number}) for number in (1, 2))
    broken = send_to_failing_handler(app, agent, {"fail": "for ever"})
    app.dead_letters.add(f"agent.{agent}", "it is \x1b[31mred", b"\xff\x1b[31m")

    listed = json.loads(cli("list", "--agent", agent, "--json").stdout)
    assert [letter["message_id"] for letter in listed] == [None, broken, second, first]
    assert (listed[3]["from_agent"], listed[3]["task"]) == ("boss", f"{agent}.command")
    table = cli("list")
    assert "Dead letters (4)" in table.stdout
    assert f"     2  to {agent}: FileNotFoundError: there is no needed" in table.stdout  # two died alike
    assert "\x1b" not in table.stdout

    narrow = cli("list", "--message", broken, columns=80)
    assert "Dead letters (1)" in narrow.stdout
    assert max(map(len, narrow.stdout.splitlines())) <= 80
    facts = (listed[1]["id"], broken, f"{agent}.command", "ValueError: for ever")
    assert [fact for fact in facts if fact not in narrow.stdout] == []
    [*_, row] = cli("list", "--message", broken, "--wide", columns=80).stdout.splitlines()
    assert [fact for fact in facts if fact not in row] == []

    shown = json.loads(cli("show", listed[3]["id"], "--json").stdout)
    assert (shown["payload"], shown["unreadable"]) == ({"needs": str(needed), "n": 1}, None)
    garbage = cli("show", listed[0]["id"])
    assert "not readable JSON" in garbage.stdout
    assert "\x1b" not in garbage.stdout
    unread = json.loads(cli("show", listed[0]["id"], "--json").stdout)
    assert base64.b64decode(unread["raw"]) == b"\xff\x1b[31m"

    needed.touch()
    asked = cli("retry", "--reason", "there is no needed", stdin="n\n")
    assert asked.returncode == 1
    assert "Send again 2 dead letters?" in asked.stderr
    done = json.loads(cli("retry", "--reason", "there is no needed", "--yes", "--by", "ada", "--json").stdout)
    assert [(each["message_id"], each["refused"]) for each in done] == [(first, None), (second, None)]
    for each in done:
        until(lambda id_=each["new_id"]: MessageBus(app).receipt(id_).status.final, "the end")
        assert MessageBus(app).receipt(each["new_id"]).status is MessageStatus.HANDLED

    refused = cli("retry", "--all", "--yes", "--limit", "10")
    assert refused.returncode == 1
    assert "1 done, 1 refused" in refused.stdout
    until(lambda: len(app.dead_letters.list()) == 2, "the dead letter of the message that failed again")

    gone = cli("discard", "--all", "--because", "seen", "--yes", "--limit", "1")
    assert "1 done, 0 refused" in gone.stdout
    assert "There may be more" in gone.stderr
    gone = cli("discard", "--all", "--because", "seen", "--yes")
    assert "1 done, 0 refused" in gone.stdout
    assert "There may be more" not in gone.stderr
    assert "No dead letter matches." in cli("discard", "--all", "--because", "seen", "--yes").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("retry", "--yes"), "choose dead letters"),
        (("retry", "1-1", "--all", "--yes"), "choose dead letters"),
        (("discard", "--all", "--yes"), "--because"),
        (("show", "1-1"), "there is no dead letter '1-1'"),
        (("retry", "1-1", "--yes"), "there is no such dead letter"),
        (("list", "--since", "yesterday"), "not a time"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(agent: str, cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    """A wrong argument ends with one sentence, an exit code other than 0 and no traceback."""
    done = cli(*arguments)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
