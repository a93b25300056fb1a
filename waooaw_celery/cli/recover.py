"""`recover`: publish lost messages again."""

from __future__ import annotations

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import echo, json_option, print_json
from waooaw_celery.cli.output.progress import progress
from waooaw_celery.maintenance.recovery import MAX_MESSAGES, Recovery
from waooaw_celery.messages.log.escaping import escaped


@click.command(cls=Command, examples=["waooaw recover --dry-run", "waooaw recover --agent greeter --limit 100"])
@click.option("--dry-run", is_flag=True, help="Only list the messages.")
@click.option("--agent", type=AGENT, help="Only messages to this agent.")
@click.option(
    "--limit", type=click.IntRange(1), default=MAX_MESSAGES, show_default=True, help="Largest number of messages."
)
@json_option
@click.pass_context
def recover(ctx: click.Context, dry_run: bool, agent: str | None, limit: int, as_json: bool) -> None:
    """Publish messages again that are open in the ledger and missing in the broker. Beat does so regularly."""
    recovery = Recovery(current_app(ctx))
    with progress("Looking up open messages", as_json=as_json) as on_progress:
        done = recovery.run(dry_run=dry_run, agent=agent, limit=limit, on_progress=on_progress)
    if as_json:
        print_json(done)
    elif done.busy:
        echo("Another recovery is running. Nothing was published.")
    else:
        done_or_not = "to publish again" if dry_run else "published again"
        echo(
            f"Open messages: {done.looked_for}; {done_or_not}: {len(done.recovered)}; "
            f"given up: {len(done.given_up)}; could not be published: {len(done.failed)}."
        )
        for message_id in done.recovered if dry_run else ():
            echo(message_id)
        if done.unfinished:
            echo("There may be more: run the command again.")
    if done.error is not None:
        raise CommandError(escaped(done.error), ExitCode.SERVER)
