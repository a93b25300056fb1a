"""What holds for all commands: --json, examples, a row in docs/commands.md, times, exit codes."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from waooaw_celery import errors
from waooaw_celery.cli import waooaw
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode, exit_code
from waooaw_celery.cli.base.parameters import TimeParam
from waooaw_celery.cli.output.colors import color_of_environment
from waooaw_celery.cli.output.table import fact_lines, table_lines
from waooaw_celery.cli.output.times import UTC_KEY, zone_name

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text()

#: The commands without --json, and why.
NO_JSON = {
    "completion": "it prints a script for a shell",
    "console": "it serves until it is stopped",
    "exporter": "it serves until it is stopped",
    "flower": "it serves until it is stopped",
    "monitoring dashboard": "it prints a file, which is JSON already",
    "monitoring rules": "it prints a file in YAML",
    "serve": "it serves until it is stopped",
    "up": "it runs until it is stopped",
}

Path_ = tuple[str, ...]


def walk(command: click.Command, path: Path_ = ()) -> Iterator[tuple[Path_, click.Command]]:
    """Yield each command and group, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*path, name))


ALL = dict(walk(waooaw))
#: The commands that do something: not the groups that only hold others.
RUN = {
    path: each for path, each in ALL.items() if not isinstance(each, click.Group) or each.invoke_without_command
}


def test_there_are_many_commands() -> None:
    """The tests below look at each of them."""
    assert len(RUN) > 60
    assert {("send",), ("dead", "list"), ("queues",), ("queues", "drop"), ("init",)} <= RUN.keys()


def test_every_command_that_prints_facts_has_json() -> None:
    """All commands take --json, but for those that print no facts; none of these has it."""
    missing = {
        " ".join(path)
        for path, command in RUN.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert missing == NO_JSON.keys()


def examples(path: Path_) -> list[str]:
    """Return the examples at the end of a command's help, as it is printed."""
    done = CliRunner().invoke(waooaw, [*path, "--help"], prog_name="waooaw", terminal_width=80)
    assert done.exit_code == 0, done.output
    _, found, end = done.output.partition("\nExamples:\n")
    assert found, f"waooaw {' '.join(path)} --help has no examples"
    return [line.removeprefix("  ") for line in end.rstrip("\n").split("\n")]


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "waooaw")
def test_help_ends_with_examples_that_can_be_parsed(
    path: Path_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Click takes each example, which calls this command or, below a group, one of its commands."""
    monkeypatch.chdir(tmp_path)
    for name in ("payload.json", "old.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "docs").mkdir()
    found = examples(path)
    assert 1 <= len(found) <= 2
    for example in found:
        program, *words = shlex.split(example)
        assert program == "waooaw"
        called = parse(words)
        assert called[: len(path)] == path, example
        assert called in RUN, example


def parse(words: list[str]) -> Path_:
    """Parse the words of a command line as click does, without running it, and return the command's words.

    What they read from standard input is there: a JSON value, or a yes to a question.
    """
    path: Path_ = ()
    command: click.Command = waooaw
    with ExitStack() as contexts, CliRunner().isolation(input="{}" if "-" in words else "y\n"):
        context = contexts.enter_context(waooaw.make_context("waooaw", list(words)))
        while isinstance(command, click.Group) and context._protected_args:
            name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None
            assert name is not None
            path, command = (*path, name), found
            context = contexts.enter_context(found.make_context(name, rest, parent=context))
    return path


def test_an_example_that_does_not_parse_is_found() -> None:
    """The parser of these tests takes no option that a command has not."""
    with pytest.raises(click.UsageError, match="No such option"):
        parse(["send", "greeter", "{}", "--prioriti", "high"])
    with pytest.raises(click.UsageError, match="Missing"):
        parse(["dead", "show"])


def test_the_page_names_every_command() -> None:
    """docs/commands.md has a row for each command of the first level, and no other."""
    table = PAGE.partition("## All commands")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `waooaw ([\w-]+)`", table, re.MULTILINE)
    assert sorted(rows) == sorted(path[0] for path in ALL if len(path) == 1)
    for path in RUN:
        if len(path) == 2:
            [row] = re.findall(rf"^\| `waooaw {path[0]}`.*$", table, re.MULTILINE)
            assert re.search(rf"\b{path[1]}\b", row), f"{' '.join(path)} is not in the row of {path[0]}"


def test_the_page_names_every_exit_code() -> None:
    """docs/commands.md has a row for each code."""
    table = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(ExitCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), ExitCode.FAILED),
        (errors.InvalidMessage("x"), ExitCode.FAILED),
        (errors.RequestTimeout("x"), ExitCode.FAILED),
        (errors.LedgerMismatch("x"), ExitCode.FAILED),
        (errors.NoAgentAvailable("capability:x", {}), ExitCode.FAILED),
        (errors.BrokerUnavailable("x"), ExitCode.SERVER),
        (errors.AuditUnavailable("x"), ExitCode.SERVER),
        (errors.BackendUnavailable("x"), ExitCode.SERVER),
        (ConnectionRefusedError("x"), ExitCode.SERVER),
        (FileNotFoundError("x"), ExitCode.FAILED),
        (errors.UnknownAgent("x"), ExitCode.NOT_FOUND),
        (errors.UnknownMethod("x"), ExitCode.NOT_FOUND),
        (errors.UnknownMessage("x"), ExitCode.NOT_FOUND),
        (errors.UnknownWorkflow("x"), ExitCode.NOT_FOUND),
    ],
)
def test_each_error_has_an_exit_code(error: Exception, code: ExitCode) -> None:
    """A server that is away, and a thing that does not exist, have their own."""
    assert exit_code(error) is code


def test_an_error_has_the_exit_code_that_it_is_given() -> None:
    """Click ends the program with it."""
    assert CommandError("x", ExitCode.NOT_FOUND).exit_code == 4
    assert CommandError("x").exit_code == 1


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("45s", timedelta(seconds=45)),
        ("30min", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("1.5 h ago", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_time_may_be_a_span_before_now(text: str, before: timedelta) -> None:
    """2h is the time two hours ago."""
    began = datetime.now(UTC)
    found = TimeParam().convert(text, None, None)
    assert began - before <= found <= datetime.now(UTC) - before
    assert found.tzinfo is UTC


def test_a_time_without_a_zone_is_in_utc() -> None:
    """Whatever zone the tables show: a script means the same on every computer."""
    assert TimeParam().convert("2026-11-22T13:57", None, None) == datetime(2026, 11, 22, 13, 57, tzinfo=UTC)
    assert TimeParam().convert("2026-11-22T13:57+01:00", None, None).utcoffset() == timedelta(hours=1)


@pytest.mark.parametrize("text", ["yesterday", "2 hours", "h", "-2h", "", "9999999999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """The error shows what a time looks like."""
    with pytest.raises(click.BadParameter, match=r"is not a time, such as|too long ago"):
        TimeParam().convert(text, None, None)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A computer in Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


SUMMER, WINTER = datetime(2026, 7, 1, 12, 0, 5, tzinfo=UTC), datetime(2026, 11, 28, 12, 0, 5, tzinfo=UTC)


@pytest.mark.usefixtures("berlin")
def test_a_column_of_times_is_in_the_zone_of_this_computer() -> None:
    """Its heading names the zone. Where the clock was changed between two times, each names its own."""
    assert table_lines(("id", "sent"), [("1", WINTER), ("2", None)], 80) == [
        "id  sent (CET)",
        "--  -------------------",
        "1   2026-11-28 13:00:05",
        "2",
    ]
    assert table_lines(("id", "sent"), [("1", SUMMER), ("2", WINTER)], 80)[2:] == [
        "1   2026-07-01 14:00:05 CEST",
        "2   2026-11-28 13:00:05 CET",
    ]
    assert fact_lines([("at", SUMMER)], 80) == ["at  2026-07-01 14:00:05.000 CEST"]


@pytest.mark.usefixtures("berlin")
def test_utc_shows_times_in_utc() -> None:
    """The option of the group holds for tables and facts."""
    with click.Context(waooaw) as context:
        context.meta[UTC_KEY] = True
        assert table_lines(("id", "sent"), [("1", SUMMER), ("2", WINTER)], 80) == [
            "id  sent (UTC)",
            "--  -------------------",
            "1   2026-07-01 12:00:05",
            "2   2026-11-28 12:00:05",
        ]
        assert fact_lines([("at", SUMMER)], 80) == ["at  2026-07-01 12:00:05.000 UTC"]


def test_a_zone_without_a_name_is_shown_by_its_distance_from_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some zones have no abbreviation."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        assert zone_name(SUMMER.astimezone()) == "UTC+05:45"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("environment", "color"),
    [
        ({}, None),
        ({"NO_COLOR": ""}, None),
        ({"NO_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": ""}, None),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_the_environment_says_whether_there_are_colors(
    environment: dict[str, str], color: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any text in NO_COLOR turns them off; an empty variable says nothing."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert color_of_environment() is color
