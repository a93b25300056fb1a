"""The steps of a plain function that does not go on: its thread may be late, and must make none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from waooaw_celery.workflows.blocking_flow import BlockingFlow
from waooaw_celery.workflows.engine.flow_control import WorkflowStopped


class Steps:
    """The steps of a workflow, counted."""

    workflow_id, agent, deadline = "w", "agent", None

    def __init__(self) -> None:
        self.made = 0

    async def step(self, function: Any) -> None:
        self.made += 1
        await asyncio.sleep(0)

    def busy(self) -> None:
        """Do nothing."""

    def idle(self) -> None:
        """Do nothing."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread, which interrupts this one as often as it can."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield loop
    sys.setswitchinterval(interval)
    asyncio.run_coroutine_threadsafe(end_of_all_others(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def end_of_all_others() -> None:
    """Wait for the tasks of the event loop."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*others, return_exceptions=True)


def test_a_function_that_was_stopped_makes_no_step(loop: asyncio.AbstractEventLoop) -> None:
    """Not even if the event loop is quicker than its thread."""
    steps = Steps()
    flow = BlockingFlow(steps, loop)  # type: ignore[arg-type]
    flow.step(print)
    assert steps.made == 1
    flow.stop()
    for _ in range(2000):
        with pytest.raises(WorkflowStopped):
            flow.step(print)
    assert steps.made == 1
