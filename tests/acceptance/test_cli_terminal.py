"""What a terminal shows: progress on standard error, colours, times in the reader's zone, whole ids."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from process_pool import waooaw
from support import until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, create_app
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.maintenance.erasure import erase
from waooaw_celery.maintenance.recovery import Recovery
from waooaw_celery.store.subscriptions import Subscription
from waooaw_celery.testing.embedded import end, free_port, valkey

#: A subscription of an agent without a worker.
SUBSCRIPTION = Subscription(agent="absent", name="all", patterns=("order.*",))
#: Seconds that a command may take.
SECONDS = 60.0
#: What sets a colour, of the foreground or the background.
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;\dm]")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A broker and a ledger of these tests, on a computer in Tokyo."""
    folder = tmp_path_factory.mktemp("terminal")
    with valkey() as url:
        yield {
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": url,
            "WAOOAW_DATABASE_URL": f"sqlite:///{folder / 'ledger.sqlite'}",
            "WAOOAW_SPOOL_FOLDER": str(folder),
            "TZ": "Asia/Tokyo",
            "TERM": "xterm-256color",
        }


@pytest.fixture(scope="module")
def app(environment: dict[str, str]) -> Iterator[AgentApp]:
    """An application on that broker, with a ledger that has three messages."""
    settings = {
        "broker_url": environment["CELERY_BROKER_URL"],
        "result_backend": environment["CELERY_RESULT_BACKEND"],
        "waooaw_database_url": environment["WAOOAW_DATABASE_URL"],
        "waooaw_spool_folder": environment["WAOOAW_SPOOL_FOLDER"],
        "waooaw_agents": ["absent"],
        "waooaw_sender": "tests",
    }
    with closing(create_app("tests", **settings)) as app:
        schema.upgrade(app.database)
        MessageBus(app).send_many([message(number) for number in range(3)])
        app.ledger.flush()
        yield app


def message(number: int) -> Message:
    """Return a message to an agent without a worker."""
    return Message(from_agent="tests", to_agent="absent", payload={"n": number})


def on_a_terminal(
    environment: dict[str, str], *arguments: str, columns: int = 100, only_stderr: bool = False
) -> tuple[int, str, str]:
    """Run `waooaw` on a terminal; return its exit code, what it shows, and its other standard output."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (40, columns))
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", "waooaw_celery", *arguments],
        stdin=there,
        stdout=subprocess.PIPE if only_stderr else there,
        stderr=there,
        env=env,
    )
    os.close(there)
    shown, ends_at = b"", time.monotonic() + SECONDS
    try:
        while time.monotonic() < ends_at:
            if select.select([here], [], [], 0.1)[0]:
                try:
                    shown += os.read(here, 65536)
                except OSError:  # on Linux, the end of a terminal that no process has open any more
                    break
            elif process.poll() is not None:
                break
        output = b"" if process.stdout is None else process.stdout.read()
        return process.wait(SECONDS), shown.decode(), output.decode()
    finally:
        process.kill()
        process.wait(SECONDS)
        if process.stdout is not None:
            process.stdout.close()
        os.close(here)


LONG = {
    "Purging messages": ("purge",),
    "Erasing messages": ("erase", "--agent", "nobody", "--yes"),
    "Looking up open messages": ("recover", "--dry-run"),
    "Counting events": ("events", "replay", "absent.all", "--since", "1h", "--dry-run"),
    "Discarding dead letters": ("dead", "discard", "--queue", "agent.absent", "--because", "x", "--yes"),
    "Sending dead letters": ("dead", "retry", "--queue", "agent.absent", "--yes"),
}


@pytest.fixture
def long(app: AgentApp) -> None:
    """What the long commands need: a subscription, and dead letters, which cannot be read."""
    app.subscriptions.declare([SUBSCRIPTION])
    app.dead_letters.add("agent.absent", "it is not readable", b"1", b"2")


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("what", LONG)
def test_a_long_command_shows_a_bar_on_a_terminal_only(environment: dict[str, str], what: str) -> None:
    """The bar is on standard error. Without a terminal, and with --json, there is none."""
    command = LONG[what]
    _, shown, output = on_a_terminal(environment, *command, only_stderr=True)
    assert what in shown
    assert "\u2501" in shown, "the bar"
    assert what not in output
    assert output.strip()
    _, shown, output = on_a_terminal(environment, *command, "--json", only_stderr=True)
    assert shown == ""
    assert json.loads(output) is not None
    for color in ({}, {"FORCE_COLOR": "1"}):
        done = waooaw(*command, env=environment | color)
        assert done.stderr == "", done.stderr
        assert "\u2501" not in done.stdout


def test_the_functions_below_say_how_far_they_are(app: AgentApp) -> None:
    """The last call has what the result has."""
    told: list[tuple[int, int | None]] = []

    def on_progress(done: int, total: int | None) -> None:
        told.append((done, total))

    def last() -> tuple[int, int | None]:
        found = told[-1]
        told.clear()
        return found

    app.dead_letters.add("agent.told", "it is not readable", b"1", b"2", b"3")
    letters = app.dead_letters.list(queue="agent.told")
    app.dead_letters.discard(letters, reason="x", on_progress=on_progress)
    assert told == [(1, 3), (2, 3), (3, 3)]
    told.clear()

    now = datetime.now(UTC)
    EventBus(app).publish("order.made", {"n": 1})
    app.subscriptions.declare([SUBSCRIPTION])
    replay = EventBus(app).replay("absent.all", since=now, dry_run=True, on_progress=on_progress)
    assert last() == (replay.events, None) == (1, None)

    found = Recovery(app, after=0, pause=0).run(dry_run=True, on_progress=on_progress)
    assert last() == (found.looked_for, None)

    erased = erase(app, agent="absent", on_progress=on_progress)
    total = erased.messages + erased.copies + erased.answers + erased.events
    assert last() == (total, total)

    removal = Retention(app.database).purge(now + timedelta(days=4000), on_progress=on_progress)
    assert last() == (removal.messages, None)


@pytest.mark.slow
def test_colors_are_on_a_terminal_only(app: AgentApp, environment: dict[str, str]) -> None:
    """The titles of tables are bold there. NO_COLOR turns that off, and FORCE_COLOR on also without a terminal."""
    bold = "\x1b[1mAgents"
    assert bold in on_a_terminal(environment, "agents")[1]
    for value in ("1", "0", "no"):
        code, shown, _ = on_a_terminal(environment | {"NO_COLOR": value}, "agents")
        assert (code, "\x1b" in shown) == (0, False)
    assert bold in on_a_terminal(environment | {"NO_COLOR": ""}, "agents")[1]
    assert "\x1b" not in waooaw("agents", env=environment).stdout
    assert bold in waooaw("agents", env=environment | {"FORCE_COLOR": "1"}).stdout
    assert "\x1b" not in waooaw("agents", env=environment | {"FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout
    assert "\x1b" not in waooaw("agents", "--json", env=environment | {"FORCE_COLOR": "1"}).stdout


def test_top_has_no_colors_with_no_color(app: AgentApp, environment: dict[str, str]) -> None:
    """An agent without a worker, which has waiting messages, is red: but not with NO_COLOR."""
    app.registry.declare("absent", ["command"], "absent@here", 0.2)
    MessageBus(app).send(message(9))
    until(lambda: not app.registry.get("absent").workers, "the end of its worker")
    top = ("top", "--interval", "0.5")
    assert COLOR.search(shown_until(environment, top, "absent", "q: end"))
    assert not COLOR.search(shown_until(environment | {"NO_COLOR": "1"}, top, "absent", "q: end"))


def test_flower_has_no_colors_with_no_color(environment: dict[str, str]) -> None:
    """The levels in its log have colours, but not with NO_COLOR."""
    flower = ("flower", f"--port={free_port()}")
    assert COLOR.search(shown_until(environment, flower, "Visit me at", "\n"))
    assert not COLOR.search(shown_until(environment | {"NO_COLOR": "1"}, flower, "Visit me at", "\n"))


def shown_until(environment: dict[str, str], command: tuple[str, ...], what: str, then: str) -> str:
    """Return what a command shows on a terminal until it has shown a text and another one after it; end it."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (30, 120))
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | environment
    words = [sys.executable, "-m", "waooaw_celery", *command]
    process = subprocess.Popen(words, stdin=there, stdout=there, stderr=there, env=env, start_new_session=True)
    shown, ends_at = "", time.monotonic() + SECONDS
    try:
        while then not in shown.partition(what)[2]:
            assert time.monotonic() < ends_at, shown
            if select.select([here], [], [], 0.1)[0]:
                shown += os.read(here, 65536).decode(errors="replace")
    finally:
        end(process)
        os.close(here)
        os.close(there)
    return shown


@pytest.mark.slow
def test_tables_show_the_time_of_this_computer_or_utc(app: AgentApp, environment: dict[str, str]) -> None:
    """The heading names the zone; --utc, before the command, and WAOOAW_UTC choose UTC; JSON is in UTC always."""
    [record] = json.loads(waooaw("log", "--limit", "1", "--json", env=environment).stdout)
    sent_at = datetime.fromisoformat(record["receipt"]["sent_at"])
    assert sent_at.utcoffset() == timedelta(0)
    there, here = f"{sent_at + timedelta(hours=9):%Y-%m-%d %H:%M:%S}", f"{sent_at:%Y-%m-%d %H:%M:%S}"

    def shown(*arguments: str, **more: str) -> str:
        done = waooaw(*arguments, env=environment | {"COLUMNS": "200"} | more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    log = shown("log", "--limit", "1")
    assert "sent (JST)" in log
    assert there in log
    id_ = record["receipt"]["message_id"]
    assert f"{there}." in shown("receipt", id_)
    for utc in (shown("--utc", "log", "--limit", "1"), shown("log", "--limit", "1", WAOOAW_UTC="1")):
        assert "sent (UTC)" in utc
        assert here in utc
    assert re.search(rf"sent at +{here}\.\d+ UTC", shown("--utc", "receipt", id_))
    assert "sent (JST)" in shown("log", "--limit", "1", WAOOAW_UTC="0")
    assert re.search(r"\d\d:\d\d:\d\d JST, ", shown("top", "--once"))
    assert re.search(r"\d\d:\d\d:\d\d UTC, ", shown("--utc", "top", "--once"))
    hold = ("hold", "add", "agent", "absent", "--reason", "x")
    assert json.loads(shown(*hold, "--json")) == {"kind": "agent", "value": "absent", "reason": "x"}
    assert "placed (JST)" in shown("hold", "list")
    assert shown("hold", "release", "agent", "absent")
    assert "since" not in waooaw("log", "--since", "1h", env=environment).stderr
    assert json.loads(shown("log", "--until", "1h", "--json")) == []


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_ids_are_whole_on_a_narrow_terminal(app: AgentApp, environment: dict[str, str], columns: int) -> None:
    """An id stands on one line, however narrow the terminal is, so it can be copied."""
    app.dead_letters.add("agent.narrow", "it is not readable", b"1")
    for command, key in (
        (("log",), "message_id"),
        (("dead", "list", "--queue", "agent.narrow"), "id"),
    ):
        found = json.loads(waooaw(*command, "--json", env=environment).stdout)
        ids = [each.get("receipt", each)[key] for each in found]
        assert ids
        _, shown, _ = on_a_terminal(environment, *command, columns=columns)
        words = shown.replace("\r\n", "\n").split()
        assert [id_ for id_ in ids if id_ not in words] == []
