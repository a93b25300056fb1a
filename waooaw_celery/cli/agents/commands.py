"""`agent`, `find`, `drain`, `resume`, `maintenance` and `traffic`: what agents can do, and how they are."""

from __future__ import annotations

import json
import time

import click

from waooaw_celery.cli.base.command import Command, CommandGroup
from waooaw_celery.cli.base.exit_codes import CommandError
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import by_option, current_app, requester
from waooaw_celery.cli.output import ago, echo, json_option, print_json, report, table_options
from waooaw_celery.cli.output.table import show_facts, show_table
from waooaw_celery.discovery.agent_info import AgentStatus
from waooaw_celery.discovery.registry import Registry

#: Seconds between two looks whether an agent has stopped.
LOOK_SECONDS = 0.5


@click.group(cls=CommandGroup)
def agent() -> None:
    """Show one agent."""


@agent.command(examples=["waooaw agent show greeter"])
@click.argument("name", type=AGENT)
@table_options
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what is known about the agent NAME: status, health, capabilities, methods and workers."""
    app = current_app(ctx)
    info = Registry(app).get(name)
    if as_json:
        print_json(info)
        return
    show_facts(
        info.name,
        [
            ("status", info.status),
            ("health", info.health),
            ("reasons", "; ".join(info.reasons) or None),
            ("version", ", ".join(info.versions) or None),
            ("capabilities", ", ".join(map(str, info.capabilities)) or None),
            ("tags", ", ".join(info.tags) or None),
            ("metadata", json.dumps(info.metadata, default=str) if info.metadata else None),
            ("weight", info.weight),
            ("max in flight", info.max_in_flight),
            ("running", info.running),
            ("last seen", ago(info.last_seen)),
            ("handlers", ", ".join(info.handlers or ()) or None),
        ],
    )
    rows = [
        (
            each.node,
            each.health,
            each.facts.running if each.facts else None,
            ago(each.last_heartbeat, app.reference_clock.now()),
            None if each.facts is None else f"{each.facts.handled}, {each.facts.failed} failed",
            _durations(each.facts.seconds if each.facts else None),
            "; ".join(each.reasons),
        )
        for each in info.workers
    ]
    columns = ("worker", "health", "running", "heartbeat", "last minute", "median, p95", "reasons")
    show_table(f"Workers ({len(rows)})", columns, rows)
    changes = [
        (change.at, each.node, change.health, "; ".join(change.reasons))
        for each in info.workers
        for change in (each.facts.history if each.facts else ())
    ]
    show_table("Changes of health", ("at", "worker", "health", "reasons"), sorted(changes))


@click.command(cls=Command, examples=["waooaw find summarise --version '>=2' --healthy"])
@click.argument("capability")
@click.option("--version", metavar="CONDITION", help="Condition on its version, such as '>=2' or '2'.")
@click.option(
    "--tag", "tags", metavar="TAG", multiple=True, help="A tag that the agent has; repeat it for several."
)
@click.option("--healthy", is_flag=True, help="Only agents with the health healthy.")
@table_options
@click.pass_context
def find(
    ctx: click.Context, capability: str, version: str | None, tags: tuple[str, ...], healthy: bool, as_json: bool
) -> None:
    """List the agents with CAPABILITY, and whether they get messages to it."""
    registry = Registry(current_app(ctx))
    found = registry.find(capability=capability, version=version, tags=tags, healthy=healthy or None)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            info.name,
            ", ".join(str(each) for each in info.capabilities if each.name == capability),
            info.status,
            info.health,
            "yes" if info.routable else "no",
            ", ".join(info.tags),
            "; ".join(info.reasons),
        )
        for info in found
    ]
    columns = ("agent", "capability", "status", "health", "gets messages", "tags", "reasons")
    show_table(f"Agents with {capability} ({len(rows)})", columns, rows)


@click.command(cls=Command, examples=["waooaw drain greeter --wait 60 --reason 'new version'"])
@click.argument("name", metavar="AGENT", type=AGENT)
@click.option("--reason", help="Why, for the record.")
@click.option("--wait", type=float, default=0.0, help="Seconds to wait until its workers have stopped.")
@by_option
@json_option
@click.pass_context
def drain(ctx: click.Context, name: str, reason: str | None, wait: float, by: str | None, as_json: bool) -> None:
    """Let the present workers of AGENT end what they have, take nothing new, and stop."""
    app = current_app(ctx)
    registry = Registry(app)
    info = registry.set_status(name, AgentStatus.DRAINING, by=requester(app, by), reason=reason)
    nodes = {each.node for each in info.workers}
    facts = {"agent": name, "workers": sorted(nodes)}
    if not as_json:
        echo(f"{name}: its workers ({len(nodes)}) take nothing new, and stop when they have ended what they have.")
    ends_at = time.monotonic() + wait
    while wait and time.monotonic() < ends_at:
        left = nodes & {each.node for each in registry.get(name).workers if each.draining}
        if not left:
            report(f"{name}: all of them have stopped.", {**facts, "stopped": True}, as_json)
            return
        time.sleep(LOOK_SECONDS)
    if as_json:
        print_json({**facts, "stopped": False if wait else None})
    if wait:
        raise CommandError(f"{name}: workers still run after {wait:g} s: {', '.join(sorted(nodes))}")


@click.command(cls=Command, examples=["waooaw resume greeter"])
@click.argument("name", metavar="AGENT", type=AGENT)
@json_option
@click.pass_context
def resume(ctx: click.Context, name: str, as_json: bool) -> None:
    """Let AGENT get messages again, after `drain` or `maintenance`."""
    info = Registry(current_app(ctx)).set_status(name, AgentStatus.ONLINE)
    report(f"{name} is {info.status}.", {"agent": name, "status": info.status}, as_json)


@click.command(cls=Command, examples=["waooaw maintenance greeter --reason 'new model'"])
@click.argument("name", metavar="AGENT", type=AGENT)
@click.option("--reason", help="Why, for the record.")
@by_option
@json_option
@click.pass_context
def maintenance(ctx: click.Context, name: str, reason: str | None, by: str | None, as_json: bool) -> None:
    """Give AGENT no message by capability until `resume`. Messages to its name still reach it."""
    app = current_app(ctx)
    info = Registry(app).set_status(name, AgentStatus.MAINTENANCE, by=requester(app, by), reason=reason)
    report(f"{name} is {info.status}.", {"agent": name, "status": info.status}, as_json)


@click.command(
    cls=Command, examples=["waooaw traffic writer-blue=1 writer-green=9", "waooaw traffic writer-green=declared"]
)
@click.argument("weights", metavar="AGENT=WEIGHT...", nargs=-1, required=True)
@json_option
@click.pass_context
def traffic(ctx: click.Context, weights: tuple[str, ...], as_json: bool) -> None:
    """Set the weights by which agents with one capability share its messages, such as blue=1 green=9.

    The policies weighted and sticky choose by them. With 0, an agent gets none of them by any policy.
    AGENT=declared returns to the weight in its code.
    """
    wanted: dict[str, float | None] = {}
    for each in weights:
        name, _, weight = each.partition("=")
        try:
            wanted[name] = None if weight == "declared" else float(weight)
        except ValueError:
            raise click.BadParameter(f"{each!r} is not AGENT=WEIGHT, such as writer-blue=0.1") from None
    found = Registry(current_app(ctx)).set_weights(wanted)
    if as_json:
        print_json({info.name: info.weight for info in found})
        return
    for info in found:
        echo(f"{info.name} has the weight {info.weight:g}.")


def _durations(seconds: tuple[float, float] | None) -> str | None:
    return None if seconds is None else f"{seconds[0]:.3g} s, {seconds[1]:.3g} s"
