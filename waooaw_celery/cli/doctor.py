"""`doctor`: check a running system."""

from __future__ import annotations

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import ExitCode
from waooaw_celery.cli.group import named_app, named_project
from waooaw_celery.cli.output import print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.maintenance.diagnostics.examination import examine
from waooaw_celery.maintenance.diagnostics.finding import State
from waooaw_celery.maintenance.diagnostics.project import project_changes


@click.command(cls=Command, examples=["waooaw doctor --strict --json", "waooaw -A shop doctor --project"])
@click.option("--strict", is_flag=True, help="End with the exit code 1 for warnings too.")
@click.option(
    "--project", is_flag=True, help="Show what changes for the existing Celery application of -A. Asks no server."
)
@table_options
@click.pass_context
def doctor(ctx: click.Context, strict: bool, project: bool, as_json: bool) -> None:
    """Check the system: servers, settings, permissions, the ledger, clocks, workers, beat and its tasks.

    All checks run at the same time, for at most 20 s. Each finding says what to do. The exit code is 1 if a check
    fails.
    """
    findings = project_changes(named_project(ctx)) if project else examine(named_app(ctx))
    if as_json:
        print_json(findings)
    else:
        rows = [(finding.state, finding.name, finding.sentence) for finding in findings]
        show_table(f"Checks ({len(rows)})", ("state", "check", "finding"), rows)
    bad = {State.FAIL, State.WARN} if strict else {State.FAIL}
    if any(finding.state in bad for finding in findings):
        ctx.exit(ExitCode.FAILED)
