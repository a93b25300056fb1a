"""The agent of the benchmarks of workflows, and plain Celery's tasks that do the same."""

from __future__ import annotations

import os

from waooaw_celery import Agent, create_app
from waooaw_celery.agents import Flow

app = create_app("workflow_worker")
agent = Agent("flows", app)
ASKED = os.environ.get("BENCH_ASKED", "asked-by-flows")


def act(number: int) -> int:
    """A local step."""
    return number


@agent.workflow
async def local(flow: Flow, steps: int) -> int:
    """Make local steps one after the other."""
    total = 0
    for number in range(steps):
        total += await flow.step(act, number)
    return total


@agent.workflow
async def ask(flow: Flow, count: int) -> int:
    """Make requests one after the other."""
    total = 0
    for number in range(count):
        total += await flow.request(ASKED, "echo", {"value": number})
    return total


@agent.workflow
async def ask_many(flow: Flow, count: int) -> int:
    """Make requests at the same time."""
    return sum(await flow.map(lambda n: flow.request(ASKED, "echo_async", {"value": n}), range(count)))


@agent.workflow
async def sleep(flow: Flow, seconds: float) -> None:
    """Sleep."""
    await flow.sleep(seconds)
