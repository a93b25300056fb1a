"""Whether rates and memory stay as they are when queues, agents and the ledger grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from sqlalchemy.engine import make_url

from benchmarks.ledger_messages import fill
from benchmarks.suite.groups.handling import emptying, ledger, worker_command
from benchmarks.suite.groups.sending import make_bus, message, send_many
from benchmarks.suite.row import Context, Group, Row, Subject
from waooaw_celery import MessageBus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database

SOLO = ["-P", "solo", "-c", "1"]
#: What a rate should be at least, as a multiple of the rate of the small case.
TARGET = 0.9
AGENTS = 200
#: Messages of the small queue. Each has its receipt.
FEW = 1_000
#: The most memory of a worker that has handled ten times as many messages, as a multiple.
MEMORY_TARGET = 1.05


def growth(context: Context) -> Group:
    """Return the group. Its size is ``context.growth``: the messages in the long queue and in the full ledger."""
    many = context.growth
    waiting = f"{many:,} waiting"
    few_bus, few_agent = _prefilled(context, FEW)
    many_bus, many_agent = _prefilled(context, many)
    one, all_ = make_bus(context, agent="only"), _bus_of_many_agents(context)
    empty, full = new_ledger(context, "empty", 0), new_ledger(context, "full", many)
    strict_empty = make_bus(context, agent="strict", waooaw_database_url=empty)
    strict_full = make_bus(context, agent="strict", waooaw_database_url=full)
    rates: dict[str, Callable[[], int]] = {
        "send_many, few waiting": send_many(few_bus, few_agent),
        f"send_many, {waiting}": send_many(many_bus, many_agent),
        "send_many, 1 agent": send_many(one, "only"),
        f"send_many, {AGENTS} agents": _send_to_all(all_),
        "strict, empty ledger": send_many(strict_empty, "strict"),
        "strict, full ledger": send_many(strict_full, "strict"),
    }
    subjects: dict[str, Subject] = {name: context.rate(work) for name, work in rates.items()}
    subjects |= {
        "handle, few waiting": _handle(context, few_bus, few_agent),
        f"handle, {waiting}": _handle(context, many_bus, many_agent),
        "handle strict, empty ledger": _handle_strict(context, empty),
        "handle strict, full ledger": _handle_strict(context, full),
        "memory": _memory(context, context.messages),
        "memory, ten times": _memory(context, context.messages * 10),
    }
    memory = f"memory of a worker after {context.messages * 10:,} messages, against {context.messages:,}"
    return Group(
        "Growth",
        subjects,
        [
            Row(f"send_many, {waiting}", f"send_many, {waiting}", "send_many, few waiting", TARGET),
            Row(f"handle, {waiting}", f"handle, {waiting}", "handle, few waiting", TARGET),
            Row(f"send_many to {AGENTS} agents", f"send_many, {AGENTS} agents", "send_many, 1 agent", TARGET),
            Row(f"send_many, strict ledger of {many:,}", "strict, full ledger", "strict, empty ledger", TARGET),
            Row(
                f"handle, strict ledger of {many:,}",
                "handle strict, full ledger",
                "handle strict, empty ledger",
                TARGET,
            ),
            Row(memory, "memory, ten times", "memory", MEMORY_TARGET, unit="MB", at_most=True),
        ],
    )


def _prefilled(context: Context, count: int) -> tuple[MessageBus, str]:
    """Return a bus, and an agent for which messages wait."""
    agent = f"grown-{count}-{time.monotonic_ns()}"
    bus = make_bus(context, agent=agent)
    while count > 0:
        part = min(count, FEW)
        bus.send_many(message(agent) for _ in range(part))
        count -= part
    return bus, agent


def _bus_of_many_agents(context: Context) -> MessageBus:
    bus = make_bus(context, agent="crowd-0")
    for number in range(AGENTS):
        bus.app.registry.declare(f"crowd-{number}", ["command"], f"crowd-{number}@bench", lifetime=7200)
    return bus


def _send_to_all(bus: MessageBus) -> Callable[[], int]:
    """Send many messages at once, to all agents in turn."""
    return lambda: len(bus.send_many(message(f"crowd-{number % AGENTS}") for number in range(FEW)))


def new_ledger(context: Context, name: str, messages: int) -> str:
    """Return the URL of a new database whose ledger has so many messages."""
    name = f"{name}_{time.monotonic_ns()}"
    with closing(psycopg2.connect(context.database_url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    url = make_url(context.database_url).set(database=name)
    database = Database(url)
    schema.upgrade(database)
    if messages:
        fill(database, messages, datetime.now(UTC))
    database.close()
    return url.render_as_string(hide_password=False)


def _handle(context: Context, bus: MessageBus, agent: str) -> Subject:
    """Handle as many messages as were added; the others stay in the queue."""
    work = emptying(
        context,
        bus,
        agent,
        worker_command("benchmarks.agent_worker", SOLO),
        {"CELERY_BROKER_URL": context.redis_url, "BENCH_AGENT": agent},
    )
    return partial(replace(work, clear=lambda: None).sample, context.messages, _log(context))


def _handle_strict(context: Context, database_url: str) -> Subject:
    agent = f"receiver-{time.monotonic_ns()}"
    env: dict[str, Any] = ledger(replace(context, database_url=database_url), "strict")
    bus = make_bus(context, agent=agent, **{name.lower(): value for name, value in env.items()})
    work = emptying(
        context,
        bus,
        agent,
        worker_command("benchmarks.agent_worker", SOLO),
        {"CELERY_BROKER_URL": context.redis_url, "BENCH_AGENT": agent, **env},
    )
    return partial(work.sample, context.messages, _log(context))


def _memory(context: Context, messages: int) -> Subject:
    agent = f"receiver-{time.monotonic_ns()}"
    work = emptying(
        context,
        make_bus(context, agent=agent),
        agent,
        worker_command("benchmarks.agent_worker", SOLO),
        {"CELERY_BROKER_URL": context.redis_url, "BENCH_AGENT": agent},
    )
    return partial(work.memory, messages, _log(context))


def _log(context: Context) -> Any:
    return context.folder / f"growth-{time.monotonic_ns()}.log"
