"""`recover`: what the broker lost, from the shell."""

from __future__ import annotations

import click

from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import json_option, print_json
from waooaw_celery.maintenance.recovery import MAX_MESSAGES, Recovery


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be published again.")
@click.option("--agent", help="Only messages to this agent.")
@click.option("--limit", type=click.IntRange(1), default=MAX_MESSAGES, show_default=True, help="How many at most.")
@json_option
@click.pass_context
def recover(ctx: click.Context, dry_run: bool, agent: str | None, limit: int, as_json: bool) -> None:
    """Publish again what the ledger knows as open and the broker no longer has; beat does so all the time."""
    done = Recovery(current_app(ctx)).run(dry_run=dry_run, agent=agent, limit=limit)
    if as_json:
        print_json(done)
    elif done.busy:
        click.echo("Another recovery is running; nothing was done.")
    else:
        would = "would be " if dry_run else ""
        click.echo(
            f"Of {done.looked_for} open messages {len(done.recovered)} {would or 'were '}published again, "
            f"{len(done.given_up)} {would}given up, {len(done.failed)} could not be published."
        )
        for message_id in done.recovered if dry_run else ():
            click.echo(message_id)
        if done.unfinished:
            click.echo("There is more: run it again.")
    if done.error is not None:
        raise click.ClickException(done.error)
