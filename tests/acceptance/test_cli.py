"""`waooaw`, as real processes against a real agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_pool import waooaw
from support import PROBE_FOLDER, Broker, until

from waooaw_celery import AgentApp

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    return Broker(redis_url, redis_url, tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def agent(broker: Broker) -> Iterator[str]:
    """Name of a running agent."""
    app = broker.app()
    name = broker.name()
    process = broker.start(name, app)
    yield name
    process.terminate()
    process.wait(30)
    app.close()


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    app = broker.app()
    yield app
    app.close()


@pytest.fixture
def cli(broker: Broker) -> Cli:
    """Return a function that runs `waooaw` with its arguments."""

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        env = {"CELERY_BROKER_URL": broker.url, "COLUMNS": "200"} | env
        return waooaw(*arguments, env=env, stdin=stdin)

    return run


def test_receipt_shows_what_send_sent(cli: Cli, agent: str) -> None:
    """`receipt` shows the message that `send` printed, as JSON and as a table."""
    sent = json.loads(cli("send", agent, '{"n": 1}', "--priority", "urgent", "--from", "boss", "--json").stdout)
    assert (sent["from_agent"], sent["to_agent"], sent["priority"]) == ("boss", agent, "URGENT")

    def handled() -> bool:
        return bool(json.loads(cli("receipt", sent["message_id"], "--json").stdout)["status"] == "handled")

    until(handled, "handling")
    shown = cli("receipt", sent["message_id"]).stdout
    assert "handled" in shown
    assert "boss" in shown


def test_a_payload_may_come_from_standard_input(cli: Cli, agent: str) -> None:
    """`-` reads the payload from standard input; type and expiry are options."""
    done = cli("send", agent, "-", "--type", "ack", "--ttl", "0", "--json", stdin='{"long": "text"}')
    assert json.loads(done.stdout)["message_type"] == "ack"
    seen = json.loads(cli("request", agent, "seen", "--json").stdout)["result"]
    [facts] = [facts for facts in seen if facts["payload"] == {"long": "text"}]
    assert (facts["from"], facts["expires_at"]) == ("operator", None)


def test_request_prints_the_result(cli: Cli, agent: str) -> None:
    """The result is printed as JSON; with --json the whole response is."""
    assert json.loads(cli("request", agent, "echo", '{"value": [1, "ü"]}').stdout) == [1, "ü"]
    response = json.loads(cli("request", agent, "echo", '{"value": 1}', "--json").stdout)
    assert (response["ok"], response["result"], response["error"]) == (True, 1, None)


def test_a_failed_request_exits_with_1(cli: Cli, agent: str) -> None:
    """The error goes to standard error with the agent's traceback; with --json, to standard output."""
    failed = cli("request", agent, "fail", '{"text": "no such invoice"}')
    assert failed.returncode == 1
    assert f"Error: {agent} raised ValueError: no such invoice" in failed.stderr
    assert "Traceback" in failed.stderr
    as_json = cli("request", agent, "fail", '{"text": "x"}', "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["error"]["type"] == "RemoteError"


def test_agents_lists_the_known_agents(cli: Cli, agent: str) -> None:
    """`agents` shows handlers, state, waiting messages by priority and last heartbeat, also as JSON."""
    [record] = [one for one in json.loads(cli("agents", "--json").stdout) if one["agent"]["name"] == agent]
    assert record["alive"]
    assert "echo" in record["agent"]["handlers"]
    assert record["queue"]["by_priority"] == {"URGENT": 0, "HIGH": 0, "NORMAL": 0, "LOW": 0}
    [row] = [line for line in cli("agents").stdout.splitlines() if line.strip().startswith(agent)]
    assert "alive" in row
    assert "s ago" in row


def test_queues_counts_waiting_messages(cli: Cli, broker: Broker) -> None:
    """Messages to a declared agent without a worker are counted by priority."""
    absent = broker.name()
    for priority in ("urgent", "low", "low"):
        assert cli("send", absent, "{}", "--priority", priority, WAOOAW_AGENTS=absent).returncode == 0
    depths = json.loads(cli("queues", "--json", WAOOAW_AGENTS=absent).stdout)
    [depth] = [one for one in depths if one["queue"] == f"agent.{absent}"]
    assert (depth["total"], depth["by_priority"]["URGENT"], depth["by_priority"]["LOW"]) == (3, 1, 2)
    assert depth["by_sender"] == {"operator": 3}
    [row] = [line for line in cli("queues", WAOOAW_AGENTS=absent).stdout.splitlines() if absent in line]
    assert row.split() == [f"agent.{absent}", "1", "0", "0", "2", "3", "operator", "3"]


@pytest.mark.slow
def test_messages_of_one_sender_are_dropped(cli: Cli, broker: Broker) -> None:
    """Without --yes they are only counted; with it, `queues drop` makes dead letters of them or discards them."""
    absent = broker.name()
    for sender in ("boss", "bully", "bully"):
        assert cli("send", absent, "{}", "--from", sender, WAOOAW_AGENTS=absent).returncode == 0
    dry = cli("queues", "drop", absent, "--from", "bully")
    assert dry.stdout == (
        f"2 messages (2 NORMAL) from bully in the queue of {absent}. Nothing was dropped: use --yes.\n"
    )
    done = cli("queues", "drop", absent, "--from", "bully", "--yes", "--by", "ada", "--because", "a circle")
    assert done.stdout == f"Made dead letters of 2 messages (2 NORMAL) from bully to {absent}.\n"
    letters = json.loads(cli("dead", "list", "--agent", absent, "--json").stdout)
    assert [letter["reason"] for letter in letters] == 2 * ["dropped from the queue by ada: a circle"]
    dead = cli("receipt", letters[0]["message_id"], COLUMNS="80").stdout
    assert [line.split()[1] for line in dead.splitlines() if line.startswith("status")] == ["dead"]
    assert f"waooaw dead list --message {letters[0]['message_id']}" in dead
    discarded = json.loads(cli("queues", "drop", absent, "--from", "boss", "--discard", "--yes", "--json").stdout)
    assert (discarded["total"], discarded["into"], discarded["dry_run"]) == (1, "nothing", False)
    assert cli("queues", "drop", absent, "--from", "boss").stdout.startswith("0 messages from boss")
    assert cli("queues", "drop", absent).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (("send", "nobody", "{}"), {}, "agent 'nobody' is not known"),
        (("send", "nobody", "{not json"), {}, "{not json is not JSON"),
        (("request", "nobody", "x", "[1]"), {}, "must be a JSON object"),
        (("send", "Not A Name", "{}"), {}, "to_agent must be 1 to 63 characters"),
        (("receipt", "no-such-id"), {}, "no receipt of message 'no-such-id'"),
        (("agents",), {"CELERY_BROKER_URL": "memory://"}, "does not order messages by priority"),
        (("agents",), {"CELERY_BROKER_URL": ""}, "no broker is set"),
        (("agents",), {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}, "Connection refused"),
        (("agents",), {"WAOOAW_SENDR": "x"}, "did you mean WAOOAW_SENDER?"),
        (("-A", "no.such.module", "agents"), {}, "application 'no.such.module' cannot be loaded"),
        (("-A", "json", "agents"), {}, "application 'json' cannot be loaded"),
        (
            ("limits", "set", "boss", "10/secnd"),
            {},
            "at character 4 ('secnd'): expected second, minute, hour or day",
        ),
        (("limits", "set", "boss"), {}, "give a QUOTA, or --default"),
        (
            ("limits", "show"),
            {"WAOOAW_RATE_LIMIT": "0/hour"},
            "waooaw_rate_limit: rate limit '0/hour', at character 1",
        ),
        (("demo", "--input", "/no/such/folder"), {}, "does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_on_standard_error(
    cli: Cli, arguments: tuple[str, ...], env: dict[str, str], sentence: str
) -> None:
    """A wrong argument or setting ends with one sentence and no traceback."""
    done = cli(*arguments, **env)
    assert done.returncode in (1, 2, 3, 4)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_limits_are_shown_set_and_reset(cli: Cli, agent: str) -> None:
    """A quota that is set counts in the next process; `near` lists the sender, and `reset` frees it."""
    env = {"WAOOAW_RATE_LIMIT": "100/hour burst 20", "WAOOAW_RATE_LIMITS": '{"quiet": "1/day"}'}
    sender = f"shell-{agent}"
    assert cli("limits", "set", sender, "2/hour; 5/day to *", **env).stdout == f"{sender}: 2/hour; 5/day to *\n"
    quotas = json.loads(cli("limits", "show", "--json", **env).stdout)
    assert quotas["*"] == {"quota": "100/hour burst 20", "from": "default"}
    assert quotas["quiet"] == {"quota": "1/day", "from": "configured"}
    assert quotas[sender] == {"quota": "2/hour; 5/day to *", "from": "set"}
    for _ in range(2):
        assert cli("send", agent, "{}", "--from", sender, **env).returncode == 0
    refused = cli("send", agent, "{}", "--from", sender, **env)
    assert refused.returncode == 1
    assert f"Error: '{sender}' has reached its rate limit 2/hour: try again in 3" in refused.stderr
    [row] = [line for line in cli("limits", "near", **env).stdout.splitlines() if "2/hour" in line]
    assert row.split()[:4] == [sender, "2", "2", "0"]
    [status] = json.loads(cli("limits", "show", sender, "--json", **env).stdout)
    assert (status["used"], status["remaining"]) == (2, 0)
    assert "may send again" in cli("limits", "reset", sender, **env).stdout
    assert cli("send", agent, "{}", "--from", sender, **env).returncode == 0
    assert cli("limits", "set", sender, "--default", **env).stdout == f"{sender}: 100/hour burst 20\n"
    assert sender not in cli("limits", "show", **env).stdout
    alone = cli("limits", "set", sender, "3/minute", WAOOAW_RATE_LIMIT_STORAGE="memory")
    assert "applies to no other process" in alone.stderr


def test_refused_messages_are_listed(cli: Cli, broker: Broker, agent: str, tmp_path: Path) -> None:
    """`limits refused` counts by sender and rule; without a ledger it is an error."""
    env = {
        "WAOOAW_RATE_LIMIT": "1/hour",
        "WAOOAW_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger'}",
        "WAOOAW_SPOOL_FOLDER": str(tmp_path),
        "WAOOAW_AGENTS": agent,
    }
    assert cli("db", "upgrade", **env).returncode == 0
    sender = f"refused-{agent}"
    codes = [cli("send", agent, "{}", "--from", sender, **env).returncode for _ in range(3)]
    assert codes == [0, 1, 1]
    found = json.loads(cli("limits", "refused", sender, "--json", **env).stdout)
    assert [(one["agent"], one["rule"]) for one in found] == [(sender, "1/hour")] * len(found)
    assert sum(one["count"] for one in found) == 2
    assert "1/hour" in cli("limits", "refused", **env).stdout
    assert "there is no ledger" in cli("limits", "refused").stderr


def test_an_application_can_be_named(cli: Cli, broker: Broker, agent: str, tmp_path: Path) -> None:
    """-A uses the application of a module, with its settings."""
    (tmp_path / "named.py").write_text(
        "from waooaw_celery import create_app\napp = create_app(waooaw_sender='named-app')\n"
    )
    done = cli("-A", "named", "send", agent, "{}", "--json", PYTHONPATH=str(tmp_path))
    assert json.loads(done.stdout)["from_agent"] == "named-app"


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"CELERY_BROKER_URL": "memory://"}, "Error: the broker 'memory' does not order messages by priority"),
        ({"WAOOAW_SENDR": "x"}, "Error: unknown environment variable WAOOAW_SENDR: did you mean WAOOAW_SENDER?"),
        ({"CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}, "Error: no broker is set"),
    ],
)
def test_a_worker_does_not_start_with_a_wrong_setting(broker: Broker, env: dict[str, str], sentence: str) -> None:
    """`celery worker` ends at once with one sentence and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "probe", "worker", "-c", "1"],
        cwd=PROBE_FOLDER,
        env=os.environ | {"CELERY_BROKER_URL": broker.url, "PROBE_NAME": "misconfigured"} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sender_is_paused_and_resumed(cli: Cli, agent: str) -> None:
    """`limits pause` refuses the next send with who, when and why; `limits resume` ends that. No limit is set."""
    sender = f"paused-{agent}"
    done = cli("limits", "pause", sender, "--because", "it sends in a circle", "--by", "ada")
    assert done.stdout == f"{sender} may not send. `waooaw limits resume {sender}` lets it send again.\n"
    refused = cli("send", agent, "{}", "--from", sender)
    assert refused.returncode == 1
    assert f"Error: '{sender}' may not send: ada paused it at " in refused.stderr
    assert "(it sends in a circle)" in refused.stderr
    assert sender in cli("limits", "paused").stdout
    assert f"{sender} is paused: by ada, since" in cli("limits", "show", sender).stderr
    [pause] = [one for one in json.loads(cli("limits", "paused", "--json").stdout) if one["agent"] == sender]
    assert pause["by"] == "ada"
    assert cli("limits", "resume", sender).stdout == f"{sender} may send again.\n"
    assert cli("send", agent, "{}", "--from", sender).returncode == 0
    assert f"{sender} is not paused" in cli("limits", "resume", sender).stderr
