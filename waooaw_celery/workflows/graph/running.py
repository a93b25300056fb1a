"""The workflow that runs a graph of tasks, with all the guarantees of workflows."""

from __future__ import annotations

import asyncio
from typing import Any

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.errors_form import error_to_json
from waooaw_celery.workflows.flow import Flow
from waooaw_celery.workflows.graph.references import resolved
from waooaw_celery.workflows.graph.task_graph import GraphTask, OnFailure, TaskGraph


async def run_task_graph(flow: Flow, graph: dict[str, Any]) -> dict[str, JSON]:
    """Run a graph of tasks; register it with an agent: ``orchestrator.workflow(run_task_graph)``.

    Args:
        flow: the steps of the workflow.
        graph: the JSON form of a TaskGraph.

    Returns:
        The results by task, the errors of failed tasks, and the names of skipped ones.

    Raises:
        InvalidMessage: the graph cannot be run.
        WaooawError: a task failed, and the graph stops at the first failure.
    """
    plan = TaskGraph.from_dict(graph)
    plan.validate()
    return await _GraphRun(flow, plan).run()


class _GraphRun:
    """One run of a graph."""

    def __init__(self, flow: Flow, graph: TaskGraph) -> None:
        self._flow, self._graph = flow, graph
        self._ended = {task.name: asyncio.Event() for task in graph.tasks}
        self._results: dict[str, JSON] = {}
        self._failed: dict[str, JSON] = {}
        self._skipped: list[str] = []

    async def run(self) -> dict[str, JSON]:
        await self._flow.gather(*(self._run_task(task) for task in self._graph.tasks))
        in_order = [task.name for task in self._graph.tasks]
        return {
            "results": {name: self._results[name] for name in in_order if name in self._results},
            "failed": {name: self._failed[name] for name in in_order if name in self._failed},
            "skipped": [name for name in in_order if name in self._skipped],
        }

    async def _run_task(self, task: GraphTask) -> None:
        for before in task.depends_on:
            await self._ended[before].wait()
        try:
            if self._is_wanted(task):
                await self._request(task)
            else:
                self._skipped.append(task.name)
        finally:
            self._ended[task.name].set()

    def _is_wanted(self, task: GraphTask) -> bool:
        if any(before not in self._results for before in task.depends_on):
            return False
        return task.when is None or Filter.of(task.when).fits(self._results)

    async def _request(self, task: GraphTask) -> None:
        try:
            result = await self._flow.request(
                task.agent,
                task.method,
                resolved(task.payload, self._results),
                retry=RetryPolicy(**task.retry),
                timeout=task.timeout,
                priority=task.priority.of_message,
                key=task.name,
            )
            undo = task.compensation
            if undo is not None:
                params = resolved(undo.params, {**self._results, task.name: result})
                self._flow.compensate(undo.agent, undo.method, params)
        except WaooawError as error:
            if self._graph.on_failure is OnFailure.STOP:
                raise
            self._failed[task.name] = error_to_json(error)
        else:
            self._results[task.name] = result
