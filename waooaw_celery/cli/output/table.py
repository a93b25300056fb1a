"""Prints tables and lists of facts, by one rule for every command and every width of the terminal.

A value is broken between words only, so an id can be copied whole. The columns of a table stand in the order of
their importance. The first ones that fit into the terminal share a line, of which the last one may be wrapped. The
other ones follow below that line, each with its name. A time is shown as ``times.py`` says, with its zone in the
heading of its column.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum

import click
from rich.cells import cell_len

from waooaw_celery.cli.output import WIDE
from waooaw_celery.cli.output.times import cell_text, common_zone, time_text
from waooaw_celery.messages.log.escaping import escaped

#: Spaces between two columns, and before the names of the columns below a row.
GAP, INDENT = 2, 4
#: The smallest width to which a column is wrapped, in characters.
MIN_WRAPPED = 24
#: The longest line below a heading; only the last column of a line is wider.
MAX_RULE = 60


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None
) -> None:
    """Print a table with a title.

    Args:
        title: the line above the table.
        columns: the headings, the most important column first.
        rows: one value for each column; None is an empty cell. Columns of numbers are aligned to the right.
        width: characters in a line; None: those of the terminal, or any number with ``--wide``.
    """
    lines = table_lines(columns, [list(row) for row in rows], width or _width())
    _print("", click.style(escaped(title), bold=True), *lines)


def show_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """Print named facts with a title, each on a line of its own.

    Args:
        title: the line above the facts.
        facts: names and values. A fact whose value is None is left out.
    """
    lines = fact_lines([(name, value) for name, value in facts if value is not None], _width())
    _print("", click.style(escaped(title), bold=True), *lines)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """Return the lines of a table.

    Args:
        columns: the headings, the most important column first.
        rows: one value for each column.
        width: characters in a line; None: each row is one line, however long.
    """
    columns, rows = _with_zones(columns, rows)
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = _widths_that_fit(columns, cells, width)
    count = len(widths)
    to_right = [_is_numeric([row[number] for row in rows]) for number in range(count)]
    lines = [_join(columns[:count], widths, to_right), "  ".join("-" * min(each, MAX_RULE) for each in widths)]
    for row in cells:
        wrapped = [_wrap(cell, each) for cell, each in zip(row, widths, strict=False)]
        for number in range(max(map(len, wrapped))):
            parts = [part[number] if number < len(part) else "" for part in wrapped]
            lines.append(_join(parts, widths, to_right))
        below = [(name, cell) for name, cell in zip(columns[count:], row[count:], strict=True) if cell]
        lines += _named_lines(below, max(map(cell_len, columns[count:]), default=0), width, INDENT)
    return lines


def fact_lines(facts: Sequence[tuple[str, object]], width: int | None) -> list[str]:
    """Return the lines of named facts.

    Args:
        facts: names and values.
        width: characters in a line; None: no value is wrapped.
    """
    texts = [(name, _text(value)) for name, value in facts]
    return _named_lines(texts, max((cell_len(name) for name, _ in texts), default=0), width, 0)


def _width() -> int | None:
    """Return the width of the terminal; None with ``--wide``, or when the output is not a terminal."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.meta.get(WIDE):
        return None
    return shutil.get_terminal_size((0, 0)).columns or None


def _print(*lines: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        click.echo(line.encode(encoding, "backslashreplace").decode(encoding))


def _text(value: object) -> str:
    """Return a value as text in which nothing controls the terminal."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return time_text(value, fraction=True)
    if isinstance(value, Enum):
        value = value.value if isinstance(value, str) else value.name
    elif isinstance(value, dict | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return escaped(str(value))


def _with_zones(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Return headings that name the zone of a column of times, and rows with these times as texts.

    Where the times of a column have different zones, each names its own.
    """
    headings, shown = list(columns), [list(row) for row in rows]
    for number, heading in enumerate(headings):
        times = [cell for row in rows if isinstance(cell := row[number], datetime)]
        if not times:
            continue
        zone = common_zone(times)
        if zone is not None:
            headings[number] = f"{heading} ({zone})"
        for row in shown:
            cell = row[number]
            if isinstance(cell, datetime):
                row[number] = time_text(cell) if zone is None else cell_text(cell)
    return headings, shown


def _is_numeric(values: Sequence[object]) -> bool:
    given = [value for value in values if value not in (None, "")]
    return bool(given) and all(isinstance(value, int | float) for value in given)


def _widths_that_fit(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Return the widths of the first columns, as many as share a line. The first one always does."""
    widths: list[int] = []
    for number, column in enumerate(columns):
        texts = [column, *(row[number] for row in cells)]
        natural = max(map(cell_len, texts))
        room = None if width is None else width - sum(widths) - GAP * len(widths)
        if room is None or natural <= room or not widths:
            widths.append(natural)
            continue
        longest_word = max(cell_len(word) for text in texts for word in text.split() or [""])
        if max(longest_word, MIN_WRAPPED) <= room:
            widths.append(room)
        break
    return widths


def _join(parts: Sequence[str], widths: Sequence[int], to_right: Sequence[bool]) -> str:
    padded = []
    for part, width, right in zip(parts, widths, to_right, strict=True):
        space = " " * (width - cell_len(part))
        padded.append(space + part if right else part + space)
    return (" " * GAP).join(padded).rstrip()


def _named_lines(facts: Sequence[tuple[str, str]], name_width: int, width: int | None, indent: int) -> list[str]:
    lines = []
    start = indent + name_width + GAP
    for name, text in facts:
        first, *others = _wrap(text, None if width is None else max(width - start, MIN_WRAPPED))
        lines.append(f"{' ' * indent}{name}{' ' * (name_width - cell_len(name) + GAP)}{first}".rstrip())
        lines += [f"{' ' * start}{other}".rstrip() for other in others]
    return lines


def _wrap(text: str, width: int | None) -> list[str]:
    """Break a text between words; a longer word than the width stays whole."""
    if width is None:
        return [text]
    lines, line = [], ""
    for word in text.split(" "):
        if line and cell_len(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
