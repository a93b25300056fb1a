"""`monitoring`: print the alert rules for Prometheus and the dashboards for Grafana."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.output import echo
from waooaw_celery.errors import ConfigurationError

#: How each link to the runbook begins in the rules.
RUNBOOK = "docs/runbook.md"

_output = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file.  [default: standard output]",
)


@click.group(cls=CommandGroup)
def monitoring() -> None:
    """Print the alert rules for Prometheus and the dashboards for Grafana, which come with this package."""


@monitoring.command(examples=["waooaw monitoring rules --output waooaw.rules.yml"])
@click.option(
    "--runbook", metavar="URL", help="Where the runbook is, for the links: your copy of docs/runbook.md."
)
@_output
def rules(runbook: str | None, output: Path | None) -> None:
    """Print the alert rules for Prometheus."""
    text = _text("alerts", "waooaw.rules.yml")
    _write(
        text if runbook is None else text.replace(f"runbook_url: {RUNBOOK}#", f"runbook_url: {runbook}#"), output
    )


@monitoring.command(examples=["waooaw monitoring dashboard fleet --output fleet.json"])
@click.argument("name", type=click.Choice(["fleet", "agent"]))
@_output
def dashboard(name: str, output: Path | None) -> None:
    """Print a dashboard for Grafana: of the whole fleet, or of one agent."""
    _write(_text("dashboards", f"{name}.json"), output)


def _text(folder: str, name: str) -> str:
    return files("waooaw_celery.monitoring").joinpath(folder, name).read_text(encoding="utf-8")


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)  # a file of this package, which holds nothing to escape
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from error
    echo(f"Wrote {output}.")
