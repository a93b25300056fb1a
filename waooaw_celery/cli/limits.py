"""`limits`: show, set and reset rate limits, list refused messages, pause and resume senders."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.base.exit_codes import CommandError
from waooaw_celery.cli.base.parameters import AGENT, TimeParam
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.output import echo, json_option, print_json, report, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.cli.output.times import time_text
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.limits.storage import RuleStatus
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.settings import RateLimitStorage
from waooaw_celery.store.restrictions import Pause


@click.group(cls=CommandGroup)
def limits() -> None:
    """Manage rate limits: what agents may send, and what they have sent. Pause senders."""


@limits.command(examples=["waooaw limits show", "waooaw limits show greeter"])
@click.argument("agent", type=AGENT, required=False)
@table_options
@click.pass_context
def show(ctx: click.Context, agent: str | None, as_json: bool) -> None:
    """Show all quotas, or how much of its quota AGENT has used. This does not count as a message."""
    app = _app(ctx)
    if agent is not None:
        for each in app.restrictions.pauses():
            if each.agent == agent:
                echo(f"{agent} is paused: {_described(each)}.", err=True)
        _show_statuses(f"{agent}: {app.limiter.quota(agent)}", app.limiter.status(agent), as_json)
        return
    quotas = app.limiter.quotas()
    if as_json:
        print_json({name: {"quota": str(quota), "from": source} for name, (quota, source) in quotas.items()})
        return
    rows = [(name, source, str(quota)) for name, (quota, source) in quotas.items()]
    show_table("Quotas (* applies to agents without their own)", ("agent", "from", "quota"), rows)


@limits.command(
    "set",
    examples=["waooaw limits set greeter '10/second; 100/hour burst 20'", "waooaw limits set greeter --default"],
)
@click.argument("agent", type=AGENT)
@click.argument("quota", required=False)
@click.option(
    "--default", "use_configured", is_flag=True, help="Remove the quota, so that the configured one applies."
)
@json_option
@click.pass_context
def set_(ctx: click.Context, agent: str, quota: str | None, use_configured: bool, as_json: bool) -> None:
    """Set the quota of AGENT for all processes, within a second, also for those without a rate limit.

    A QUOTA is, for example, "10/second; 100/hour burst 20; 5/minute to boss; 20/hour of query" or "unlimited".
    """
    if (quota is None) != use_configured:
        raise click.UsageError("give a QUOTA, or --default")
    app = _app(ctx)
    found = app.limiter.set_quota(agent, quota)
    report(f"{agent}: {found}", {"agent": agent, "quota": str(found)}, as_json)


@limits.command(examples=["waooaw limits reset greeter"])
@click.argument("agent", type=AGENT)
@json_option
@click.pass_context
def reset(ctx: click.Context, agent: str, as_json: bool) -> None:
    """Reset the count of what AGENT has sent, so that it may send at once. Its quota stays."""
    _app(ctx).limiter.reset(agent)
    report(f"{agent} may send again.", {"agent": agent}, as_json)


@limits.command(examples=["waooaw limits pause greeter --because 'it sends in a circle'"])
@click.argument("sender", type=AGENT)
@click.option("--because", "reason", metavar="TEXT", help="The reason, for the error that the sender gets.")
@by_option
@json_option
@click.pass_context
def pause(ctx: click.Context, sender: str, reason: str | None, by: str | None, as_json: bool) -> None:
    """Refuse every send of SENDER, in all processes, within a second.

    What was accepted before is still delivered: what waits in queues, answers, retries. Each refused send gets an
    error that says who paused the sender, since when and why.
    """
    app = current_app(ctx)
    who = requester(app, by)
    app.restrictions.pause(sender, by=who, reason=reason)
    report(
        f"{sender} may not send. `waooaw limits resume {sender}` lets it send again.",
        {"agent": sender, "by": who, "reason": reason},
        as_json,
    )


@limits.command(examples=["waooaw limits resume greeter"])
@click.argument("sender", type=AGENT)
@json_option
@click.pass_context
def resume(ctx: click.Context, sender: str, as_json: bool) -> None:
    """Let a paused SENDER send again, in all processes, within a second."""
    if not current_app(ctx).restrictions.resume(sender):
        sentence = f"{sender} is not paused: `waooaw limits paused` lists the paused senders"
        raise CommandError(escaped(sentence))
    report(f"{sender} may send again.", {"agent": sender}, as_json)


@limits.command(examples=["waooaw limits paused"])
@table_options
@click.pass_context
def paused(ctx: click.Context, as_json: bool) -> None:
    """List the paused senders."""
    found = current_app(ctx).restrictions.pauses()
    if as_json:
        print_json(found)
        return
    rows = [(each.agent, each.by, each.since, each.reason) for each in found]
    show_table(f"Paused senders ({len(rows)})", ("sender", "paused by", "since", "reason"), rows)


@limits.command(examples=["waooaw limits near --share 0.5"])
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Show limits of which at least this share is used.",
)
@table_options
@click.pass_context
def near(ctx: click.Context, share: float, as_json: bool) -> None:
    """List the agents that are near a limit, nearest first."""
    _show_statuses("Near the limit", _app(ctx).limiter.near(share), as_json)


@limits.command(examples=["waooaw limits refused greeter --since 2h"])
@click.argument("agent", type=AGENT, required=False)
@click.option("--since", type=TimeParam(), help="Refused in the minute of this time or later.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@table_options
@click.pass_context
def refused(ctx: click.Context, agent: str | None, since: datetime | None, limit: int, as_json: bool) -> None:
    """Count the refused messages of AGENT, or of all agents, by minute, newest first. Needs a ledger."""
    found = MessageAuditTrail(current_app(ctx).ledger).refusals(agent, since=since, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(one.minute, one.agent, one.count, one.rule) for one in found]
    show_table("Refused by rate limits, newest first", ("minute", "sender", "messages", "rule"), rows)


def _app(ctx: click.Context) -> AgentApp:
    """Return the application, and warn if its settings make this command useless."""
    app = current_app(ctx)
    if app.settings.rate_limit_storage is RateLimitStorage.MEMORY:
        echo(
            "Each process counts in its own memory (waooaw_rate_limit_storage): this process has counted nothing, "
            "and a quota that is set here applies to no other process. Set waooaw_rate_limits in each of them "
            "instead, or waooaw_rate_limit_storage = 'redis'.",
            err=True,
        )
    return app


def _described(pause: Pause) -> str:
    because = f", because {pause.reason}" if pause.reason else ""
    return f"by {pause.by}, since {time_text(pause.since)}{because}"


def _show_statuses(title: str, statuses: Sequence[RuleStatus], as_json: bool) -> None:
    if as_json:
        print_json(statuses)
        return
    rows = [
        (
            one.agent,
            one.used,
            one.limit,
            one.remaining,
            f"in {one.retry_after:.3f} s" if one.retry_after else "now",
            one.rule,
        )
        for one in statuses
    ]
    columns = ("agent", "used", "limit", "left", "next allowed", "rule")
    show_table(title, columns, rows)
