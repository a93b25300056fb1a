"""`log`, `stats`, `spool`, `purge`, `hold` and `erase`: query and maintain the ledger."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import IO, Any

import click

from waooaw_celery.cli.base.command import Command, CommandGroup
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import current_app, named_app
from waooaw_celery.cli.ledger.columns import FACTS, facts
from waooaw_celery.cli.ledger.options import since_option, until_option
from waooaw_celery.cli.output import echo, json_option, print_json, report, table_options
from waooaw_celery.cli.output.formats import show_formats
from waooaw_celery.cli.output.progress import progress
from waooaw_celery.cli.output.table import show_facts, show_table
from waooaw_celery.ledger.read.records import Durations
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.removal import Removal
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.large_payloads import purge_payloads
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.wording import counted


@click.command(
    cls=Command,
    examples=["waooaw log --to greeter --status failed --since 2h", "waooaw log --topic 'order.*' --json"],
)
@click.option("--from", "from_agent", type=AGENT, help="Sent by this agent.")
@click.option("--to", "to_agent", type=AGENT, help="Sent to this agent.")
@click.option("--type", "message_type", type=click.Choice([member.value for member in MessageType]))
@click.option("--status", type=click.Choice([member.value for member in MessageStatus]))
@click.option("--priority", type=click.Choice([member.name.lower() for member in Priority]))
@click.option("--handler", help="For this handler, such as command, or a method's name.")
@click.option("--identity", help="Sent by somebody with this identity.")
@click.option("--correlation-id")
@click.option("--topic", help="Events of this topic or pattern (order.*), and the messages to their subscribers.")
@click.option("--text", help="The payload contains this text (case-insensitive).")
@since_option
@until_option
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@table_options
@click.pass_context
def log(ctx: click.Context, /, as_json: bool, priority: str | None, **filters: Any) -> None:
    """List the messages in the ledger that match all filters, newest first."""
    trail = MessageAuditTrail(current_app(ctx).ledger)
    limit = filters.pop("limit")
    filters["priority"] = None if priority is None else Priority.of(priority)
    page = trail.query(limit=limit, payloads=as_json, **filters)
    records = page.records
    while page.after is not None and len(records) < limit:  # one query examines a limited number of rows
        page = trail.query(limit=limit - len(records), after=page.after, payloads=as_json, **filters)
        records += page.records
    if as_json:
        print_json(records)
        return
    rows = [(*facts(record), record.receipt.error) for record in records]
    show_table("Messages, newest first", (*FACTS, "error"), rows)
    if page.after is not None:
        echo(f"There are more messages: use --until {page.after[0].isoformat()}")


@click.command(cls=Command, examples=["waooaw stats --since 7d", "waooaw stats payload.json"])
@click.argument("file", required=False, type=click.File("rb"))
@since_option
@until_option
@table_options
@click.pass_context
def stats(
    ctx: click.Context, file: IO[bytes] | None, since: datetime | None, until: datetime | None, as_json: bool
) -> None:
    """Show statistics of the messages in the ledger; or, with FILE, compare wire formats on a payload.

    FILE is a JSON file, or - for standard input.
    """
    if file is not None:
        show_formats(file, as_json)
        return
    found = MessageAuditTrail(current_app(ctx).ledger).statistics(since, until)
    if as_json:
        print_json(found)
        return
    error_rate = "no message has ended" if found.error_rate is None else f"{found.error_rate:.1%}"
    measures = [
        ("messages", found.total),
        ("by status", _listed(found.by_status.items())),
        ("by type", _listed(found.by_type.items())),
        ("top senders", _listed(found.top_senders)),
        ("top receivers", _listed(found.top_receivers)),
        ("waiting, p50 / p95 / p99", _milliseconds(found.delivery)),
        ("handling, p50 / p95 / p99", _milliseconds(found.handling)),
        ("error rate", error_rate),
    ]
    show_facts("Statistics", measures)


@click.command(cls=Command, examples=["waooaw spool"])
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@table_options
@click.pass_context
def spool(ctx: click.Context, limit: int, as_json: bool) -> None:
    """Show this computer's spool: rows that wait for the database, rows it refused, and damaged files."""
    spool = named_app(ctx).ledger.spool  # settings are not checked: that needs the database, which may be down
    waiting, refused = spool.counts()
    refusals = [
        {"message_id": row.message_id, "kind": row.kind, "reason": reason} for row, reason in spool.refusals(limit)
    ]
    damaged = spool.damaged()
    if as_json:
        counts = {"path": str(spool.path), "waiting": waiting, "refused": refused}
        print_json({**counts, "refusals": refusals, "damaged": damaged})
        return
    wait = "waits" if waiting == 1 else "wait"
    be = "was" if refused == 1 else "were"
    echo(f"{spool.path}: {counted(waiting, 'row')} {wait}, {refused} {be} refused.")
    if damaged:
        rows = [(file.size, "yes" if file.salvaged else "not yet", file.path) for file in damaged]
        show_table("Damaged files that were moved aside", ("bytes", "salvaged", "file"), rows)
    if refusals:
        columns = ("message", "kind", "reason")
        show_table("Refused rows, newest first", columns, [tuple(one.values()) for one in refusals])


@click.command(cls=Command, examples=["waooaw purge --dry-run", "waooaw purge"])
@click.option("--dry-run", is_flag=True, help="Only count the messages.")
@click.option("--despite-skew", is_flag=True, help="Purge by the database's clock even if the clocks disagree.")
@json_option
@click.pass_context
def purge(ctx: click.Context, dry_run: bool, despite_skew: bool, as_json: bool) -> None:
    """Remove messages whose retention is over. Beat does the same every night.

    Nothing is removed if the clocks of this computer, the database and Redis differ by more than a minute.
    """
    app = current_app(ctx)
    retention = Retention(app.database, app.components.witnesses())
    with progress("Purging messages", as_json=as_json or dry_run) as on_progress:
        removal = retention.purge(dry_run=dry_run, despite_skew=despite_skew, on_progress=on_progress)
    if not (dry_run or removal.busy):
        purged = purge_payloads(app)
        removal = replace(removal, payloads=purged.objects + purged.orphans)
    _show_removal(removal, "would remove" if dry_run else "removed", as_json)


@click.command(
    cls=Command, examples=["waooaw erase --containing ada@example.org", "waooaw erase --agent greeter --yes"]
)
@click.option("--agent", type=AGENT, help="All messages that this agent sent or received.")
@click.option("--containing", metavar="TEXT", help="All messages whose payload contains TEXT.")
@click.confirmation_option(prompt="Erased data cannot be restored. Continue?")
@json_option
@click.pass_context
def erase(ctx: click.Context, agent: str | None, containing: str | None, as_json: bool) -> None:
    """Erase payloads, results and error texts from every place where the system keeps a copy.

    Agents, times, statuses and the digests of payloads stay. What is on legal hold stays. The output counts what
    was erased in each place, and names what was not reached.
    """
    from waooaw_celery.maintenance.erasure import erase as erase_everywhere

    app = current_app(ctx)
    with progress("Erasing messages", as_json=as_json) as on_progress:
        erasure = erase_everywhere(app, agent=agent, containing=containing, on_progress=on_progress)
    if as_json:
        print_json(erasure)
        return
    counts = {name: value for name, value in asdict(erasure).items() if name not in ("rule", "remains")}
    rows = [(name.replace("_", " "), count) for name, count in counts.items()]
    show_table(f"Erased ({erasure.rule})", ("what", "count"), rows)
    show_table("Not reached", ("what",), [(each,) for each in erasure.remains])


@click.group(cls=CommandGroup)
def hold() -> None:
    """Manage legal holds, which keep messages from being purged or erased."""


_kind = click.argument("kind", type=click.Choice([kind.value for kind in HoldKind]))


@hold.command("add", examples=["waooaw hold add agent supplier --reason 'lawsuit 12/26'"])
@_kind
@click.argument("value")
@click.option("--reason", required=True, help="The reason, for the record.")
@json_option
@click.pass_context
def add(ctx: click.Context, kind: str, value: str, reason: str, as_json: bool) -> None:
    """Place a hold on a message, a conversation or an agent's messages."""
    Retention(current_app(ctx).database).hold(HoldKind(kind), value, reason)
    report(f"Placed a hold on {kind} {value}.", {"kind": kind, "value": value, "reason": reason}, as_json)


@hold.command("release", examples=["waooaw hold release agent supplier"])
@_kind
@click.argument("value")
@json_option
@click.pass_context
def release(ctx: click.Context, kind: str, value: str, as_json: bool) -> None:
    """Release a hold."""
    if not Retention(current_app(ctx).database).release(HoldKind(kind), value):
        raise CommandError(escaped(f"there is no hold on {kind} {value}"), ExitCode.NOT_FOUND)
    report(f"Released the hold on {kind} {value}.", {"kind": kind, "value": value}, as_json)


@hold.command("list", examples=["waooaw hold list"])
@table_options
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the holds that are in force."""
    holds = Retention(current_app(ctx).database).holds()
    if as_json:
        print_json(holds)
        return
    rows = [(each.kind, each.value, each.placed_at, each.reason) for each in holds]
    show_table(f"Legal holds ({len(rows)})", ("kind", "value", "placed", "reason"), rows)


def _show_removal(removal: Removal, verb: str, as_json: bool) -> None:
    if as_json:
        print_json(removal)
    elif removal.busy:
        echo("Another purge is running. Nothing was removed.")
    else:
        messages, events = counted(removal.messages, "message"), counted(removal.events, "event")
        workflows = f", {counted(removal.workflows, 'workflow')}" if removal.workflows else ""
        payloads = f", {counted(removal.payloads, 'large payload')}" if removal.payloads else ""
        echo(f"{removal.rule}: {verb} {messages}, {events}{workflows}{payloads}.")


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts) or "none"


def _milliseconds(durations: Durations) -> str:
    values = (durations.p50, durations.p95, durations.p99)
    return " / ".join("-" if value is None else f"{value * 1000:.0f} ms" for value in values)
