"""How `waooaw top` shows a frame: a table for a terminal, and the same as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from waooaw_celery.cli.output.times import clock_text
from waooaw_celery.maintenance.top.frame import AgentLine, Attention, Frame
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.log.escaping import escaped

COLUMNS = (
    *("agent", "attention", "status", "health", "workers", "running", "waiting", "oldest", "handled/min"),
    *("failed/min", "breaker", "why"),
)
#: What stands for a value whose source has not answered.
UNKNOWN = "?"
#: Columns that are aligned to the right.
_NUMBERS = frozenset({"workers", "running", "oldest", "handled/min", "failed/min"})
_COLORS = {
    Attention.NO_WORKER: "bold red",
    Attention.UNHEALTHY: "bold red",
    Attention.BREAKER: "red",
    Attention.DEGRADED: "yellow",
    Attention.FAILING: "yellow",
    Attention.FULL: "yellow",
    Attention.HELD: "cyan",
}
#: The columns, the most important one first.
_IMPORTANCE = (
    *("agent", "attention", "waiting", "oldest", "workers", "running", "handled/min", "failed/min", "health"),
    *("status", "breaker", "why"),
)
#: Spaces between two columns, and the least width of the reasons.
_GAP, MIN_REASONS = 2, 16
#: Lines of the screen that are not agents.
_OTHER_LINES = 5


def row(line: AgentLine) -> tuple[str, ...]:
    """Return the cells of an agent, in the order of ``COLUMNS``."""
    at_least = "+" if line.is_lower_bound else ""
    running = UNKNOWN if line.running is None else f"{line.running}/{line.places or UNKNOWN}"
    return (
        line.name,
        line.attention.value,
        _known(line.status),
        _known(line.health),
        _known(line.workers),
        running,
        waiting(line),
        duration(line.oldest_seconds),
        UNKNOWN if line.handled is None else f"{line.handled}{at_least}",
        UNKNOWN if line.failed is None else f"{line.failed}{at_least if line.failed else ''}",
        _known(line.breaker),
        "; ".join(escaped(reason) for reason in line.reasons),
    )


def waiting(line: AgentLine) -> str:
    """Return how many messages wait and, unless all are NORMAL, their priorities: ``12: 2 U, 10 N``."""
    if line.waiting is None:
        return UNKNOWN
    counts = {name: count for name, count in (line.by_priority or {}).items() if count}
    if set(counts) <= {Priority.NORMAL.name}:
        return str(line.waiting)
    return f"{line.waiting}: {', '.join(f'{count} {name[0]}' for name, count in counts.items())}"


def duration(seconds: float | None) -> str:
    """Return a duration in one unit, such as ``5 min``; nothing for None."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def source_lines(frame: Frame) -> list[str]:
    """Return a line for each source that does not answer."""
    lines = []
    for source in frame.sources:
        if source.error is not None:
            age = "nothing is known" if source.seconds is None else f"shown as of {source.seconds:.0f} s ago"
            lines.append(f"{source.name}: {escaped(source.error)} ({age})")
    return lines


def screen(frame: Frame, width: int, height: int) -> Group:
    """Return what a terminal shows. Where it is too narrow, the least important columns are left out.

    Args:
        frame: the picture.
        width: characters of a line of the terminal.
        height: lines of the terminal.
    """
    away = source_lines(frame)
    space = max(height - _OTHER_LINES - len(away), 1)
    lines = frame.agents[:space]
    rows = [row(line) for line in lines]
    columns = _columns_that_fit(rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in columns:
        name = COLUMNS[number]
        justify: Any = "right" if name in _NUMBERS else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
    for line, cells in zip(lines, rows, strict=True):
        table.add_row(*(Text(cells[number]) for number in columns), style=_COLORS.get(line.attention, ""))
    left = len(frame.agents) - len(lines)
    return Group(
        Text(f"waooaw top: {totals(frame)}", style="bold", no_wrap=True, overflow="ellipsis"),
        *(Text(line, style="bold red", no_wrap=True, overflow="ellipsis") for line in away),
        Text(""),
        table,
        Text(f"and {left} more; q: end" if left else "q: end", style="dim"),
    )


def _columns_that_fit(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the numbers of the columns that fit into a line; the last one of all, the reasons, may be cut."""
    chosen: list[int] = []
    for name in _IMPORTANCE:
        number = COLUMNS.index(name)
        needed = max(cell_len(name), max((cell_len(cells[number]) for cells in rows), default=0)) + _GAP
        is_last = name == _IMPORTANCE[-1]
        if chosen and width < (MIN_REASONS if is_last else needed):
            break
        chosen.append(number)
        width -= needed
    return sorted(chosen)


def totals(frame: Frame) -> str:
    """Return the time and the sums of a frame in one line."""
    waits = sum(line.waiting or 0 for line in frame.agents)
    parts = (
        clock_text(frame.at),
        f"{len(frame.agents)} agents",
        f"{sum(line.workers or 0 for line in frame.agents)} workers",
        f"{sum(line.running or 0 for line in frame.agents)} running",
        f"{waits} waiting",
        f"{sum(line.handled or 0 for line in frame.agents)} handled/min",
        f"{sum(line.failed or 0 for line in frame.agents)} failed/min",
    )
    return ", ".join(parts)


def _known(value: object) -> str:
    return UNKNOWN if value is None else str(value)
