"""The ledger as an officer and an operator use it: real worker, real command line, a database of its own."""

from __future__ import annotations

import json
import os
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
    folder = tmp_path_factory.mktemp("officer")
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


def test_the_officer_finds_who_told_whom_what(cli: Cli, app: AgentApp, agent: str) -> None:
    """A failed message is found by its filters, with its payload, its events and the reason."""
    message = Message(from_agent="tests", to_agent=agent, payload={"fail": "no such invoice"})
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [record] = json.loads(cli("log", "--to", agent, "--status", "failed", "--text", "INVOICE", "--json"))
    assert record["receipt"]["message_id"] == message.message_id
    assert record["payload"] == {"fail": "no such invoice"}
    assert [event["event"] for event in record["events"]] == ["sent", "delivered", "failed"]
    assert record["events"][2]["worker"] is None or agent in record["events"][2]["worker"]
    assert "ValueError: no such invoice" in cli("log", "--to", agent, "--status", "failed")


def test_the_officer_reads_a_conversation(cli: Cli, app: AgentApp, agent: str) -> None:
    """What a handler sent on stands below what caused it."""
    first = Message(from_agent="tests", to_agent=agent, payload={"forward_to": agent, "forward": {"step": 2}})
    MessageBus(app).send(first)
    assert settled(app, first.message_id) is MessageStatus.HANDLED
    records = json.loads(cli("conversation", first.message_id, "--json"))
    assert [record["receipt"]["from_agent"] for record in records] == ["tests", agent]
    assert records[1]["causation_id"] == first.message_id
    assert first.message_id in cli("conversation", first.message_id)


def test_the_numbers_are_there(cli: Cli, agent: str, app: AgentApp) -> None:
    """stats counts by status and type, and measures."""
    facts = json.loads(cli("stats", "--json"))
    assert facts["total"] == sum(facts["by_status"].values()) > 0
    assert facts["delivery"]["p50"] is not None
    assert "error rate" in cli("stats")
    assert json.loads(cli("stats", "--until", "2001-01-01", "--json"))["total"] == 0


def test_what_is_held_is_not_erased(cli: Cli, app: AgentApp, agent: str) -> None:
    """A hold keeps payloads from an erasure until it is released; a purge of nothing says so."""
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


def test_the_schema_is_made_by_command_and_asked_for_at_start(broker: Broker, tmp_path: Path) -> None:
    """Without it a worker does not start and says what to run; `db upgrade` makes it, and `db status` tells."""
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
    assert "as it should be" in run(empty, "db", "status").stdout


def test_what_waits_in_the_spool_is_told(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`spool` counts what waits, and says what was refused and why, though the database is away."""
    monkeypatch.setenv("WAOOAW_SPOOL_FOLDER", str(tmp_path / "spool"))
    away = Broker(broker.url, broker.redis_url, tmp_path, f"sqlite:///{tmp_path / 'no' / 'ledger.sqlite'}")
    assert "0 entries wait, 0 were refused" in run(away, "spool").stdout
    spool = Spool(str(tmp_path / "spool"), str(away.database_url))
    spool.append([LedgerRow("fact", message_id, "{}") for message_id in ("one", "two", "three")])
    spool.refuse(spool.first(1, 1000)[0][0], "too large a number")
    told = json.loads(run(away, "spool", "--json").stdout)
    assert (told["path"], told["waiting"], told["refused"]) == (str(spool.path), 2, 1)
    assert told["refusals"] == [{"message_id": "one", "kind": "fact", "reason": "too large a number"}]
    [row] = [line for line in run(away, "spool").stdout.splitlines() if "too large a number" in line]
    assert row.split()[0] == "one"


def test_without_a_ledger_its_commands_say_what_to_set(broker: Broker) -> None:
    """`waooaw log` without waooaw_database_url is one sentence."""
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
