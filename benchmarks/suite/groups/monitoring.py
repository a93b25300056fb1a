"""What metrics and traces cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.suite.groups.handling import emptied_by_agent, purge
from benchmarks.suite.groups.sending import make_bus
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from benchmarks.suite.workers import DEADLINE_SECONDS, ROOT
from waooaw_celery.messages.queues import agent_queue

#: The least part of the rate without metrics and traces.
TARGET = 0.97
#: Each kind of monitoring, and what sets it up. A worker has metrics when it has a port.
KINDS: dict[str, dict[str, str]] = {
    "metrics": {"WAOOAW_HEALTH_PORT": "0", "BENCH_METRICS": "1"},
    "traces, none sampled": {"BENCH_TRACES": "none"},
    "traces, all sampled": {"BENCH_TRACES": "all"},
}


def monitoring(context: Context) -> Group:
    """Return the group."""
    options = ["-P", "solo", "-c", "1"]
    subjects: dict[str, Subject] = {}
    rows = []
    for name, env in {"nothing": {}, **KINDS}.items():
        subjects[f"send, {name}"] = _sent(context, env)
        subjects[f"handle, {name}"] = _handled(context, options, env)
    for what in ("send", "handle"):
        for name in KINDS:
            target = None if name == "traces, all sampled" else TARGET
            rows.append(Row(f"{what}, {name}", f"{what}, {name}", f"{what}, nothing", target))
    return Group("Monitoring", subjects, rows)


def _handled(context: Context, options: list[str], env: Mapping[str, str]) -> Subject:
    # The port is a setting of the worker only, and the rest is for its environment.
    bench = {name: value for name, value in env.items() if name != "BENCH_METRICS"}
    return emptied_by_agent(context, context.redis_url, options, bench)


def _sent(context: Context, env: Mapping[str, str]) -> Subject:
    agent = "monitored"
    connection = context.stack.enter_context(make_bus(context, agent=agent).app.connection_for_write())

    def sample() -> Sample:
        command = [sys.executable, "-m", "benchmarks.monitored_sender", context.redis_url, agent]
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, str(context.seconds)],
            env={**os.environ, **{name: value for name, value in env.items() if name.startswith("BENCH_")}},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_SECONDS,
        )
        purge(agent_queue(agent), connection)
        found = json.loads(done.stdout)
        return Sample(found["rate"], found["cpu"])

    return sample
