"""The ledger's commands, as real processes against a real agent and a database of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_pool import waooaw
from support import PROBE_FOLDER, Broker, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.write.spool.spool import Spool

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    folder = tmp_path_factory.mktemp("ledger")
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


def run(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `waooaw` on the broker and its ledger."""
    database_url = str(broker.database_url)
    env = {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": database_url, "COLUMNS": "200"}
    return waooaw(*arguments, env=env)


@pytest.fixture
def cli(broker: Broker) -> Cli:
    def succeed(*arguments: str) -> str:
        done = run(broker, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return succeed


def test_log_finds_a_failed_message(cli: Cli, app: AgentApp, agent: str) -> None:
    """`log` finds a failed message by its filters, with its payload, its events and the error."""
    message = Message(from_agent="tests", to_agent=agent, payload={"fail": "no such invoice"})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [record] = json.loads(cli("log", "--to", agent, "--status", "failed", "--text", "INVOICE", "--json"))
    assert record["receipt"]["message_id"] == message.message_id
    assert record["payload"] == {"fail": "no such invoice"}
    assert [event["event"] for event in record["events"]] == ["sent", "delivered", "failed"]
    assert record["events"][2]["worker"] is None or agent in record["events"][2]["worker"]
    assert "ValueError: no such invoice" in cli("log", "--to", agent, "--status", "failed")


def test_conversation_shows_causes_before_effects(cli: Cli, app: AgentApp, agent: str) -> None:
    """A message that a handler sent is listed below the message that the handler got."""
    first = Message(from_agent="tests", to_agent=agent, payload={"forward_to": agent, "forward": {"step": 2}})
    MessageBus(app).send(first)
    assert settled(app, first.message_id) is MessageStatus.HANDLED
    records = json.loads(cli("conversation", first.message_id, "--json"))
    assert [record["receipt"]["from_agent"] for record in records] == ["tests", agent]
    assert records[1]["causation_id"] == first.message_id
    assert first.message_id in cli("conversation", first.message_id)


def test_stats_counts_and_measures(cli: Cli, agent: str, app: AgentApp) -> None:
    """`stats` counts by status and type, and measures the durations."""
    facts = json.loads(cli("stats", "--json"))
    assert facts["total"] == sum(facts["by_status"].values()) > 0
    assert facts["delivery"]["p50"] is not None
    assert "error rate" in cli("stats")
    assert json.loads(cli("stats", "--until", "2001-01-01", "--json"))["total"] == 0


@pytest.mark.slow
def test_a_held_message_is_not_erased(cli: Cli, app: AgentApp, agent: str) -> None:
    """A hold keeps a payload from being erased until it is released; a purge prints what it removed."""
    secret = Message(from_agent="tests", to_agent=agent, payload={"name": "Ada"})
    MessageBus(app).send(secret)
    assert settled(app, secret.message_id) is MessageStatus.HANDLED
    cli("hold", "add", "message", secret.message_id, "--reason", "lawsuit")
    assert [hold["reason"] for hold in json.loads(cli("hold", "list", "--json"))] == ["lawsuit"]
    assert json.loads(cli("erase", "--containing", "ada", "--yes", "--json"))["messages"] == 0
    cli("hold", "release", "message", secret.message_id)
    assert json.loads(cli("erase", "--containing", "ada", "--yes", "--json"))["messages"] == 1
    assert json.loads(cli("log", "--text", "Ada", "--json")) == []
    assert json.loads(cli("purge", "--dry-run", "--json"))["messages"] == 0
    assert "removed 0 messages" in cli("purge")


@pytest.mark.slow
def test_commands_print_no_forged_line(cli: Cli, app: AgentApp, agent: str) -> None:
    """A payload and an error with line breaks and escape sequences are printed as escapes by every command."""
    text = "first\n[forged] line \x1b[2J\x9b31m\u202e"
    message = Message(from_agent="tests", to_agent=agent, payload={"fail": text})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [letter] = json.loads(cli("dead", "list", "--agent", agent, "--reason", "forged", "--json"))
    commands = (
        ("log", "--to", agent, "--text", "forged"),
        ("conversation", message.message_id),
        ("receipt", message.message_id),
        ("dead", "list", "--agent", agent),
        ("dead", "show", letter["id"]),
    )
    for command in (*commands, *((*each, "--json") for each in commands)):
        printed = cli(*command)
        assert "forged" in printed, command
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]|^ *\\[forged]", printed, re.MULTILINE), command
    [record] = json.loads(cli("log", "--to", agent, "--text", "forged", "--json"))
    assert record["payload"] == {"fail": text}


@pytest.mark.slow
def test_erase_counts_each_place_and_names_what_remains(cli: Cli, app: AgentApp, agent: str) -> None:
    """The tables have the number of messages and dead letters, and what no erasure reaches."""
    message = Message(from_agent="eva", to_agent=agent, payload={"fail": "no such person"})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    printed = cli("erase", "--agent", "eva", "--yes")
    assert re.search(r"messages +1 *\n", printed)
    assert re.search(r"dead letters +1 *\n", printed)
    assert "Not reached" in printed
    assert "backups" in printed


def test_a_worker_needs_the_schema(broker: Broker, tmp_path: Path) -> None:
    """Without the schema a worker does not start and names `db upgrade`, which creates it."""
    empty = Broker(broker.url, broker.redis_url, tmp_path, f"sqlite:///{tmp_path / 'new.sqlite'}")
    worker = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "probe", "worker", "-c", "1"],
        cwd=PROBE_FOLDER,
        env=os.environ
        | {"CELERY_BROKER_URL": empty.url, "WAOOAW_DATABASE_URL": str(empty.database_url), "PROBE_NAME": "early"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert worker.returncode == 1
    assert "run `waooaw db upgrade`" in worker.stderr
    before = run(empty, "db", "status")
    assert (before.returncode, "schema is missing" in before.stderr) == (1, True)
    assert run(empty, "db", "upgrade").returncode == 0
    assert "which is the version needed" in run(empty, "db", "status").stdout


def test_spool_works_while_the_database_is_down(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spool` counts the rows that wait, and lists the refused rows with the reason."""
    monkeypatch.setenv("WAOOAW_SPOOL_FOLDER", str(tmp_path / "spool"))
    broken = Broker(broker.url, broker.redis_url, tmp_path, f"sqlite:///{tmp_path / 'no' / 'ledger.sqlite'}")
    assert "0 rows wait, 0 were refused" in run(broken, "spool").stdout
    spool = Spool(str(tmp_path / "spool"), str(broken.database_url))
    spool.append([LedgerRow("fact", message_id, "{}") for message_id in ("one", "two", "three")])
    spool.refuse(spool.first(1, 1000)[0][0], "too large a number")
    shown = json.loads(run(broken, "spool", "--json").stdout)
    assert (shown["path"], shown["waiting"], shown["refused"]) == (str(spool.path), 2, 1)
    assert shown["refusals"] == [{"message_id": "one", "kind": "fact", "reason": "too large a number"}]
    [row] = [line for line in run(broken, "spool").stdout.splitlines() if "too large a number" in line]
    assert row.split()[0] == "one"


def test_without_a_ledger_log_names_the_setting(broker: Broker) -> None:
    """Without waooaw_database_url, `waooaw log` ends with one sentence that names it."""
    none = Broker(broker.url, broker.redis_url, broker.folder)
    env = {name: value for name, value in os.environ.items() if name != "WAOOAW_DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "waooaw_celery", "log"],
        env=env | {"CELERY_BROKER_URL": none.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "there is no ledger: set waooaw_database_url" in done.stderr) == (1, True)
