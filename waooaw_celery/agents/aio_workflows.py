"""The operations on workflows as coroutines: apart from the others, so that these load no SQLAlchemy."""

from __future__ import annotations

import asyncio
import time
from functools import wraps

from waooaw_celery.agents.waiting import in_thread
from waooaw_celery.app.app import AgentApp
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.flow import seconds_of
from waooaw_celery.workflows.workflows import Workflows as BlockingWorkflows
from waooaw_celery.workflows.workflows import pause_before_look, result_of, still_runs


class Workflows:
    """Starts workflows, waits for their results, and manages them: ``waooaw_celery.agents.Workflows``, awaited.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self.operations = BlockingWorkflows(app)

    start = in_thread(BlockingWorkflows.start)
    get = in_thread(BlockingWorkflows.get)
    status = in_thread(BlockingWorkflows.status)
    list = in_thread(BlockingWorkflows.list)
    steps = in_thread(BlockingWorkflows.steps)
    statistics = in_thread(BlockingWorkflows.statistics)
    signal = in_thread(BlockingWorkflows.signal)
    cancel = in_thread(BlockingWorkflows.cancel)
    pause = in_thread(BlockingWorkflows.pause)
    resume = in_thread(BlockingWorkflows.resume)
    retry = in_thread(BlockingWorkflows.retry)
    fork = in_thread(BlockingWorkflows.fork)

    @wraps(BlockingWorkflows.result)
    async def result(self, workflow_id: str, timeout: float = 30.0) -> JSON:
        deadline = time.monotonic() + (seconds_of(timeout) or 0.0)
        began = time.monotonic()
        while True:
            if (await self.status(workflow_id)).final:
                return result_of(await self.get(workflow_id))
            left = deadline - time.monotonic()
            if left <= 0:
                raise still_runs(await self.get(workflow_id), timeout)
            await asyncio.sleep(min(pause_before_look(time.monotonic() - began), left))
