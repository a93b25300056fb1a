"""What circuit breakers and limits of open requests cost."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.suite.groups.handling import worker_command
from benchmarks.suite.groups.sending import make_bus
from benchmarks.suite.row import Context, Group, Row
from benchmarks.suite.slices import Sender, in_turns
from benchmarks.suite.workers import DEADLINE_SECONDS, ROOT
from waooaw_celery.testing.embedded import end, spawn

#: The least part of the rate without it.
TARGET = 0.9
NOTHING = {"WAOOAW_BREAKER_FAILURES": "0"}
#: What protects requests, each by itself.
KINDS: dict[str, dict[str, str]] = {
    "circuit breakers": {},
    "limit of open requests": NOTHING | {"WAOOAW_MAX_IN_FLIGHT": "*=50"},
}
#: How many times longer than other subjects each works in a round.
LONGER = 5


def resilience(context: Context) -> Group:
    """Return the group: all callers request the same worker, one after the other."""
    agent = f"protected-{time.monotonic_ns()}"
    urls = {"CELERY_BROKER_URL": context.redis_url, "WAOOAW_REDIS_URL": context.redis_url, "BENCH_AGENT": agent}
    urls |= {"CELERY_RESULT_BACKEND": context.redis_url}
    log = context.folder / f"{agent}.log"
    command = worker_command("benchmarks.agent_worker", ["-P", "solo", "-c", "1"])
    worker = spawn(command, log=log, env={**os.environ, **urls}, cwd=ROOT)
    context.stack.callback(end, worker)
    registry, ends_at = make_bus(context).app.registry, time.monotonic() + DEADLINE_SECONDS
    while agent not in {record.name for record in registry.all()}:
        if time.monotonic() > ends_at or worker.poll() is not None:
            raise SystemExit(f"the worker did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    caller = [sys.executable, "-m", "benchmarks.requester", context.redis_url, agent]
    kinds = {"nothing": NOTHING, **KINDS}
    callers = {f"request, {name}": Sender(caller, env, lambda: None) for name, env in kinds.items()}
    rows = [Row(f"request, {name}", f"request, {name}", "request, nothing", TARGET) for name in KINDS]
    return Group("Resilience", in_turns(callers, context.seconds * LONGER), rows)
