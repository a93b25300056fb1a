"""`queues`: how many messages wait in each queue, and from whom; `queues drop` takes those of one sender out."""

from __future__ import annotations

import click

from waooaw_celery.app.waiting import MAX_READ, queue_depths
from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.output import echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.maintenance.queue_drop import Dropped
from waooaw_celery.maintenance.queue_drop import drop as drop_messages
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import QueueDepth, agent_queue, system_queue
from waooaw_celery.messages.wording import counted


@click.group(
    invoke_without_command=True,
    cls=CommandGroup,
    examples=["waooaw queues", "waooaw queues drop greeter --from boss --yes"],
)
@click.option(
    "--read",
    is_flag=True,
    help="On RabbitMQ, count priorities and senders in the queue: its messages are out of it for a moment.",
)
@table_options
@click.pass_context
def queues(ctx: click.Context, read: bool, as_json: bool) -> None:
    """List the queues and how many messages wait in each, by priority and by sender."""
    if ctx.invoked_subcommand is not None:
        return
    app = current_app(ctx)
    listed = [*(agent_queue(record.name) for record in app.registry.all()), system_queue()]
    depths = queue_depths(app, listed, read=(read and app.driver == "amqp") or None)
    if as_json:
        print_json(depths)
        return
    rows: list[tuple[object, ...]] = [(depth.queue, *_counts(depth), _listed(depth)) for depth in depths]
    columns: tuple[str, ...] = ("queue", *(priority.name.lower() for priority in Priority), "all", "from")
    if any(depth.busy_keys for depth in depths):
        columns = (*columns, "busy keys")
        rows = [(*row, depth.busy_keys) for row, depth in zip(rows, depths, strict=True)]
    show_table("Waiting messages", columns, rows)
    if not read and app.driver == "amqp":
        if app.components.has_ledger:
            echo("Senders and keys are those of open messages: also of those that run, or are not due.")
        echo("`waooaw queues --read` also counts priorities and senders in the queue.")


@queues.command(
    examples=[
        "waooaw queues drop greeter --from boss",
        "waooaw queues drop greeter --from boss --yes --because 'sent in a circle'",
    ]
)
@click.argument("agent", type=AGENT)
@click.option(
    "--from", "sender", type=AGENT, metavar="SENDER", required=True, help="The agent that sent the messages."
)
@click.option("--discard", is_flag=True, help="Delete the messages, instead of making dead letters of them.")
@click.option("--because", "reason", metavar="TEXT", help="The reason, which is recorded for each message.")
@click.option("--yes", is_flag=True, help="Drop the messages. Without it, they are only counted.")
@by_option
@table_options
@click.pass_context
def drop(
    ctx: click.Context,
    agent: str,
    sender: str,
    discard: bool,
    reason: str | None,
    yes: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Take the messages of SENDER out of the queue of AGENT. What a worker holds already is not touched.

    They become dead letters, with the status DEAD: `waooaw dead retry --agent AGENT` sends them again. With
    --discard they are deleted, with the status CANCELLED. A caller that waits for an answer is told at once.
    """
    app = current_app(ctx)
    found = drop_messages(
        app, agent, sender, by=requester(app, by), reason=reason, discard=discard, dry_run=not yes
    )
    if as_json:
        print_json({"total": found.total, **_plain(found)})
        return
    by_priority = ", ".join(f"{count} {priority.name}" for priority, count in found.messages.items())
    what = counted(found.total, "message") + (f" ({by_priority})" if by_priority else "")
    if found.dry_run:
        echo(f"{what} from {sender} in the queue of {agent}. Nothing was dropped: use --yes.")
    elif discard:
        echo(f"Discarded {what} from {sender} to {agent}.")
    else:
        echo(f"Made dead letters of {what} from {sender} to {agent}.")


def _counts(depth: QueueDepth) -> tuple[object, ...]:
    by_priority = depth.by_priority
    return (*(("?" if by_priority is None else by_priority[priority]) for priority in Priority), depth.total)


def _listed(depth: QueueDepth) -> str:
    if depth.by_sender is None:
        return "?"
    counts = ", ".join(f"{sender} {count}" for sender, count in depth.by_sender.items())
    return f"{counts} (of {MAX_READ} that were read)" if depth.total > MAX_READ else counts


def _plain(found: Dropped) -> dict[str, object]:
    return {
        "agent": found.agent,
        "from_agent": found.from_agent,
        "messages": found.messages,
        "into": found.into,
        "dry_run": found.dry_run,
    }
