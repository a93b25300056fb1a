"""`health`: whether a process is live or ready, for an exec probe."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import ExitCode
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import echo, json_option, print_json

#: Seconds within which the process must answer.
SECONDS = 5.0


@click.command(cls=Command, examples=["waooaw health --worker planner@host-1", "waooaw health --live --port 9807"])
@click.option("--worker", metavar="NAME", help="Ask the store about a worker, such as planner@host-1.")
@click.option("--port", type=int, help="Port of the process on this computer.  [default: waooaw_health_port]")
@click.option("--live", is_flag=True, help="Ask whether it is live, not whether it is ready.")
@json_option
@click.pass_context
def health(ctx: click.Context, worker: str | None, port: int | None, live: bool, as_json: bool) -> None:
    """Check whether a process is ready to handle messages. The exit code is 0 if it is, and 1 if not.

    With --worker, its last heartbeat answers, which any computer can read. Without, the process on this computer
    that serves waooaw_health_port is asked.
    """
    app = current_app(ctx)
    if worker is not None:
        problems = _of_worker(app, worker)
    else:
        port = port if port is not None else app.settings.health_port
        if not port:
            raise click.UsageError("give --worker NAME or --port PORT, or set waooaw_health_port")
        problems = _of_port(port, "live" if live else "ready")
    if as_json:
        print_json({"status": "fail" if problems else "ok", "problems": problems})
    elif not problems:
        echo("ok")
    for name, problem in {} if as_json else problems.items():
        echo(f"{name}: {problem}")
    if problems:
        ctx.exit(ExitCode.FAILED)


def _of_worker(app: Any, worker: str) -> dict[str, str]:
    """Return the problems that the last heartbeat of a worker shows."""
    problems: dict[str, str] = {}
    found = False
    for record in app.registry.everywhere():
        if worker not in record.workers:
            continue
        found = True
        report = record.reports.get(worker, {})
        if report.get("stalled"):
            problems["progress"] = str(report["stalled"])
        if report.get("not_taking"):
            problems["draining"] = f"it takes no messages: {report['not_taking']}"
    if not found:
        problems["registered"] = f"no living worker is called {worker}: `waooaw agents` lists them"
    return problems


def _of_port(port: int, what: str) -> dict[str, str]:
    """Return the problems that a process on this computer tells."""
    url = f"http://127.0.0.1:{port}/health/{what}"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError as error:
        return {"port": f"{url} does not answer: {error}"}
    try:
        return dict(json.loads(body)["problems"])
    except (ValueError, KeyError, TypeError):
        return {"port": f"{url} is not the health of a process of waooaw"}
