"""`up`: run the demo's agents until you stop them, so that you can send messages to them."""

from __future__ import annotations

import importlib.util
import secrets
import time

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.monitoring.flower import BASIC_AUTH_VARIABLE, USER
from waooaw_celery.demo.console import has_console, start_console
from waooaw_celery.demo.processes import AGENTS, SYSTEM, Stack, running_stack
from waooaw_celery.demo.program import program
from waooaw_celery.testing.embedded import check_port_free, free_port


@click.command(cls=Command, examples=["waooaw up", "waooaw up --port 6399"])
@click.option("--port", type=int, help="Port of the broker on 127.0.0.1.  [default: a private socket]")
@click.option("--flower-port", type=int, help="Port of Flower on 127.0.0.1.  [default: a free one]")
def up(port: int | None, flower_port: int | None) -> None:
    """Run the demo's agents until you press Ctrl-C, with the console and Flower if they are installed."""
    has_flower = importlib.util.find_spec("flower") is not None
    if flower_port is not None:
        check_port_free(flower_port, "Flower")
    click.echo(f"Starting a Valkey server, {len(AGENTS)} agents, the system's worker and beat …")
    with running_stack(port=port) as stack:
        page = _start_flower(stack, flower_port or free_port()) if has_flower else None
        console = start_console(stack) if has_console() else None
        click.echo(_next_steps(stack, page, console))
        while True:
            stack.check()
            time.sleep(0.5)


def _start_flower(stack: Stack, port: int) -> str:
    password = secrets.token_urlsafe(9)
    variables = {BASIC_AUTH_VARIABLE: f"{USER}:{password}"}
    stack.start("flower", ["-A", SYSTEM, "waooaw", "flower", f"--port={port}"], variables)
    return f"http://127.0.0.1:{port} (user {USER}, password {password})"


def _next_steps(stack: Stack, page: str | None, console: str | None) -> str:
    waooaw = program()
    return f"""
The agents are running. Press Ctrl-C to stop them. In another shell, type:

  export CELERY_BROKER_URL={stack.url}
  export WAOOAW_DATABASE_URL={stack.database_url}

  {waooaw} agents
  {waooaw} request dashboard survey
  {waooaw} send orchestrator '{{"paths": ["'$PWD'"]}}'
  {waooaw} request orchestrator progress
  {waooaw} request archivist results
  {waooaw} queues
  {waooaw} log --limit 5
  {waooaw} stats

Console: {console or "not installed (pip install 'waooaw-celery[console]')"}
Flower:  {page or "not installed (pip install 'waooaw-celery[flower]')"}
Logs:    {stack.folder}"""
