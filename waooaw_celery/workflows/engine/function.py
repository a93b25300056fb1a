"""Runs the function of a workflow: an ``async def`` on the event loop, a plain ``def`` in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any

from waooaw_celery.errors import HandlerExited
from waooaw_celery.monitoring.json_log import note_facts
from waooaw_celery.workflows.blocking_flow import BlockingFlow
from waooaw_celery.workflows.engine.flow_control import WorkflowStopped
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.flow import Flow


async def run_function(run: Run) -> Any:
    """Run the function of a workflow, and return its result.

    Raises:
        InvalidArguments: it cannot be called with the workflow's input.
        ContinueAsNew: it is to begin again as a new run.
        HandlerExited: it called ``sys.exit()``.
    """
    note_facts(workflow_id=run.workflow_id)
    arguments = run.definition.arguments(run.claim.input)
    flow = Flow(run)
    if run.definition.is_async:
        try:
            return await run.definition.function(flow, **arguments)
        except (SystemExit, KeyboardInterrupt) as error:
            raise HandlerExited(f"{run.claim.name} raised {type(error).__name__}") from error
    loop = asyncio.get_running_loop()
    result: Future[Any] = Future()
    blocking = BlockingFlow(flow, loop)
    call = partial(run.definition.function, blocking, **arguments)
    context = contextvars.copy_context()
    blocking.begin()  # the thread counts as busy except while it waits for a step
    Thread(target=context.run, args=(_run, call, result), name=f"workflow-{run.workflow_id}", daemon=True).start()
    try:
        return await asyncio.wrap_future(result)
    finally:
        blocking.stop()


def _run(call: Any, result: Future[Any]) -> None:
    """Call a function, and give its result to a future. Nothing leaves this thread."""
    try:
        value = call()
    except WorkflowStopped:
        result.cancel()
    except (SystemExit, KeyboardInterrupt) as error:
        _fail(result, HandlerExited(f"the workflow raised {type(error).__name__}"))
    except StopIteration as error:  # no future can carry it, as no coroutine can
        stopped = RuntimeError("the workflow raised StopIteration")
        stopped.__cause__ = error
        _fail(result, stopped)
    except BaseException as error:  # noqa: BLE001 - it is the outcome of the workflow
        _fail(result, error)
    else:
        if result.set_running_or_notify_cancel():
            result.set_result(value)


def _fail(result: Future[Any], error: BaseException) -> None:
    if result.set_running_or_notify_cancel():
        result.set_exception(error)
