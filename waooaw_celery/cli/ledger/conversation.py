"""`conversation`: one conversation as a tree, a table, Mermaid text, an HTML page or JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.ledger.columns import FACTS, facts
from waooaw_celery.cli.output import echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.cli.output.times import in_zone
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.diagrams.building import diagram_of
from waooaw_celery.maintenance.diagrams.mermaid import mermaid
from waooaw_celery.maintenance.diagrams.page import html_page
from waooaw_celery.maintenance.diagrams.thread import thread_of
from waooaw_celery.maintenance.diagrams.tree import STROKES, tree
from waooaw_celery.maintenance.diagrams.workflow_ids import workflow_ids
from waooaw_celery.maintenance.evidence.forms import record_form


@click.command(
    cls=Command,
    examples=[
        "waooaw conversation 0198c0f2-7a51-7d5e-8d8c-0d7f2f3f7a10",
        "waooaw conversation order-17 --html order-17.html",
    ],
)
@click.argument("id_", metavar="ID")
@click.option("--table", "as_table", is_flag=True, help="Print a table instead of a tree.")
@click.option("--mermaid", "as_mermaid", is_flag=True, help="Print a sequence diagram in Mermaid.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.File("wb", atomic=True),
    help="Write an HTML page with pictures and every message to FILE; - is standard output.",
)
@click.option("--thread", is_flag=True, help="Only the message ID, its causes, and what followed from it.")
@click.option("--no-payloads", is_flag=True, help="Leave the payloads out of --html and --json.")
@table_options
@click.pass_context
def conversation(
    ctx: click.Context,
    id_: str,
    as_table: bool,
    as_mermaid: bool,
    page: IO[bytes] | None,
    thread: bool,
    no_payloads: bool,
    as_json: bool,
) -> None:
    """Show the conversation that ID belongs to, as a tree: each message below the one that caused it.

    ID is a message id, a correlation id or a conversation id.
    """
    if as_table + as_mermaid + (page is not None) + as_json > 1:
        raise click.UsageError("give one of --table, --mermaid, --html and --json")
    app = current_app(ctx)
    payloads = (as_json or page is not None) and not no_payloads
    records = MessageAuditTrail(app.ledger).conversation(id_, payloads=payloads)
    if thread:
        records = thread_of(records, id_)
    if as_json:
        print_json(records if payloads else [record_form(record, payload=False) for record in records])
    elif as_table:
        _show_table(records)
    else:
        _draw(app, records, page, payloads=payloads, as_mermaid=as_mermaid)


def _draw(
    app: AgentApp, records: Sequence[AuditRecord], page: IO[bytes] | None, *, payloads: bool, as_mermaid: bool
) -> None:
    workflows = workflow_ids(app.database, {record.conversation_id for record in records})
    if page is not None:
        page.write(html_page(records, payloads=payloads, workflows=workflows).encode())
    elif as_mermaid:
        text = mermaid(diagram_of(records, workflows=workflows))
        for line in text.splitlines():
            echo(line)
    else:
        diagram = diagram_of(records, max_arrows=len(records), workflows=workflows)
        for line in tree(diagram, ascii_only=not _prints(STROKES)):
            echo(line)


def _prints(text: str) -> bool:
    """Whether the encoding of standard output has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _show_table(records: Sequence[AuditRecord]) -> None:
    rows = [(*facts(each), each.causation_id, each.receipt.error, _events(each)) for each in records]
    title = f"Conversation {records[0].conversation_id}, in causal order"
    show_table(title, (*FACTS, "cause", "error", "events"), rows)


def _events(record: AuditRecord) -> str:
    return ", ".join(f"{each.event} {in_zone(each.at):%H:%M:%S.%f}"[:-3] for each in record.events)
