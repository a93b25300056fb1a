"""`doctor`: check a running system."""

from __future__ import annotations

import click

from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import console, json_option, print_json, show_table
from waooaw_celery.maintenance.diagnostics import State, examine


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check the system: the clocks of this computer, the broker and each live worker.

    The exit code is 1 if a check fails.
    """
    findings = examine(current_app(ctx))
    if as_json:
        print_json(findings)
    else:
        rows = [(finding.state, finding.name, finding.sentence) for finding in findings]
        show_table(console(), f"Checks ({len(rows)})", ("state", "check", "finding"), rows)
    if any(finding.state is State.FAIL for finding in findings):
        ctx.exit(1)
