"""`agents` and `queues`: the known agents, and how many messages wait in each queue."""

from __future__ import annotations

from datetime import timedelta

import click
from kombu.exceptions import OperationalError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import ago, console, json_option, print_json, show_table
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import QueueDepth, agent_queue, queue_depth, system_queue
from waooaw_celery.worker.health.heartbeat import MAX_MISSED_HEARTBEATS


@click.command()
@json_option
@click.pass_context
def agents(ctx: click.Context, as_json: bool) -> None:
    """List the known agents: state, last heartbeat, waiting messages by priority, handlers."""
    app = current_app(ctx)
    records = app.registry.all()
    depths = _depths(app, [record.name for record in records])
    within = timedelta(seconds=app.settings.heartbeat_seconds * MAX_MISSED_HEARTBEATS)
    if as_json:
        print_json(
            [
                {"agent": record, "alive": record.alive(within), "state": record.state(within), "queue": depth}
                for record, depth in zip(records, depths, strict=True)
            ]
        )
        return
    rows = [
        (
            record.name,
            record.state(within),
            len(record.workers),
            ago(record.last_seen, record.read_at),
            "/".join(str(count) for count in _counts(depth)[:-1]) if depth.by_priority else str(depth.total),
            ", ".join(record.capabilities),
            ", ".join(record.handlers) if record.handlers is not None else "unknown",
        )
        for record, depth in zip(records, depths, strict=True)
    ]
    columns = ("agent", "state", "workers", "seen", "U/H/N/L waiting", "capabilities", "handlers")
    show_table(console(), f"Agents ({len(rows)})", columns, rows)


@click.command()
@json_option
@click.pass_context
def queues(ctx: click.Context, as_json: bool) -> None:
    """List the queues and how many messages wait in each, by priority if the broker counts them so."""
    app = current_app(ctx)
    depths = _depths(app, [record.name for record in app.registry.all()], system=True)
    if as_json:
        print_json(depths)
        return
    rows = [(depth.queue, *_counts(depth)) for depth in depths]
    show_table(console(), "Waiting messages", ("queue", *_COUNTS), rows)


_COUNTS = (*(priority.name.lower() for priority in Priority), "all")


def _depths(app: AgentApp, names: list[str], system: bool = False) -> list[QueueDepth]:
    queues = [agent_queue(name) for name in names] + ([system_queue()] if system else [])
    try:
        with app.connection_for_write() as connection:  # it has timeouts
            return [queue_depth(connection, queue) for queue in queues]
    except (OperationalError, OSError) as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}") from error


def _counts(depth: QueueDepth) -> tuple[object, ...]:
    by_priority = depth.by_priority
    return (*(("?" if by_priority is None else by_priority[priority]) for priority in Priority), depth.total)
