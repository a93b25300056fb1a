"""Text from messages is one line, and commands no terminal, in every log and in every output of a command."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from waooaw_celery.cli.group import Group
from waooaw_celery.cli.output import echo, print_json
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.errors import RemoteError
from waooaw_celery.messages.log.escaping import escaped, escaped_lines
from waooaw_celery.messages.log.hiding import hidden_error, hidden_traceback
from waooaw_celery.messages.log.loggers import escape_log, get_logger

PACKAGE = Path(__file__).parents[2] / "waooaw_celery"
#: A line break with a forged line, an escape sequence, C1's control sequence introducer, DEL, a mark that changes
#: the direction of writing, and an unpaired surrogate.
HOSTILE = "done\n[2026-11-28 ERROR] forged \x1b[2J \x9b31m \x7f \u202e \ud800"
#: What may not be in the output, whatever it is written as.
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_safe(text: str) -> bool:
    """Whether a text has no forged line and nothing that commands a terminal."""
    return not FORBIDDEN.search(text) and not re.search(r"^\[2026-11-28 ERROR\]", text, re.MULTILINE)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The lines of a log whose records pass a formatter, as in a file."""
    formatter = logging.Formatter("[%(levelname)s] %(message)s")
    return lambda: [line for record in caplog.records for line in formatter.format(record).split("\n")]


def test_escaping_leaves_printable_text_of_any_language() -> None:
    """Accents, Chinese and wide spaces stay; what does not print is written as an escape."""
    assert escaped("Grüße, 日本\u3000語, 1\u202f000 €") == "Grüße, 日本\u3000語, 1\u202f000 €"
    assert escaped("a\n\t\x1b[31m\x00\x9b\u202e\ud800") == r"a\n\t\x1b[31m\x00\x9b\u202e\ud800"
    assert escaped(escaped(HOSTILE)) == escaped(HOSTILE)


def test_further_lines_are_indented() -> None:
    """No line of a traceback begins where a line of the log begins."""
    assert escaped_lines("one\n[ERROR] two\x1b[2J\n") == "one\n    [ERROR] two\\x1b[2J"


def test_this_packages_loggers_escape(lines: Any) -> None:
    """Arguments, messages and tracebacks of its records are escaped, without any setup of the process."""
    logger = get_logger("waooaw_celery.test")
    try:
        raise ValueError(HOSTILE) from KeyError(HOSTILE)
    except ValueError as error:
        logger.error("it failed: %s", error, exc_info=True)
    logger.warning("its threads:", extra={"stacks": "Thread 1:\n  File"})
    written = lines()
    assert is_safe("\n".join(written))
    assert written[0].startswith(r"[ERROR] it failed: done\n[2026-11-28 ERROR] forged \x1b[2J")
    assert written[-3:] == ["[WARNING] its threads:", "Thread 1:", "      File"]
    assert all(line.startswith(("[", "KeyError", "Thread", "    ")) for line in written)


def test_a_record_is_escaped_once() -> None:
    """A logger and several handlers that escape change a record as one does; a safe record stays as it is."""
    logger = get_logger("waooaw_celery.test.twice")
    texts: list[str] = []
    for _ in range(2):
        handler = logging.Handler()
        handler.emit = lambda record: texts.append(logging.Formatter("%(message)s").format(record))  # type: ignore[method-assign]
        logger.addHandler(handler)
    escape_log(logger)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("c\nd")
    assert texts[0] == texts[1]
    assert texts[0].startswith("c\\nd\nTraceback")
    assert texts[0].endswith("\n    ValueError: a\n    b")
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s is fine", ("Ada",), None)
    logger.filter(record)
    assert (record.msg, record.args) == ("%s is fine", ("Ada",))


def test_commands_print_escaped_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, tables and JSON have no forged line and no control character; the JSON keeps its value."""
    echo(HOSTILE)
    assert is_safe(capsys.readouterr().out)
    show_table(HOSTILE, ("a", "b"), [(HOSTILE, 1), (1, HOSTILE), (None, "")], width=300)
    assert is_safe(capsys.readouterr().out)
    print_json({HOSTILE: [HOSTILE, "日本\u3000語"]})
    printed = capsys.readouterr().out
    assert is_safe(printed)
    assert "日本\u3000語" in printed or "\\u65e5" in printed
    assert json.loads(printed) == {HOSTILE: [HOSTILE, "日本\u3000語"]}


def test_commands_print_escaped_errors() -> None:
    """An error of another agent is one line of standard error."""

    @click.group(cls=Group)
    def commands() -> None: ...

    @commands.command()
    def fail() -> None:
        raise RemoteError("worker-1", "ValueError", HOSTILE)

    done = CliRunner().invoke(commands, ["fail"])
    assert done.exit_code == 1
    assert is_safe(done.output)
    assert r"done\n[2026" in done.output


def test_errors_are_shown_without_their_texts() -> None:
    """A hidden traceback has the frames and classes of an error and its causes, and none of their texts."""
    try:
        try:
            raise KeyError("Ada")
        except KeyError as error:
            raise ValueError("Lovelace") from error
    except ValueError as error:
        shown, short = hidden_traceback(error), hidden_error(error)
    assert short == "ValueError: …"
    assert "Ada" not in re.sub(r'raise KeyError\("Ada"\)', "", shown)
    assert "Lovelace" not in re.sub(r'raise ValueError\("Lovelace"\)', "", shown)
    assert re.search(r"KeyError: ….*ValueError: …", shown, re.DOTALL)
    assert "test_errors_are_shown" in shown


def test_nothing_bypasses_the_two_places() -> None:
    """Every logger of the package comes from ``get_logger``, and every output of a command from cli/output."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.parent.name != "log":
            assert "getLogger(__name__)" not in text, path
        if path.parent.name == "cli":
            assert not re.search(r"\b(print|click\.s?echo)\(|\.print\(|Text\(", text), path


def test_a_record_that_cannot_be_formatted_is_logged_and_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Python's logging reports such a record; a filter that raised would fail the handler that logs."""
    get_logger("waooaw_celery.probe").warning("%d items", "three")
    assert "%d items (its arguments cannot be formatted: TypeError" in caplog.text
