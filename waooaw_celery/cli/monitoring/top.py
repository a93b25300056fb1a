"""`top`: a live view of all agents, those that need attention first."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.monitoring.keyboard import Keyboard
from waooaw_celery.cli.monitoring.top_screen import COLUMNS, row, screen, source_lines, totals
from waooaw_celery.cli.output import echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.maintenance.top.reader import TopReader

#: Seconds for which a single frame waits for its sources.
ONCE_SECONDS = 10.0
#: Share of the interval for which a frame waits; the rest is for showing it.
_SHARE = 0.8


@click.command(cls=Command, examples=["waooaw top", "waooaw top --once --json"])
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame, and end. This is the default without a terminal.")
@table_options
@click.pass_context
def top(ctx: click.Context, interval: float, once: bool, as_json: bool) -> None:
    """Show all agents live: health, workers, what runs and waits, rates. What needs attention comes first.

    End it with q or Ctrl-C. A server that does not answer is named, and the rest goes on.
    """
    app = named_app(ctx)
    _ = app.settings, app.driver, app.components.breakers  # a wrong setting is an error, no empty screen
    reader = TopReader(app)
    try:
        if once or as_json or not sys.stdout.isatty():
            _print(reader, as_json)
        else:
            _watch(reader, interval)
    finally:
        reader.close()


def _print(reader: TopReader, as_json: bool) -> None:
    frame = reader.frame(ONCE_SECONDS)
    if as_json:
        print_json(frame)
        return
    show_table(totals(frame), COLUMNS, [row(line) for line in frame.agents])
    for line in source_lines(frame):
        echo(f"Warning: {line}", err=True)


def _watch(reader: TopReader, interval: float) -> None:
    """Show frames until a key, Ctrl-C or SIGTERM ends it. The terminal is then as it was."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    console = Console()
    try:
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            ends_at = time.monotonic()
            while True:
                ends_at = max(ends_at + interval, time.monotonic())
                frame = reader.frame(interval * _SHARE)
                live.update(screen(frame, *console.size), refresh=True)
                if keyboard.ends_within(max(ends_at - time.monotonic(), 0.0)):
                    return
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)
