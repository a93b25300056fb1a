"""Shows how far a long command is, on standard error, and only to a person: never without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with what is done so far, and with the total, or None if nobody knows it.
OnProgress = Callable[[int, int | None], None]


@contextmanager
def progress(what: str, *, as_json: bool = False) -> Iterator[OnProgress]:
    """Show a bar during the block, and yield a function that moves it. The bar is removed at the end.

    Args:
        what: what is done, such as ``Purging messages``.
        as_json: whether the command prints JSON. Then nothing is shown, as without a terminal.

    Example:
        >>> with progress("Purging messages") as on_progress:
        ...     retention.purge(on_progress=on_progress)
    """
    if as_json or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console  # imported when it is needed: commands are to be quick
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _nothing(_done: int, _total: int | None) -> None:
    """Show nothing."""
