"""`export`: messages in one file for an auditor, and the check of such a file."""

from __future__ import annotations

import signal
from datetime import datetime
from types import FrameType
from typing import Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.ledger.options import since_option, until_option
from waooaw_celery.cli.output import echo, json_option, print_json
from waooaw_celery.cli.output.table import show_facts
from waooaw_celery.maintenance.evidence.checking import ExportCheck, check_export
from waooaw_celery.maintenance.evidence.export import MAX_PICTURES, Export, export_messages
from waooaw_celery.maintenance.evidence.selection import Selection
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.wording import counted


@click.command(
    cls=Command,
    examples=["waooaw export order-17.zip --conversation order-17", "waooaw export order-17.zip --check"],
)
@click.argument("file", metavar="FILE.zip", type=click.Path(dir_okay=False))
@click.option("--conversation", metavar="ID", help="The messages of this conversation.")
@click.option("--agent", type=AGENT, help="The messages that this agent sent or received.")
@since_option
@until_option
@click.option("--no-payloads", is_flag=True, help="Leave the payloads out; their digests stay.")
@click.option(
    "--max-pictures",
    type=click.IntRange(min=0),
    default=MAX_PICTURES,
    show_default=True,
    help="Most pictures of conversations.",
)
@click.option("--force", is_flag=True, help="Replace FILE.zip if it exists.")
@click.option("--check", is_flag=True, help="Check FILE.zip instead of writing it. This needs no server.")
@by_option
@json_option
@click.pass_context
def export(ctx: click.Context, /, file: str, check: bool, as_json: bool, **options: Any) -> None:
    """Write messages to FILE.zip for an auditor: as JSON, with pictures of their conversations, and with sums.

    The filters combine, and at least one is needed. The exit code is 1 if a payload differs from the digest that
    the ledger recorded, or, with --check, if a file differs from its sum.
    """
    try:
        if check:
            _check(ctx, file, as_json)
        else:
            _export(ctx, file, as_json, **options)
    except OSError as error:
        if error.filename is None and not isinstance(error, FileExistsError):  # no file, but a connection
            raise
        hint = ". Give --force to replace it" if isinstance(error, FileExistsError) else ""
        raise CommandError(escaped(f"{error}{hint}"), ExitCode.FAILED) from error


def _export(
    ctx: click.Context,
    file: str,
    as_json: bool,
    *,
    conversation: str | None,
    agent: str | None,
    since: datetime | None,
    until: datetime | None,
    no_payloads: bool,
    max_pictures: int,
    force: bool,
    by: str | None,
) -> None:
    if not any((conversation, agent, since, until)):
        raise click.UsageError("give --conversation, --agent, --since or --until")
    selection = Selection(conversation=conversation, agent=agent, since=since, until=until)
    app = current_app(ctx)
    signal.signal(signal.SIGTERM, _stop)
    done = export_messages(
        app.ledger,
        file,
        selection,
        by=requester(app, by),
        payloads=not no_payloads,
        overwrite=force,
        max_pictures=max_pictures,
    )
    if as_json:
        print_json(done)
    else:
        _show_export(done)
    if done.payload_digests.differing:
        payloads = counted(done.payload_digests.differing, "payload")
        raise CommandError(
            f"{payloads} with another digest than the ledger recorded: see manifest.json", ExitCode.FAILED
        )


def _stop(signum: int, _frame: FrameType | None) -> None:
    """End the program as after an error, so that the unfinished file is removed."""
    raise SystemExit(128 + signum)


def _show_export(done: Export) -> None:
    digests = done.payload_digests
    compared = f"{digests.verified} verified, {digests.erased} erased, {digests.not_exported} not exported"
    show_facts(
        f"Exported to {done.path}",
        [
            ("bytes", done.size),
            ("messages", done.messages),
            ("events", done.events),
            ("conversations", done.conversations),
            ("pictures", done.pictures),
            ("payload digests", f"{compared}, {digests.differing} differ"),
            ("SHA-256 of the manifest", done.manifest_sha256),
        ],
    )
    echo("Keep the SHA-256 of the manifest in another place: it stands for the whole export.")


def _check(ctx: click.Context, file: str, as_json: bool) -> None:
    found = check_export(file)
    if as_json:
        print_json(found)
    else:
        _show_check(found)
    if found.differences:
        ctx.exit(ExitCode.FAILED)


def _show_check(found: ExportCheck) -> None:
    facts = [
        ("files", found.files),
        ("messages", found.messages),
        ("payloads with their digest", found.payloads),
        ("SHA-256 of the manifest", found.manifest_sha256),
    ]
    show_facts(f"Checked {found.path}", facts)
    for difference in found.differences:
        echo(f"differs: {difference}")
    if not found.differences:
        echo("Every file has the sum that the manifest names.")
