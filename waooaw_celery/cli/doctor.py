"""`doctor`: check a running system."""

from __future__ import annotations

import click

from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.maintenance.diagnostics import State, examine


@click.command()
@table_options
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check the system: the clocks of this computer, the broker and each live worker, and the workers' ledgers.

    The exit code is 1 if a check fails.
    """
    findings = examine(current_app(ctx))
    if as_json:
        print_json(findings)
    else:
        rows = [(finding.state, finding.name, finding.sentence) for finding in findings]
        show_table(f"Checks ({len(rows)})", ("state", "check", "finding"), rows)
    if any(finding.state is State.FAIL for finding in findings):
        ctx.exit(1)
