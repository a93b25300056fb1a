"""Events and broadcasts from the shell, as real processes against a real agent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from process_pool import waooaw
from support import Broker, until

from waooaw_celery.embedded import end_all
from waooaw_celery.ledger.database import upgrade as schema

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
def told(cli: Cli) -> Callable[..., Any]:
    """Run `waooaw … --json` and return what it says."""

    def run(*arguments: str, stdin: str = "") -> Any:
        done = cli(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_day_with_events(agent: str, cli: Cli, told: Callable[..., Any]) -> None:
    """Published, listed, counted, removed, brought back, and told again."""
    topic = f"{agent}.happened"
    published = told("events", "publish", topic, "-", stdin='{"n": 1}')
    assert list(published["receipts"]) == [f"{agent}.one"]
    told("events", "publish", topic, '{"n": 2}', "--priority", "high", "--ttl", "0")

    mine = {each["subscriber"]: each for each in told("events", "subscriptions")}
    assert mine[f"{agent}.one"]["patterns"] == [f"{agent}.*"]
    assert mine[f"{agent}.large"]["where"] == {"size": {"gte": 100}}

    def counts() -> Any:
        [found] = [each for each in told("events", "topics") if each["topic"] == topic]
        return found["published"], found["subscribers"][0]["handled"]

    until(lambda: counts() == (2, 2), "the counts")
    assert [each["receipt"]["status"] for each in told("log", "--topic", topic)].count("published") == 2

    removed = cli("events", "unsubscribe", f"{agent}.one")
    assert "(0 messages) is still handled" in removed.stdout
    shown = cli("events", "subscriptions").stdout
    assert "removed" in shown
    assert " s ago" in shown
    nobody = cli("events", "publish", topic, '{"n": 3}')
    assert "nobody: no subscription wants it" in nobody.stdout
    assert cli("events", "resubscribe", f"{agent}.one").returncode == 0

    beginning = ("events", "replay", f"{agent}.one", "--since", "2026-01-01", "--topic", f"{agent}.#")
    assert told(*beginning, "--where", '{"n": [2, 3]}', "--dry-run")["events"] == 2
    done = told(*beginning, "--per-second", "50")
    assert done["events"] == len(done["message_ids"]) == 3
    again = cli(*beginning, "--speed", "1000")
    assert "was told again of 3 events, of 20" in again.stdout
    until(lambda: counts() == (3, 8), "the replays")


def test_tables_for_people(agent: str, cli: Cli) -> None:
    """Topics with their subscribers, and schemas with their versions."""
    cli("events", "publish", f"{agent}.retry.now", "1")
    shown = cli("events", "topics").stdout
    assert f"{agent}.retry.now" in shown
    assert f"{agent}.failing" in shown
    assert '{"required": ["n"]}' in cli("events", "schemas").stdout
    versions = json.loads(cli("events", "schemas", "--json").stdout)
    assert [each["version"] for each in versions if each["topic"] == f"{agent}.checked"] == ["1", "2"]


def test_a_broadcast_from_the_shell(agent: str, cli: Cli, told: Callable[..., Any]) -> None:
    """To a list, to all, to a capability; not to both a list and a tag."""
    assert list(told("broadcast", '{"a": 1}', "--to", agent)) == [agent]
    assert list(told("broadcast", '{"a": 2}', "--capability", "probing")) == [agent]
    assert agent in told("broadcast", '{"a": 3}', "--all")
    assert cli("broadcast", "1").returncode == 2
    assert cli("broadcast", "1", "--to", agent, "--all").returncode == 2
    assert "untagged" in cli("agents").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("publish", "task.*", "{}"), "has the wildcard '*'"),
        (("publish", "{agent}.checked", '{"n": "x"}'), "at $.n: 'x' is not of type 'integer'"),
        (("publish", "{agent}.checked", '{"n": 1}', "--schema-version", "9"), "known: 1, 2"),
        (("unsubscribe", "nobody.there"), "there is no subscription 'nobody.there'"),
        (("replay", "nobody.there", "--since", "2026-01-01"), "there is no subscription"),
        (("replay", "{agent}.one"), "a replay needs since or conversation"),
        (("replay", "{agent}.one", "--conversation", "no-such"), "no message, thread or conversation"),
        (("replay", "{agent}.one", "--since", "2026-01-01", "--topic", "a..b"), "empty word"),
        (("replay", "{agent}.one", "--since", "2026-01-01", "--where", "[]"), "a filter must be a mapping"),
        (
            ("replay", "{agent}.one", "--since", "2026-01-01", "--speed", "1", "--per-second", "1"),
            "set per_second or speed, not both",
        ),
    ],
)
def test_mistakes_are_one_sentence(agent: str, cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    """On standard error, with exit code 1 and without a traceback."""
    done = cli("events", *(argument.replace("{agent}", agent) for argument in arguments))
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
