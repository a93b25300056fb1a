"""`breakers`: the circuit breakers of agents: which are open, and opening and closing them by hand."""

from __future__ import annotations

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.base.exit_codes import CommandError
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.output import echo, json_option, print_json, report, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.cli.output.times import time_text
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.store.resilience.breaker_store import Breaker


@click.group(
    invoke_without_command=True,
    cls=CommandGroup,
    examples=["waooaw breakers", "waooaw breakers open greeter --for 600"],
)
@table_options
@click.pass_context
def breakers(ctx: click.Context, as_json: bool) -> None:
    """List the circuit breakers of agents that are open or count failures. Open and close them by hand."""
    if ctx.invoked_subcommand is not None:
        return
    app = _app(ctx)
    found = app.breakers.states()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.agent,
            each.state,
            f"{each.failures} of {each.requests}" if each.requests else None,
            each.since,
            _next(each),
            each.by,
            each.reason,
        )
        for each in found
    ]
    columns = ("agent", "breaker", "failed requests", "open since", "next", "opened by", "reason")
    show_table(f"Circuit breakers ({len(rows)}); all others are closed, without a failure", columns, rows)


@breakers.command("open", examples=["waooaw breakers open greeter --for 600 --reason 'its model is down'"])
@click.argument("agent", type=AGENT)
@click.option(
    "--for", "seconds", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), help="Close it after this."
)
@click.option("--reason", metavar="TEXT", help="The reason, for the error that callers get.")
@by_option
@json_option
@click.pass_context
def open_(
    ctx: click.Context, agent: str, seconds: float | None, reason: str | None, by: str | None, as_json: bool
) -> None:
    """Refuse every request to AGENT, in all processes, within a second. Messages still go to its queue.

    No probe is sent. It stays open until `waooaw breakers close AGENT`, or for SECONDS.
    """
    app = _app(ctx)
    _check_known(app, agent)
    who = requester(app, by)
    app.breakers.open_by_hand(agent, by=who, reason=reason, seconds=seconds)
    ends = f"It closes after {seconds:g} s" if seconds is not None else "It stays open"
    report(
        f"Requests to {agent} are refused. {ends}; `waooaw breakers close {agent}` closes it.",
        {"agent": agent, "by": who, "reason": reason, "seconds": seconds},
        as_json,
    )


@breakers.command(examples=["waooaw breakers close greeter"])
@click.argument("agent", type=AGENT)
@json_option
@click.pass_context
def close(ctx: click.Context, agent: str, as_json: bool) -> None:
    """Let requests to AGENT through again, in all processes, within a second."""
    app = _app(ctx)
    if not app.breakers.close_by_hand(agent):
        _check_known(app, agent)
        sentence = f"the circuit breaker of {agent} is closed: `waooaw breakers` lists the open ones"
        raise CommandError(sentence)
    report(f"Requests to {agent} are let through.", {"agent": agent}, as_json)


def _app(ctx: click.Context) -> AgentApp:
    """Return the application, and warn if its settings make this command useless."""
    app = current_app(ctx)
    if not app.settings.breaker_failures:
        echo("This process has no circuit breakers: waooaw_breaker_failures is 0.", err=True)
    return app


def _check_known(app: AgentApp, agent: str) -> None:
    """Check that an agent is known.

    Raises:
        UnknownAgent: it is not.
    """
    if agent not in {record.name for record in app.registry.everywhere()}:
        raise UnknownAgent(f"the agent {agent!r} is not known: `waooaw agents` lists the known ones")


def _next(breaker: Breaker) -> str | None:
    if breaker.by is not None:
        return "stays open" if breaker.until is None else f"closes at {time_text(breaker.until)}"
    if breaker.probing:
        return "its probe is on its way"
    return None if breaker.retry_at is None else f"a probe from {time_text(breaker.retry_at)}"
