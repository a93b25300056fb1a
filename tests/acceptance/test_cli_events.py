"""`waooaw events` and `waooaw broadcast`, as real processes against a real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from process_pool import waooaw
from support import Broker, until

from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end_all, running

ROOT = Path(__file__).parents[2]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    folder = tmp_path_factory.mktemp("events")
    return Broker(redis_url, redis_url, folder, f"sqlite:///{folder / 'ledger.sqlite'}")


@pytest.fixture(scope="module")
def agent(broker: Broker) -> Iterator[str]:
    """Name of a running agent with subscriptions, which is also the first word of its topics."""
    app = broker.app()
    schema.upgrade(app.database)
    name = broker.name()
    process = broker.start(name, app, module="event_probe", env={"PROBE_TOPICS": name})
    yield name
    end_all([process])
    app.close()


@pytest.fixture
def cli(broker: Broker) -> Cli:
    """Run `waooaw` with these arguments."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        assert broker.database_url is not None
        settings = {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": broker.database_url, "COLUMNS": "200"}
        return waooaw(*arguments, env=settings, stdin=stdin)

    return run


@pytest.fixture
def run_json(cli: Cli) -> Callable[..., Any]:
    """Return a function that runs `waooaw … --json` and returns the parsed output."""

    def run(*arguments: str, stdin: str = "") -> Any:
        done = cli(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_events_are_published_counted_and_replayed(agent: str, cli: Cli, run_json: Callable[..., Any]) -> None:
    """Events are published and counted; a subscription is removed, restored, and gets a replay."""
    topic = f"{agent}.happened"
    published = run_json("events", "publish", topic, "-", stdin='{"n": 1}')
    assert list(published["receipts"]) == [f"{agent}.one"]
    run_json("events", "publish", topic, '{"n": 2}', "--priority", "high", "--ttl", "0")

    mine = {each["subscriber"]: each for each in run_json("events", "subscriptions")}
    assert mine[f"{agent}.one"]["patterns"] == [f"{agent}.*"]
    assert mine[f"{agent}.large"]["where"] == {"size": {"gte": 100}}

    def counts() -> Any:
        [found] = [each for each in run_json("events", "topics") if each["topic"] == topic]
        return found["published"], found["subscribers"][0]["handled"]

    until(lambda: counts() == (2, 2), "the counts")
    assert [each["receipt"]["status"] for each in run_json("log", "--topic", topic)].count("published") == 2

    removed = cli("events", "unsubscribe", f"{agent}.one")
    assert "still handles what was sent before (0 messages)" in removed.stdout
    shown = cli("events", "subscriptions").stdout
    assert "removed" in shown
    assert " s ago" in shown
    nobody = cli("events", "publish", topic, '{"n": 3}')
    assert "nobody: no subscription matches" in nobody.stdout
    assert cli("events", "resubscribe", f"{agent}.one").returncode == 0

    replay = ("events", "replay", f"{agent}.one", "--since", "2026-01-01", "--topic", f"{agent}.#")
    assert run_json(*replay, "--where", '{"n": [2, 3]}', "--dry-run")["events"] == 2
    done = run_json(*replay, "--per-second", "50")
    assert done["events"] == len(done["message_ids"]) == 3
    faster = cli(*replay, "--speed", "1000")
    assert "3 events from 20" in faster.stdout
    assert f"were sent to {agent}.one again" in faster.stdout
    until(lambda: counts() == (3, 8), "the replays")


@pytest.mark.slow
def test_the_systems_worker_replays(agent: str, broker: Broker, cli: Cli, run_json: Callable[..., Any]) -> None:
    """`replay --no-wait` returns at once; `replays`, `replay-progress` and `cancel-replay` follow and end it."""
    topic = f"{agent}.replayed"
    ids = [run_json("events", "publish", topic, f'{{"n": {n}}}')["event_id"] for n in range(3)]
    options = ("--id", ids[2], "--id", ids[0], "--limit", "1")
    told = cli("events", "replay", f"{agent}.one", *options, "--no-wait").stdout
    id_ = told.partition(" ")[0]
    assert f"{id_} waits for the system's worker" in told
    slow = run_json("events", "replay", f"{agent}.one", "--id", ids[1], "--no-wait")
    cancelled = cli("events", "cancel-replay", slow["replay_id"])
    assert f"cancelled: 0 events sent to {agent}.one" in cancelled.stdout
    assert "no replay 'nothing'" in cli("events", "replay-progress", "nothing").stderr
    env = os.environ | {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url)}
    command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "worker", "-c", "1", "--without-mingle"]
    log = broker.folder / "system.log"
    with running([*command, "-n", f"{broker.name()}@%h"], log=log, env=env, cwd=ROOT):
        until(lambda: run_json("events", "replay-progress", id_)["state"] == "finished", "the replay")
    assert f"finished: 1 event sent to {agent}.one, up to 20" in cli("events", "replay-progress", id_).stdout
    found = {each["replay_id"]: each["state"] for each in run_json("events", "replays")}
    assert found == {id_: "finished", slow["replay_id"]: "cancelled"}
    assert id_ in cli("events", "replays").stdout
    replayed = [each for each in run_json("log", "--topic", topic) if (each["event"] or {}).get("replay")]
    assert [each["payload"] for each in replayed] == [{"n": 0}]


def test_topics_and_schemas_are_shown_as_tables(agent: str, cli: Cli) -> None:
    """`events topics` shows the topics with their subscribers, `events schemas` the schemas."""
    cli("events", "publish", f"{agent}.retry.now", "1")
    shown = cli("events", "topics").stdout
    assert f"{agent}.retry.now" in shown
    assert f"{agent}.failing" in shown
    assert '{"required": ["n"]}' in cli("events", "schemas").stdout
    versions = json.loads(cli("events", "schemas", "--json").stdout)
    assert [each["version"] for each in versions if each["topic"] == f"{agent}.checked"] == ["1", "2"]


def test_broadcast_goes_to_agents_or_a_capability(agent: str, cli: Cli, run_json: Callable[..., Any]) -> None:
    """`broadcast` sends to named agents, to all, or to a capability, but not to a mix of them."""
    assert list(run_json("broadcast", '{"a": 1}', "--to", agent)) == [agent]
    assert list(run_json("broadcast", '{"a": 2}', "--capability", "probing")) == [agent]
    assert agent in run_json("broadcast", '{"a": 3}', "--all")
    assert cli("broadcast", "1").returncode == 2
    assert cli("broadcast", "1", "--to", agent, "--all").returncode == 2
    assert "untagged" in cli("agents").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("publish", "task.*", "{}"), "has the wildcard '*'"),
        (("publish", "{agent}.checked", '{"n": "x"}'), "at $.n: 'x' is not of type 'integer'"),
        (("publish", "{agent}.checked", '{"n": 1}', "--schema-version", "9"), "known: 1, 2"),
        (("unsubscribe", "nobody.there"), "there is no subscription 'nobody.there'"),
        (("replay", "nobody.there", "--since", "2026-01-01"), "there is no subscription"),
        (("replay", "{agent}.one"), "neither since nor conversation"),
        (("replay", "{agent}.one", "--conversation", "no-such"), "no message, thread or conversation"),
        (("replay", "{agent}.one", "--since", "2026-01-01", "--topic", "a..b"), "empty word"),
        (("replay", "{agent}.one", "--since", "2026-01-01", "--where", "[]"), "a filter must be a mapping"),
        (
            ("replay", "{agent}.one", "--since", "2026-01-01", "--speed", "1", "--per-second", "1"),
            "per_second and speed are both set",
        ),
    ],
)
def test_mistakes_are_one_sentence(agent: str, cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    """A mistake is one sentence on standard error, with exit code 1 or 4 and without a traceback."""
    done = cli("events", *(argument.replace("{agent}", agent) for argument in arguments))
    assert done.returncode == (4 if sentence.startswith(("there is no", "no message")) else 1)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
