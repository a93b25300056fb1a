"""`log`, `conversation`, `stats`, `spool`, `purge`, `hold` and `erase`: the ledger from the shell."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import IO, Any

import click

from waooaw_celery.cli.formats import show_formats
from waooaw_celery.cli.group import current_app, named_app
from waooaw_celery.cli.output import console, json_option, print_json, show_table
from waooaw_celery.ledger.read.records import AuditRecord, Durations
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.removal import Removal
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority


class MomentParam(click.ParamType[datetime]):
    """A moment in ISO 8601; without a time zone it is UTC."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value} is no moment, such as 2026-11-22 or 2026-11-22T13:57", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_since = click.option("--since", type=MomentParam(), help="Sent at this moment or later.")
_until = click.option("--until", type=MomentParam(), help="Sent before this moment.")


@click.command()
@click.option("--from", "from_agent", metavar="AGENT", help="Sent by this agent.")
@click.option("--to", "to_agent", metavar="AGENT", help="Sent to this agent.")
@click.option("--type", "message_type", type=click.Choice([member.value for member in MessageType]))
@click.option("--status", type=click.Choice([member.value for member in MessageStatus]))
@click.option("--priority", type=click.Choice([member.name.lower() for member in Priority]))
@click.option("--correlation-id")
@click.option("--topic", help="Events of this topic: their records, and the messages to their subscribers.")
@click.option("--text", help="The payload contains this, in any case.")
@_since
@_until
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@click.pass_context
def log(ctx: click.Context, /, as_json: bool, priority: str | None, **filters: Any) -> None:
    """List messages of the ledger that fit all filters, newest first."""
    trail = MessageAuditTrail(current_app(ctx).ledger)
    limit = filters.pop("limit")
    filters["priority"] = None if priority is None else Priority.of(priority)
    page = trail.query(limit=limit, **filters)
    records = page.records
    while page.after is not None and len(records) < limit:  # it looked at as much as one page may
        page = trail.query(limit=limit - len(records), after=page.after, **filters)
        records += page.records
    _show(records, "Messages, newest first", as_json)
    if page.after is not None and not as_json:
        click.echo(f"There are more: --until {page.after[0].isoformat()}")


@click.command()
@click.argument("id_", metavar="ID")
@json_option
@click.pass_context
def conversation(ctx: click.Context, id_: str, as_json: bool) -> None:
    """Tell the conversation that ID belongs to, in causal order: of a message, a thread or the conversation."""
    records = MessageAuditTrail(current_app(ctx).ledger).conversation(id_)
    _show(records, f"Conversation {records[0].conversation_id}", as_json)


@click.command()
@click.argument("file", required=False, type=click.File("rb"))
@_since
@_until
@json_option
@click.pass_context
def stats(
    ctx: click.Context, file: IO[bytes] | None, since: datetime | None, until: datetime | None, as_json: bool
) -> None:
    """Count and measure the messages of the ledger; or, with FILE, compare formats and codecs on a payload.

    FILE is JSON, or - for standard input.
    """
    if file is not None:
        show_formats(file, as_json)
        return
    facts = MessageAuditTrail(current_app(ctx).ledger).statistics(since, until)
    if as_json:
        print_json(facts)
        return
    error_rate = "none ended yet" if facts.error_rate is None else f"{facts.error_rate:.1%}"
    rows = [
        ("messages", facts.total),
        ("by status", _listed(facts.by_status.items())),
        ("by type", _listed(facts.by_type.items())),
        ("top senders", _listed(facts.top_senders)),
        ("top receivers", _listed(facts.top_receivers)),
        ("delivery, p50 / p95 / p99", _milliseconds(facts.delivery)),
        ("handling, p50 / p95 / p99", _milliseconds(facts.handling)),
        ("error rate", error_rate),
    ]
    show_table(console(), "Statistics", ("of", "value"), rows)


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@click.pass_context
def spool(ctx: click.Context, limit: int, as_json: bool) -> None:
    """Tell what waits on this computer for the database, what that refused, and which files were damaged."""
    kept = named_app(ctx).ledger.spool  # the database may be away: nothing is asked of it
    waiting, refused = kept.counts()
    refusals = [
        {"message_id": entry.message_id, "kind": entry.kind, "reason": reason}
        for entry, reason in kept.refusals(limit)
    ]
    damaged = kept.damaged()
    if as_json:
        counts = {"path": str(kept.path), "waiting": waiting, "refused": refused}
        print_json({**counts, "refusals": refusals, "damaged": damaged})
        return
    click.echo(f"{kept.path}: {waiting} entries wait, {refused} were refused.")
    if damaged:
        rows = [(file.size, "yes" if file.salvaged else "not yet", file.path) for file in damaged]
        show_table(console(), "Damaged files that were put aside", ("bytes", "salvaged", "file"), rows)
    if refusals:
        columns = ("message", "kind", "why it was refused")
        show_table(console(), "Refused, newest first", columns, [tuple(one.values()) for one in refusals])


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count what would be removed.")
@click.option("--despite-skew", is_flag=True, help="Purge by the database's clock also when the clocks disagree.")
@json_option
@click.pass_context
def purge(ctx: click.Context, dry_run: bool, despite_skew: bool, as_json: bool) -> None:
    """Remove the messages whose retention is over, now; beat does the same every night.

    It refuses when the clocks of this computer, the database and Redis disagree by more than a minute.
    """
    app = current_app(ctx)
    retention = Retention(app.database, app.components.witnesses())
    removal = retention.purge(dry_run=dry_run, despite_skew=despite_skew)
    _show_removal(removal, "would remove" if dry_run else "removed", as_json)


@click.command()
@click.option("--agent", help="Of all messages that this agent sent or got.")
@click.option("--containing", metavar="TEXT", help="Of all messages whose payload contains this.")
@click.confirmation_option(prompt="What is erased cannot be brought back. Go on?")
@json_option
@click.pass_context
def erase(ctx: click.Context, agent: str | None, containing: str | None, as_json: bool) -> None:
    """Blank payloads and error texts, and keep the facts and digests."""
    removal = Retention(current_app(ctx).database).erase(agent=agent, containing=containing)
    _show_removal(removal, "blanked", as_json)


@click.group()
def hold() -> None:
    """Legal holds: what they name is neither purged nor erased."""


_kind = click.argument("kind", type=click.Choice([kind.value for kind in HoldKind]))


@hold.command("add")
@_kind
@click.argument("value")
@click.option("--reason", required=True, help="For whoever asks later.")
@click.pass_context
def add(ctx: click.Context, kind: str, value: str, reason: str) -> None:
    """Keep a message, a conversation or an agent's messages."""
    Retention(current_app(ctx).database).hold(HoldKind(kind), value, reason)
    click.echo(f"Held: {kind} {value}.")


@hold.command("release")
@_kind
@click.argument("value")
@click.pass_context
def release(ctx: click.Context, kind: str, value: str) -> None:
    """Release a hold."""
    if not Retention(current_app(ctx).database).release(HoldKind(kind), value):
        raise click.ClickException(f"there is no hold on {kind} {value}")
    click.echo(f"Released: {kind} {value}.")


@hold.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the holds that stand."""
    holds = Retention(current_app(ctx).database).holds()
    if as_json:
        print_json(holds)
        return
    rows = [(each.kind, each.value, f"{each.placed_at:%Y-%m-%d %H:%M}", each.reason) for each in holds]
    show_table(console(), f"Legal holds ({len(rows)})", ("kind", "value", "since (UTC)", "reason"), rows)


def _show(records: list[AuditRecord], title: str, as_json: bool) -> None:
    if as_json:
        print_json(records)
        return
    rows = []
    for record in records:
        receipt = record.receipt
        rows.append(
            (
                f"{receipt.sent_at:%m-%d %H:%M:%S}",
                receipt.from_agent,
                receipt.to_agent,
                receipt.handler,
                receipt.priority.name,
                receipt.status,
                receipt.error or receipt.message_id,
            )
        )
    columns = ("sent (UTC)", "from", "to", "handler", "priority", "status", "id, or why it failed")
    show_table(console(), title, columns, rows)


def _show_removal(removal: Removal, verb: str, as_json: bool) -> None:
    if as_json:
        print_json(removal)
    elif removal.busy:
        click.echo("Another purge is running; nothing was done.")
    else:
        click.echo(f"{removal.rule}: {verb} {removal.messages} messages, {removal.events} events.")


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts) or "none"


def _milliseconds(durations: Durations) -> str:
    values = (durations.p50, durations.p95, durations.p99)
    return " / ".join("-" if value is None else f"{value * 1000:.0f} ms" for value in values)
