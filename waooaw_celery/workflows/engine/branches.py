"""Branches of a workflow's function that run at the same time: ``gather``, ``map`` and ``race``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from typing import Any

from waooaw_celery.errors import InvalidMessage, WorkflowChanged
from waooaw_celery.workflows.engine.branch import Branch, current_branch
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.states import StepKind
from waooaw_celery.workflows.steps.step import Step


async def gather(run: Run, path: str, steps: Sequence[Awaitable[Any]], return_exceptions: bool) -> list[Any]:
    """Run branches at the same time; see ``Flow.gather``."""
    tasks = [_start(run, path, index, step) for index, step in enumerate(steps)]
    return await _results(run, path, tasks, return_exceptions)


async def map_items(
    run: Run,
    path: str,
    function: Callable[[Any], Awaitable[Any]],
    items: Sequence[Any],
    limit: int | None,
) -> list[Any]:
    """Run a branch for each item; see ``Flow.map``."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidMessage(f"limit must be a whole number from 1, not {limit!r:.80}")
    slots = asyncio.Semaphore(limit or max(len(items), 1))

    async def one(item: Any) -> Any:
        async with slots:
            return await function(item)

    tasks = [_start(run, path, index, one(item)) for index, item in enumerate(items)]
    return await _results(run, path, tasks, return_exceptions=False)


async def race(run: Run, path: str, steps: Sequence[Awaitable[Any]]) -> tuple[int, Any]:
    """Run branches at the same time until one has ended; see ``Flow.race``.

    Which one was first is recorded, so that a replay takes the same.
    """
    if not steps:
        raise InvalidMessage("race() needs at least one step")
    first = _recorded(run, path, StepKind.RACE)
    tasks = [_start(run, path, index, step) for index, step in enumerate(steps)]
    try:
        if first is None:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = await _decide(run, path, StepKind.RACE, min(tasks.index(task) for task in done))
        await asyncio.wait([tasks[first]])
    finally:
        _cancel(run, path, [(index, task) for index, task in enumerate(tasks) if not task.done()])
    return first, tasks[first].result()


async def _decide(run: Run, path: str, kind: StepKind, first: int) -> int:
    """Record which branch decides, so that a replay takes the same one, and return it.

    If another process ran the workflow while the function waited here, it may have decided already.
    """
    decided = _recorded(run, path, kind)
    if decided is not None:
        return decided
    record = StepRecord(path=path, kind=kind, started_at=run.now())
    waiter = run.waiter(path)
    run.changes.complete(record, first, run.then_resolve(record))
    run.touch()
    await asyncio.shield(waiter)
    return first


def _recorded(run: Run, path: str, kind: StepKind) -> int | None:
    """Return which branch decided before, or None."""
    run.reach(path)
    record = run.changes.records.get(path)
    if record is None:
        return None
    if record.kind is not kind:
        raise WorkflowChanged(f"the workflow's function has changed: {path} was recorded as {record.kind}")
    return int(record.outcome)


def _start(run: Run, path: str, index: int, step: Awaitable[Any]) -> asyncio.Task[Any]:
    """Run a step or a coroutine in a branch of its own."""
    context = copy_context()
    context.run(current_branch.set, Branch(f"{path}[{index}]/"))
    if isinstance(step, Step):
        step.is_awaited = True
    coroutine = step if isinstance(step, Coroutine) else _await(step)
    task = asyncio.get_running_loop().create_task(coroutine, context=context)
    run.adopt(task)
    return task


async def _await(step: Awaitable[Any]) -> Any:
    return await step


async def _results(run: Run, path: str, tasks: Sequence[asyncio.Task[Any]], return_exceptions: bool) -> list[Any]:
    """Wait for branches. The first that fails is recorded: in a replay, another one may fail at once too."""
    if not tasks:
        return []
    failed = _recorded(run, path, StepKind.GATHER)
    try:
        if return_exceptions:
            await asyncio.wait(tasks)
            return [task.exception() or task.result() for task in tasks]
        if failed is None:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failed = next((index for index, task in enumerate(tasks) if _has_failed(task)), None)
            if failed is not None and not tasks[failed].cancelled():
                failed = await _decide(run, path, StepKind.GATHER, failed)
        if failed is not None:
            await asyncio.wait([tasks[failed]])
            raise tasks[failed].exception() or WorkflowChanged(f"{path} failed before, and does not any more")
        return [task.result() for task in tasks]
    finally:
        _cancel(run, path, [(index, task) for index, task in enumerate(tasks) if not task.done()])


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _cancel(run: Run, path: str, others: Sequence[tuple[int, asyncio.Task[Any]]]) -> None:
    for index, task in others:
        task.cancel()
        run.drop(f"{path}[{index}]/")
