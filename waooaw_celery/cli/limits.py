"""`limits show`, `set`, `reset`, `near` and `refused`: rate limits from the shell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.ledger import MomentParam
from waooaw_celery.cli.output import console, json_option, print_json, show_table
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.limits.storage import RuleStatus
from waooaw_celery.settings import RateLimitStorage


@click.group()
def limits() -> None:
    """Rate limits: what agents may send, and what they have sent."""


@limits.command()
@click.argument("agent", required=False)
@json_option
@click.pass_context
def show(ctx: click.Context, agent: str | None, as_json: bool) -> None:
    """Show all quotas, or what AGENT has used of its own. That counts nothing."""
    app = _app(ctx)
    if agent is not None:
        _show_statuses(f"{agent}: {app.limiter.quota(agent)}", app.limiter.status(agent), as_json)
        return
    quotas = app.limiter.quotas()
    if as_json:
        print_json({name: {"quota": str(quota), "from": whence} for name, (quota, whence) in quotas.items()})
        return
    rows = [(name, whence, str(quota)) for name, (quota, whence) in quotas.items()]
    show_table(console(), "Quotas; * is whoever has none of its own", ("agent", "from", "quota"), rows)


@limits.command("set")
@click.argument("agent")
@click.argument("quota", required=False)
@click.option("--default", "as_configured", is_flag=True, help="As it is configured, instead of a QUOTA.")
@click.pass_context
def set_(ctx: click.Context, agent: str, quota: str | None, as_configured: bool) -> None:
    """Set what AGENT may send, for all processes at once.

    QUOTA is such as "10/second; 100/hour burst 20; 5/minute to boss; 20/hour of query", or "unlimited".
    """
    if (quota is None) != as_configured:
        raise click.UsageError("give a QUOTA, or --default")
    app = _app(ctx)
    click.echo(f"{agent}: {app.limiter.set_quota(agent, quota)}")


@limits.command()
@click.argument("agent")
@click.pass_context
def reset(ctx: click.Context, agent: str) -> None:
    """Forget what AGENT has sent, so that it may send at once. Its quota stays."""
    _app(ctx).limiter.reset(agent)
    click.echo(f"{agent} may send again.")


@limits.command()
@click.option(
    "--share", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Used at least so much."
)
@json_option
@click.pass_context
def near(ctx: click.Context, share: float, as_json: bool) -> None:
    """List who is near a limit, the nearest first."""
    _show_statuses("Near the limit", _app(ctx).limiter.near(share), as_json)


@limits.command()
@click.argument("agent", required=False)
@click.option("--since", type=MomentParam(), help="In the minute of this moment or later.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
@click.pass_context
def refused(ctx: click.Context, agent: str | None, since: datetime | None, limit: int, as_json: bool) -> None:
    """List what was refused, of AGENT or of all, by minute, newest first. Only a ledger keeps that."""
    found = MessageAuditTrail(current_app(ctx).ledger).refusals(agent, since=since, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(f"{one.minute:%Y-%m-%d %H:%M}", one.agent, one.count, one.rule) for one in found]
    show_table(
        console(), "Refused by rate limits, newest first", ("minute (UTC)", "agent", "messages", "rule"), rows
    )


def _app(ctx: click.Context) -> AgentApp:
    """Return the application, and warn when what is set here would concern nobody."""
    app = current_app(ctx)
    if app.settings.rate_limit_storage is RateLimitStorage.MEMORY:
        click.echo("Each process counts in its own memory (waooaw_rate_limit_storage): this one is new.", err=True)
    elif app.admission_control is None:
        click.echo(
            "Processes with these settings count nothing: set waooaw_rate_limit (or WAOOAW_RATE_LIMIT), "
            "such as unlimited, for all of them.",
            err=True,
        )
    return app


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
            f"{one.retry_after:.3f} s" if one.retry_after else "now",
            one.rule,
        )
        for one in statuses
    ]
    columns = ("agent", "used", "limit", "left", "next", "rule")
    show_table(console(), title, columns, rows)
