"""`waooaw conversation` and `waooaw export`, as real processes against real agents and a database of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from process_pool import waooaw
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.ledger.database import upgrade as schema

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    folder = tmp_path_factory.mktemp("conversation")
    return Broker(redis_url, redis_url, folder, f"sqlite:///{folder / 'ledger.sqlite'}")


@pytest.fixture(scope="module")
def app(broker: Broker) -> Iterator[AgentApp]:
    app = broker.app()
    schema.upgrade(app.database)
    yield app
    app.close()


@pytest.fixture(scope="module")
def agent(broker: Broker, app: AgentApp) -> Iterator[str]:
    name = broker.name()
    process = broker.start(name, app)
    yield name
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def told(app: AgentApp, agent: str) -> Message:
    """The first message of a conversation: it is tried twice, and sends one that fails."""
    message = Message(
        from_agent="tests",
        to_agent=agent,
        payload={"fail_times": 1, "forward_to": agent, "forward": {"fail": "<b>no</b> such invoice"}},
    )
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    until(lambda: len(failed(app, agent)) == 2, "the two messages that fail")
    return message


def failed(app: AgentApp, agent: str) -> list[str]:
    receipts = app.ledger.recent(limit=100)
    return [each.message_id for each in receipts if (each.from_agent, each.status.value) == (agent, "failed")]


def run(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `waooaw` on the broker and its ledger."""
    env = {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url), "COLUMNS": "200"}
    return waooaw(*arguments, env=env)


@pytest.fixture
def cli(broker: Broker) -> Cli:
    def succeed(*arguments: str) -> str:
        done = run(broker, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return succeed


def test_conversation_prints_a_tree(cli: Cli, told: Message, agent: str) -> None:
    """Each message is a line below its cause, with its status, times, retries, error and id."""
    summary, first, *others = cli("conversation", told.message_id).splitlines()
    assert summary.startswith(f"Conversation {told.message_id}: 3 messages, 2 agents, ")
    assert "2 not handled, 1 retry" in summary
    assert first.startswith(f"\u2713 tests \u2192 {agent}.command: handled, waited ")
    assert "1 retry" in first
    assert first.endswith(told.message_id)
    assert [line[:4] for line in others] == ["\u251c\u2500 \u2715", "\u2514\u2500 \u2715"]
    assert all("failed" in line and "ValueError: <b>no</b> such invoice" in line for line in others)


def test_a_terminal_without_unicode_gets_ascii(broker: Broker, told: Message, agent: str) -> None:
    """The branches and arrows are ASCII characters, and no line is lost."""
    env = {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url)}
    done = subprocess.run(
        [sys.executable, "-m", "waooaw_celery", "conversation", told.message_id],
        env=os.environ | env | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"tests -> {agent}.command: handled")
    assert [line[:3] for line in lines[2:]] == ["|- ", "`- "]


def test_conversation_prints_a_table(cli: Cli, told: Message) -> None:
    """`--table` has a row for each message with its events."""
    printed = cli("conversation", told.message_id, "--table")
    assert f"Conversation {told.message_id}, in causal order" in printed
    assert "sent (UTC)" in printed
    assert "retried" in printed


def test_conversation_prints_mermaid(cli: Cli, told: Message) -> None:
    """`--mermaid` is a sequence diagram, with the error escaped."""
    head, *lines = cli("conversation", told.message_id, "--mermaid").splitlines()
    assert head == "sequenceDiagram"
    assert lines[0] == "    participant p0 as tests"
    assert "#60;b#62;no" in lines[-1]
    assert len(lines) == 2 + 3


def test_conversation_writes_a_page(cli: Cli, broker: Broker, told: Message, tmp_path: Path) -> None:
    """`--html` writes a page to a file or to standard output; `--no-payloads` leaves the payloads out."""
    page = tmp_path / "page.html"
    assert cli("conversation", told.message_id, "--html", str(page)) == ""
    text = page.read_text("utf-8")
    assert text.count("<svg ") == 2
    assert text.count("<article ") == 3
    assert "forward_to" in text
    assert "<b>no</b>" not in text
    printed = cli("conversation", told.message_id, "--html", "-", "--no-payloads")
    assert printed.startswith("<!DOCTYPE html>")
    assert "forward_to" not in printed
    done = run(broker, "conversation", "unknown", "--html", str(tmp_path / "none.html"))
    assert done.returncode == 4  # there is no such message
    assert "no message, thread or conversation 'unknown'" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_conversation_prints_json_with_or_without_payloads(cli: Cli, told: Message) -> None:
    """`--json` is a list of records, as before; `--no-payloads` leaves out that one field."""
    whole = json.loads(cli("conversation", told.message_id, "--json"))
    assert whole[0]["payload"] == told.payload
    without = json.loads(cli("conversation", told.message_id, "--json", "--no-payloads"))
    assert without == [{name: value for name, value in each.items() if name != "payload"} for each in whole]


def test_conversation_prints_one_thing(broker: Broker, told: Message) -> None:
    """Two forms of output at once are an error of usage."""
    done = run(broker, "conversation", told.message_id, "--mermaid", "--json")
    assert (done.returncode, "give one of --table" in done.stderr) == (2, True)


def test_an_export_is_written_and_checked(cli: Cli, broker: Broker, told: Message, tmp_path: Path) -> None:
    """The export says what it wrote; the check needs no server, and ends with 1 for a tampered file."""
    path = tmp_path / "case.zip"
    printed = cli("export", str(path), "--conversation", told.message_id, "--by", "ada")
    assert "3 verified, 0 erased" in printed
    found = json.loads(
        waooaw("export", "--check", str(path), "--json", env={"CELERY_BROKER_URL": "none://"}).stdout
    )
    assert (found["differences"], found["messages"], found["payloads"]) == ([], 3, 3)
    assert found["manifest_sha256"] in printed
    assert "Every file has the sum" in cli("export", "--check", str(path))
    again = run(broker, "export", str(path), "--conversation", told.message_id)
    assert (again.returncode, "Give --force to replace it" in again.stderr) == (1, True)
    forced = json.loads(
        cli("export", str(path), "--conversation", told.message_id, "--force", "--no-payloads", "--json")
    )
    assert (forced["messages"], forced["payload_digests"]["not_exported"]) == (3, 3)
    with ZipFile(path, "a") as zip_file:
        zip_file.writestr("more.txt", "x")
    refused = run(broker, "export", "--check", str(path))
    assert (refused.returncode, "differs: more.txt is not in the manifest" in refused.stdout) == (1, True)
    missing = run(broker, "export", "--check", str(tmp_path / "none.zip"))
    assert (missing.returncode, "No such file" in missing.stderr) == (1, True)


def test_an_export_needs_a_filter(broker: Broker, tmp_path: Path) -> None:
    """Without a filter it is an error of usage; a folder that does not exist is named."""
    done = run(broker, "export", str(tmp_path / "case.zip"))
    assert (done.returncode, "give --conversation, --agent" in done.stderr) == (2, True)
    done = run(broker, "export", str(tmp_path / "none" / "case.zip"), "--agent", "tests")
    assert (done.returncode, "No such file or directory" in done.stderr) == (1, True)


def test_an_export_by_agent_and_period(cli: Cli, told: Message, agent: str, tmp_path: Path) -> None:
    """The filters of the command reach the export."""
    path = str(tmp_path / "case.zip")
    found = json.loads(cli("export", path, "--agent", agent, "--since", "2026-01-01", "--json"))
    assert found["messages"] >= 3
    assert (
        json.loads(cli("export", path, "--agent", agent, "--until", "2026-01-01", "--force", "--json"))["messages"]
        == 0
    )


def test_a_terminated_export_leaves_nothing(broker: Broker, told: Message, tmp_path: Path) -> None:
    """After SIGTERM while it writes there is neither the file nor a part of it."""
    code = (
        "import os, sys, time\n"
        "from waooaw_celery.maintenance.evidence import export\n"
        "def wait(*arguments, **options):\n"
        "    print('drawing', flush=True)\n"
        "    time.sleep(60)\n"
        "export.html_page = wait\n"
        "from waooaw_celery.cli import main\n"
        "main()\n"
    )
    env = os.environ | {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url)}
    command = [sys.executable, "-c", code, "export", str(tmp_path / "case.zip"), "--conversation", told.message_id]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"drawing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
