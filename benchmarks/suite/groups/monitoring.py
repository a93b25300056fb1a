"""What metrics and traces cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from benchmarks.suite.groups.handling import emptying, purge, worker_command
from benchmarks.suite.groups.sending import make_bus
from benchmarks.suite.row import Context, Group, Row
from benchmarks.suite.slices import Handler, Sender, in_turns
from waooaw_celery.messages.queues import agent_queue

#: The least part of the rate without metrics and traces.
TARGET = 0.97
#: Each kind of monitoring, and what sets it up. A worker has metrics when it has a port.
KINDS: dict[str, dict[str, str]] = {
    "metrics": {"WAOOAW_HEALTH_PORT": "0", "BENCH_METRICS": "1"},
    "traces, none sampled": {"BENCH_TRACES": "none"},
    "traces, all sampled": {"BENCH_TRACES": "all"},
}
#: How many times longer than other subjects each works in a round, and messages that wait for each second of it.
LONGER, PER_SECOND = 5, 4000


def monitoring(context: Context) -> Group:
    """Return the group."""
    rows = []
    for what in ("send", "handle"):
        for name in KINDS:
            target = None if name == "traces, all sampled" else TARGET
            rows.append(Row(f"{what}, {name}", f"{what}, {name}", f"{what}, nothing", target))
    seconds = context.seconds * LONGER
    kinds = {"nothing": {}, **KINDS}
    senders = {f"send, {name}": _sender(context, env) for name, env in kinds.items()}
    handlers = {f"handle, {name}": _handler(context, env, seconds) for name, env in kinds.items()}
    return Group("Monitoring", in_turns(senders, seconds) | in_turns(handlers, seconds), rows)


def _handler(context: Context, env: Mapping[str, str], seconds: float) -> Handler:
    agent = f"monitored-{time.monotonic_ns()}"
    urls = {"CELERY_BROKER_URL": context.redis_url, "WAOOAW_REDIS_URL": context.redis_url, "BENCH_AGENT": agent}
    # The port is a setting of the worker only, and the rest is for its environment.
    bench = {name: value for name, value in env.items() if name != "BENCH_METRICS"}
    bus = make_bus(context, context.redis_url, agent)
    command = worker_command("benchmarks.agent_worker", ["-P", "solo", "-c", "1"])
    worker = emptying(context, bus, agent, command, {**urls, **bench})
    return Handler(worker, round(seconds * PER_SECOND), context.folder / f"{agent}.log")


def _sender(context: Context, env: Mapping[str, str]) -> Sender:
    agent = f"monitored-{time.monotonic_ns()}"
    connection = context.stack.enter_context(make_bus(context, agent=agent).app.connection_for_write())
    return Sender(
        [sys.executable, "-m", "benchmarks.monitored_sender", context.redis_url, agent],
        {name: value for name, value in env.items() if name.startswith("BENCH_")},
        lambda: purge(agent_queue(agent), connection),
    )
