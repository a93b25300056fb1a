"""Workflows of random steps that get signals and commands at random moments: each ends, with the right result."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from support import Broker, pass_time, until
from test_workflow_crashes import app as app
from test_workflow_crashes import broker as broker
from test_workflow_crashes import started
from test_workflow_crashes import workers as workers
from test_workflows import Probe

from waooaw_celery import AgentApp
from waooaw_celery.errors import WorkflowEnded
from waooaw_celery.workflows.states import WorkflowStatus

#: The kinds of steps, and the signals that they wait for.
SIGNALS = {
    "signal": ["first"],
    "two signals": ["first", "second"],
    "sleep": [],
    "request": [],
    "local": [],
    "no step": [],
    "child": [],
    "race": ["first"],
    "many": ["first"],
}
PAUSE, CANCEL = "a pause", "a cancel"


def expected(kind: str, n: int) -> Any:
    """Return the result of a step. The value of each signal is the number of the workflow."""
    results: dict[str, Any] = {
        "signal": n,
        "two signals": [n, n],
        "request": 2 * n,
        "local": n + 1,
        "child": 2 * n,
        "many": [*(2 * each for each in range(12)), n],
    }
    return results.get(kind)


def follow(probe: Probe, n: int, plan: list[str], order: random.Random) -> str:
    """Start a workflow with a plan, send it its signals and some commands in any order, and return its id."""
    id_ = probe.begin("follows_a_plan", n=n, plan=plan)
    signals = [f"{place} {name}" for place, kind in enumerate(plan) for name in SIGNALS[kind]]
    sent = [*signals, *order.choices([PAUSE], k=order.choice([0, 0, 1, 2]))]
    sent += order.choices([CANCEL, ""], [1, 9])
    order.shuffle(sent)
    for signal in filter(None, sent):
        pass_time(order.choice([0.0, 0.001, 0.005, 0.01, 0.03]))
        with suppress(WorkflowEnded):  # it needs no signal any more
            if signal == PAUSE:
                probe.workflows.pause(id_)
                pass_time(order.choice([0.0, 0.002, 0.01, 0.05]))
                probe.workflows.resume(id_)
            elif signal == CANCEL:
                probe.workflows.cancel(id_)
            else:
                probe.workflows.signal(id_, signal, n)
    return id_


@pytest.mark.slow
@pytest.mark.parametrize("idle_seconds", [0.05, 5.0])
def test_workflows_of_random_steps_all_end(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path, idle_seconds: float
) -> None:
    """Two workers with two pools run them. What waits for the end of a lease fails, and names the seed."""
    settings = {"waooaw_workflow_lease_seconds": 300.0, "waooaw_workflow_idle_seconds": idle_seconds}
    probe = Probe(
        broker, app, tmp_path / "effects", "-P", "prefork", "-c", "2", module="workflow_plans_probe", **settings
    )
    started(workers, probe.process)
    more = broker.start(
        probe.name,
        app,
        *("-P", "threads", "-c", "2"),
        node="second",
        module="workflow_plans_probe",
        env={"PROBE_EFFECTS": str(probe.effects_file)},
        waooaw_workflow_poll_seconds=0.2,
        **settings,
    )
    started(workers, more)
    seed = random.SystemRandom().randrange(10**9)
    chosen = random.Random(seed)  # noqa: S311
    plans = [chosen.choices(list(SIGNALS), k=chosen.randint(1, 5)) for _ in range(200)]
    with ThreadPoolExecutor(6) as pool:
        numbers = range(len(plans))
        ids = list(pool.map(lambda n: follow(probe, n, plans[n], random.Random(seed + n)), numbers))  # noqa: S311
    for n, (id_, plan) in enumerate(zip(ids, plans, strict=True)):
        until(lambda id_=id_: probe.workflows.status(id_).final, f"the end of {id_} (seed {seed})", 60)
        if probe.workflows.status(id_) is not WorkflowStatus.CANCELLED:
            assert probe.workflows.result(id_) == [expected(kind, n) for kind in plan], (seed, n, plan)
