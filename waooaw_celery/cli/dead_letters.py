"""`dead`: list, show, retry and discard dead letters."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter, payload_in, read_content
from waooaw_celery.broker.dead_letters.queue import DEFAULT_LIMIT, Outcome
from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.base.exit_codes import ExitCode
from waooaw_celery.cli.base.parameters import AGENT, TimeParam
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.output import ago, echo, print_json, table_options
from waooaw_celery.cli.output.progress import progress
from waooaw_celery.cli.output.table import show_facts, show_table
from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import counted

#: Reasons that are counted.
MAX_COUNTS = 10

_FILTERS = (
    click.option("--agent", type=AGENT, help="Dead letters that were sent to this agent."),
    click.option("--queue", help="Dead letters from this queue."),
    click.option("--reason", metavar="TEXT", help="Dead letters whose reason contains TEXT (case-insensitive)."),
    click.option("--since", type=TimeParam(), help="Dead letters from this time on."),
    click.option("--message", "message_id", metavar="ID", help="The dead letter of this message."),
)
_limit = click.option(
    "--limit",
    type=click.IntRange(1),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="Largest number of dead letters.",
)
_ids = click.argument("ids", metavar="[ID]...", nargs=-1)
_all = click.option("--all", "every", is_flag=True, help="All dead letters, up to the limit.")
_yes = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def dead() -> None:
    """Manage dead letters: messages that were unreadable, had no handler, or whose handler failed."""


@dead.command("list", examples=["waooaw dead list --agent greeter --since 2h"])
@_filters
@_limit
@table_options
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **filters: Any) -> None:
    """List dead letters, newest first."""
    found = current_app(ctx).dead_letters.list(limit=limit, **filters)
    if as_json:
        print_json([_plain(letter) for letter in found])
        return
    _show_dead_letters(found)
    if len({(letter.agent, letter.reason) for letter in found}) < len(found):  # some of them died alike
        echo("By agent and reason:")
        _show_counts(found)
    if len(found) == limit:
        echo(f"There may be more: use --limit {2 * limit}.")


@dead.command(examples=["waooaw dead show 1795908851841-0"])
@click.argument("id_", metavar="ID")
@click.option("--raw", is_flag=True, help="Write only the bytes of the message.")
@table_options
@click.pass_context
def show(ctx: click.Context, id_: str, raw: bool, as_json: bool) -> None:
    """Show the dead letter ID: its facts, its payload, and why its payload cannot be read, if so."""
    app = current_app(ctx)
    letter = app.dead_letters.get(id_)
    if raw:
        if sys.stdout.isatty():
            raise click.UsageError("--raw writes bytes that may command a terminal: add > FILE")
        sys.stdout.buffer.write(letter.raw)
        return
    payload, unreadable = _payload(app, letter)
    if as_json:
        print_json({**_plain(letter), "payload": payload, "unreadable": unreadable, "raw": _base64(letter)})
        return
    content = ("unreadable", unreadable) if unreadable is not None else ("payload", f"{payload!a}")
    facts = [*_plain(letter).items(), content, ("raw", f"{letter.raw!a:.2000}")]
    show_facts(f"Dead letter {letter.id}", [(name.replace("_", " "), value) for name, value in facts])


@dead.command(examples=["waooaw dead retry 1795908851841-0", "waooaw dead retry --agent greeter --since 7d --yes"])
@_ids
@_filters
@_all
@_limit
@click.option("--again", is_flag=True, help="Also dead letters that were retried three times already.")
@_yes
@by_option
@table_options
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    ids: tuple[str, ...],
    every: bool,
    limit: int,
    again: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Send dead letters to the same handler again, each as a new message.

    Choose them by ID, by the filters, or with --all.
    """
    app = current_app(ctx)
    chosen = _chosen(app, ids, every, limit, filters)
    _confirm(chosen, "Send again", yes)
    letters = _with_missing(ids, chosen)
    with progress("Sending dead letters", as_json=as_json) as on_progress:
        outcomes = app.dead_letters.retry(letters, by=requester(app, by), again=again, on_progress=on_progress)
    _report(ctx, outcomes, as_json, more=not ids and len(chosen) == limit)


@dead.command(examples=["waooaw dead discard 1795908851841-0 --because 'sent by mistake'"])
@_ids
@_filters
@_all
@_limit
@click.option("--because", metavar="TEXT", required=True, help="The reason, which is recorded in the receipts.")
@_yes
@by_option
@table_options
@click.pass_context
def discard(
    ctx: click.Context,
    /,
    ids: tuple[str, ...],
    every: bool,
    limit: int,
    because: str,
    yes: bool,
    by: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Delete dead letters. Choose them by ID, by the filters, or with --all."""
    app = current_app(ctx)
    chosen = _chosen(app, ids, every, limit, filters)
    _confirm(chosen, "Discard", yes)
    letters = _with_missing(ids, chosen)
    with progress("Discarding dead letters", as_json=as_json) as on_progress:
        outcomes = app.dead_letters.discard(
            letters, reason=because, by=requester(app, by), on_progress=on_progress
        )
    _report(ctx, outcomes, as_json, more=not ids and len(chosen) == limit)


def _chosen(
    app: AgentApp, ids: tuple[str, ...], every: bool, limit: int, filters: dict[str, Any]
) -> Sequence[DeadLetter]:
    has_filter = any(value is not None for value in filters.values())
    if bool(ids) + every + has_filter != 1:
        raise click.UsageError(
            "choose dead letters: IDs, or --agent, --queue, --reason, --since, --message, or --all"
        )
    if ids:
        return app.dead_letters.list(ids=ids, limit=len(ids))
    return app.dead_letters.list(limit=limit, **filters)


def _with_missing(ids: tuple[str, ...], chosen: Sequence[DeadLetter]) -> list[DeadLetter | str]:
    found = {letter.id for letter in chosen}
    return [*chosen, *(id_ for id_ in ids if id_ not in found)]


def _confirm(letters: Sequence[DeadLetter], what: str, yes: bool) -> None:
    if not letters or yes:
        return
    _show_counts(letters, err=True)
    click.confirm(f"{what} {counted(len(letters), 'dead letter')}?", abort=True, err=True)


def _show_counts(letters: Sequence[DeadLetter], *, err: bool = False) -> None:
    """Print how many dead letters each agent has for each reason, the most frequent ones."""
    counts = Counter((letter.agent, letter.reason) for letter in letters)
    for (agent, reason), count in counts.most_common(MAX_COUNTS):
        echo(f"{count:6}  to {agent or 'an unknown agent'}: {reason:.100}", err=err)


def _report(ctx: click.Context, outcomes: Sequence[Outcome], as_json: bool, *, more: bool) -> None:
    refused = sum(outcome.refused is not None for outcome in outcomes)
    if as_json:
        print_json(list(outcomes))
    elif outcomes:
        rows = [
            (each.id, each.new_id or ("unchanged" if each.refused else "deleted"), each.message_id, each.refused)
            for each in outcomes
        ]
        title = f"{len(outcomes) - refused} done, {refused} refused"
        show_table(title, ("dead letter", "new message", "message", "why refused"), rows)
    else:
        echo("No dead letter matches.")
    if more:
        echo(f"There may be more: run the command again, or use --limit {2 * len(outcomes)}.", err=True)
    if refused:
        ctx.exit(ExitCode.FAILED)


def _show_dead_letters(letters: Sequence[DeadLetter]) -> None:
    rows = [
        (each.id, ago(each.at), each.from_agent, each.task or each.queue, each.message_id, each.reason)
        for each in letters
    ]
    columns = ("dead letter", "died", "from", "to handler", "message", "reason")
    show_table(f"Dead letters ({len(rows)})", columns, rows)


def _plain(letter: DeadLetter) -> dict[str, JSON]:
    facts = asdict(letter)
    del facts["raw"]
    return {**facts, "bytes": len(letter.raw)}


def _payload(app: AgentApp, letter: DeadLetter) -> tuple[JSON, str | None]:
    try:
        return payload_in(read_content(letter, app.packer.caps), app.components.large_payloads.load), None
    except WaooawError as error:
        return None, str(error)


def _base64(letter: DeadLetter) -> str:
    return b64encode(letter.raw).decode()
