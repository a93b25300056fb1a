"""What it costs to group a queue's messages by sender and by key, and to limit what waits in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import delete

from benchmarks.suite.groups.handling import emptying, ledger, purge, worker_command
from benchmarks.suite.groups.sending import make_bus
from benchmarks.suite.row import Context, Group, Row
from benchmarks.suite.slices import Handler, Sender, Sliced, in_turns
from waooaw_celery.ledger.database.models import OpenMessageRow
from waooaw_celery.messages.queues import agent_queue

#: The least part of the rate without it.
TARGET = 0.9
#: How many times longer than other subjects each works in a round, and messages that wait for each second of it.
LONGER, PER_SECOND = 5, 4000
#: Messages that wait on RabbitMQ, where each one is recorded in the ledger.
PER_SECOND_ON_RABBITMQ = 1000
BY_KEY = {"BENCH_KEY": "conversation_id"}
FAIR = {"WAOOAW_FAIR_QUEUES": "1"}


def ordering(context: Context) -> Group:
    """Return the group. Each message has a key of its own: this is the most work."""
    seconds = context.seconds * LONGER
    kinds: dict[str, dict[str, str]] = {
        "plain queue": {},
        "fair queue": FAIR,
        "in order by key": BY_KEY,
        "fair and by key": FAIR | BY_KEY,
    }
    on_redis: dict[str, Sliced] = {
        name: _handler(context, context.redis_url, env, round(seconds * PER_SECOND)) for name, env in kinds.items()
    }
    limits: dict[str, dict[str, str]] = {
        "send": {},
        "send, max_waiting": {"WAOOAW_MAX_WAITING": "1000000"},
        "send, max_waiting_per_sender": {"WAOOAW_MAX_WAITING_PER_SENDER": "1000000"},
    }
    senders: dict[str, Sliced] = {name: _sender(context, env) for name, env in limits.items()}
    rows = [Row(f"handle, solo, {name}", name, "plain queue", TARGET) for name in kinds if name != "plain queue"]
    rows += [Row(name, name, "send", TARGET) for name in limits if name != "send"]
    subjects = in_turns(on_redis, seconds) | in_turns(senders, seconds)
    if context.amqp_url is not None:
        strict = ledger(context, "strict")
        plain, keyed = "RabbitMQ, ledger strict", "RabbitMQ, ledger strict, in order by key"
        on_rabbitmq: dict[str, Sliced] = {
            name: _handler(context, context.amqp_url, env, round(seconds * PER_SECOND_ON_RABBITMQ))
            for name, env in ((plain, strict), (keyed, strict | BY_KEY))
        }
        subjects |= in_turns(on_rabbitmq, seconds)
        rows.append(Row(f"handle, solo, {keyed}", keyed, plain))
    return Group("Order and fairness", subjects, rows)


def _handler(context: Context, url: str, env: Mapping[str, str], messages: int) -> Handler:
    agent = f"ordered-{time.monotonic_ns()}"
    urls = {"CELERY_BROKER_URL": url, "WAOOAW_REDIS_URL": context.redis_url, "BENCH_AGENT": agent}
    database_url = env.get("WAOOAW_DATABASE_URL")
    settings: dict[str, Any] = {"waooaw_database_url": database_url} if database_url else {}
    bus = make_bus(context, url, agent, **settings)
    command = worker_command("benchmarks.agent_worker", ["-P", "solo", "-c", "1"])
    queue = emptying(context, bus, agent, command, {**urls, **env})

    def clear() -> None:
        queue.clear()
        if database_url:  # the ledger would look for the keys of what has gone
            with bus.app.database.begin("forget messages") as connection:
                connection.execute(delete(OpenMessageRow).where(OpenMessageRow.to_agent == agent))

    return Handler(replace(queue, clear=clear), messages, context.folder / f"{agent}.log")


def _sender(context: Context, env: Mapping[str, str]) -> Sender:
    agent = f"limited-{time.monotonic_ns()}"
    connection = context.stack.enter_context(make_bus(context, agent=agent).app.connection_for_write())
    return Sender(
        [sys.executable, "-m", "benchmarks.monitored_sender", context.redis_url, agent],
        env,
        lambda: purge(agent_queue(agent), connection),
    )
