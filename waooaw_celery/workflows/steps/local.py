"""Steps that call a local function: in a thread, or on the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelled
from functools import partial
from typing import Any

from waooaw_celery.errors import HandlerExited, StepTimeout
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.steps.outcomes import retry_or_fail
from waooaw_celery.workflows.steps.step import LocalCall


def attempt(run: Run, record: StepRecord, call: LocalCall) -> None:
    """Call the function once, and record its result or its error."""
    record.attempts += 1
    run.busy += 1
    run.working += 1
    run.attempts[record.path] = run.spawn(_attempt(run, record, call))


async def _attempt(run: Run, record: StepRecord, call: LocalCall) -> None:
    try:
        outcome = await _outcome(run, record, call)
    except Exception as error:  # noqa: BLE001 - whatever the step raises is its outcome
        if _counts(run, record):
            retry_or_fail(run, record, call, error)
    else:
        if _counts(run, record):
            run.changes.complete(record, outcome, run.then_resolve(record))
    finally:
        run.attempts.pop(record.path, None)
        run.busy -= 1
        run.working -= 1
        run.touch()


def _counts(run: Run, record: StepRecord) -> bool:
    """Whether the outcome of a step is still wanted."""
    return not run.closed and not run.is_dropped(record.path) and record.path in run.calls


async def _outcome(run: Run, record: StepRecord, call: LocalCall) -> JSON:
    try:
        async with asyncio.timeout(call.timeout) as limit:
            value = await run_function(run, call.call)
    except TimeoutError as error:
        if limit.expired():
            raise StepTimeout(f"step {record.path} took longer than its timeout of {call.timeout:g} s") from error
        raise
    return json_copy(value, f"the result of step {record.path}")


async def run_function(run: Run, function: Callable[[], Any]) -> Any:
    """Call a function in a thread; await what an ``async def`` returns on the event loop.

    Raises:
        HandlerExited: it called ``sys.exit()``, cancelled itself, or raised another error that is no Exception.
    """
    if _is_coroutine_function(function):
        return await _await(function())
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    value = await loop.run_in_executor(run.engine.threads, partial(context.run, _without_exit, function))
    return await _await(value) if inspect.isawaitable(value) else value


def _is_coroutine_function(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - an object with an async __call__
    )


async def _await(value: Any) -> Any:
    try:
        return await value
    except (Exception, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # the step is not wanted any more, or takes too long
        raise HandlerExited(f"the step raised {type(error).__name__}: {error}") from error


def _without_exit(function: Callable[[], Any]) -> Any:
    """Call a function. What would end the process, or that a future cannot carry, becomes another error."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the step raised StopIteration") from error
    except FutureCancelled as error:  # asyncio would take it for the end of the task that waits
        raise HandlerExited(f"the step raised {type(error).__name__}: {error}") from error
    except Exception:
        raise
    except BaseException as error:
        raise HandlerExited(f"the step raised {type(error).__name__}: {error}") from error
