"""The output of the commands: tables for people (``table.py``), JSON for programs.

It is the one place in which text meets a terminal, so everything is escaped here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.log.escaping import escaped, escaped_lines
from waooaw_celery.messages.validation import tagged

#: What may not print: ASCII's DEL, and everything beyond ASCII. JSON itself escapes what comes before the space.
_UNPRINTABLE = re.compile("[^ -~]")

Command = TypeVar("Command", bound=Callable[..., Any])

#: The key of a command's context that says that ``--wide`` was given.
WIDE = "waooaw.wide"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _set_wide(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[WIDE] = True


_wide_option = click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=_set_wide,
    help="Print each row on one line, however long. This is the default when the output is not a terminal.",
)


def table_options(command: Command) -> Command:
    """Give a command that prints a table the options ``--wide`` and ``--json``."""
    return _wide_option(json_option(command))


def echo(text: str, *, err: bool = False) -> None:
    """Print one line, escaped.

    Args:
        text: what to print.
        err: whether to print it to standard error.
    """
    click.echo(escaped(text), err=err)


def report(sentence: str, facts: dict[str, Any], as_json: bool) -> None:
    """Print what a command has done: a sentence for people, or its facts as JSON for programs.

    Args:
        sentence: what to print without ``--json``.
        facts: what to print with it.
        as_json: whether ``--json`` was given.
    """
    if as_json:
        print_json(facts)
    else:
        echo(sentence)


def echo_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, such as a traceback, escaped; all but the first are indented."""
    click.echo(escaped_lines(text), err=err)


def print_json(value: Any) -> None:
    """Print a value as JSON; datetimes are in ISO 8601. What does not print is escaped as JSON does it.

    Args:
        value: JSON values, dataclasses and datetimes, in any nesting. What has a JSON form is printed in it.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, default=tagged)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(_plain(value), indent=2, default=tagged)
    # Outside of its strings, JSON has no such character but the line break between two lines.
    click.echo("\n".join(_UNPRINTABLE.sub(_json_escape, line) for line in text.split("\n")))


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a time was, such as ``5 min ago``, or ``never`` for None.

    Args:
        at: the time.
        now: the current time by the same clock; None: by this computer's clock.
    """
    if at is None:
        return "never"
    seconds = max(((now or datetime.now(UTC)) - at).total_seconds(), 0)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _plain(value: Any) -> Any:
    if isinstance(value, JsonForm):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _json_escape(match: re.Match[str]) -> str:
    char = match[0]
    if escaped(char) == char:
        return char
    return json.dumps(char)[1:-1] if not char.isascii() else f"\\u{ord(char):04x}"
