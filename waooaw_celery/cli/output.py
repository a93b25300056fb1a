"""The output of the commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from waooaw_celery.messages.validation import tagged

#: Largest width, in characters, of every column but the last.
WIDEST = 40

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def console() -> Console:
    """Return a console for the current standard output."""
    return Console(soft_wrap=False)


def print_json(value: Any) -> None:
    """Print a value as JSON; datetimes are in ISO 8601.

    Args:
        value: JSON values, dataclasses and datetimes, in any nesting.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, default=tagged)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(_plain(value), indent=2, default=tagged)
    click.echo(text)


def show_table(screen: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with a title. Cells are plain text, never markup.

    Columns of numbers are aligned to the right. If a row is too wide, its last cell is folded.

    Args:
        screen: where to print it.
        title: the line above the table.
        columns: the headings.
        rows: one value for each column; None is an empty cell.
    """
    screen.print(Text(f"\n{title}", style="bold"))
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines = [list(row) for row in rows]
    for index, column in enumerate(columns):
        cells = [line[index] for line in lines]
        numeric = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
        width = min(max(len(str(cell)) for cell in [column, *cells]), WIDEST)
        result.add_column(
            column,
            justify="right" if numeric else "left",
            no_wrap=index < len(columns) - 1,
            overflow="ellipsis" if index < len(columns) - 1 else "fold",
            min_width=width if index < len(columns) - 1 else None,
        )
    for line in lines:
        result.add_row(*(Text("" if cell is None else str(cell)) for cell in line))
    screen.print(result)


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
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value
