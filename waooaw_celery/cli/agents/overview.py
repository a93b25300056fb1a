"""`agents`: the known agents, and how many messages wait for each."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import click

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.waiting import queue_depths
from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import ago, echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.discovery.agent_info import info_of
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.queues import QueueDepth, agent_queue
from waooaw_celery.messages.wording import ledger_name
from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.agents.worker_handlers import partial_handlers
from waooaw_celery.store.resilience.breaker_rules import BreakerState
from waooaw_celery.store.resilience.breaker_store import Breaker
from waooaw_celery.worker.health.heartbeat import MAX_MISSED_HEARTBEATS
from waooaw_celery.worker.scaling.pool_scaling import pool_size


@click.command(cls=Command, examples=["waooaw agents", "waooaw agents --json"])
@table_options
@click.pass_context
def agents(ctx: click.Context, as_json: bool) -> None:
    """List the known agents: state, health, version, messages, last heartbeat, ledger, capabilities and handlers.

    A handler that only some of an agent's workers have is shown with their number: two versions of the agent run.
    """
    app = current_app(ctx)
    records = app.registry.everywhere()
    depths = queue_depths(app, [agent_queue(record.name) for record in records], read=False)
    known = {info.name: info for info in Registry(app).list()}
    infos = [known.get(record.name) or info_of(record, {}) for record in records]
    breakers = {each.agent: each for each in app.breakers.states()}
    in_flight = _in_flight(app)
    within = timedelta(seconds=app.settings.heartbeat_seconds * MAX_MISSED_HEARTBEATS)
    if as_json:
        print_json(
            [
                {
                    "agent": record,
                    "alive": record.alive(within),
                    "state": record.state(within),
                    "queue": depth,
                    "pool_size": _pool_size(record),
                    "ledgers": record.ledgers,
                    "info": info,
                    "in_flight": in_flight.get(record.name, 0),
                    "breaker": breakers.get(record.name),
                }
                for record, depth, info in zip(records, depths, infos, strict=True)
            ]
        )
        return
    rows = [
        (
            record.name,
            record.state(within),
            info.status,
            info.health,
            ", ".join(info.versions),
            len(record.workers),
            _pool_size(record),
            ago(record.last_seen, record.read_at),
            ", ".join(sorted({ledger_name(ledger) for ledger in record.ledgers.values()})),
            _waiting(depth),
            info.running,
            in_flight.get(record.name, 0),
            _breaker(breakers.get(record.name)),
            ", ".join(map(str, info.capabilities)),
            _handlers(record),
        )
        for record, depth, info in zip(records, depths, infos, strict=True)
    ]
    columns = (
        *(
            "agent",
            "state",
            "status",
            "health",
            "version",
            "workers",
            "at once",
            "seen",
            "writes to",
            "waiting",
            "running",
            "in flight",
            "breaker",
        ),
        *("capabilities", "handlers"),
    )
    show_table(f"Agents ({len(rows)})", columns, rows)
    ledgers = {ledger for record in records for ledger in record.ledgers.values()} | {app.ledger_id}
    if len(ledgers) > 1:
        names = ", ".join(sorted(map(ledger_name, ledgers)))
        echo(
            f"Warning: the workers and this process write to different places ({names}): "
            "set the same waooaw_database_url for all of them. `waooaw doctor` shows which writes where",
            err=True,
        )


def _in_flight(app: AgentApp) -> Counter[str]:
    """Return the open requests to each agent that has a limit (``waooaw_max_in_flight``)."""
    counts: Counter[str] = Counter()
    for pair, count in app.in_flight.counts().items():
        counts[pair.target] += count
    return counts


def _breaker(breaker: Breaker | None) -> str:
    """Return the state of an agent's circuit breaker, and who opened it by hand."""
    if breaker is None:
        return BreakerState.CLOSED
    return breaker.state if breaker.by is None else f"{breaker.state} by {breaker.by}"


def _pool_size(record: AgentRecord) -> int:
    """Return how many messages the living workers of an agent handle at once, as far as they report it."""
    return sum(pool_size(report) or 0 for report in record.reports.values())


def _handlers(record: AgentRecord) -> str:
    """Return the names of an agent's handlers, and how many workers have those that not all have."""
    if record.handlers is None:
        return "unknown"
    partial, workers = partial_handlers(record.worker_handlers), len(record.worker_handlers)
    return ", ".join(
        f"{name} ({len(partial[name])} of {workers} workers)" if name in partial else name
        for name in record.handlers
    )


def _waiting(depth: QueueDepth) -> str:
    """Return how many messages wait and, unless all are NORMAL, their priorities."""
    by_priority = {each: count for each, count in (depth.by_priority or {}).items() if count}
    if set(by_priority) <= {Priority.NORMAL}:
        return str(depth.total)
    counts = ", ".join(f"{count} {priority.name}" for priority, count in by_priority.items())
    return f"{depth.total}: {counts}"
