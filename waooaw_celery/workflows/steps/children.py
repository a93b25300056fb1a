"""Steps that start another workflow, and wait for its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeVar

from waooaw_celery.errors import WaooawError, WorkflowConflict
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.errors_form import error_to_json
from waooaw_celery.workflows.journal.records import Child, StepRecord
from waooaw_celery.workflows.start import new_row, parse_name
from waooaw_celery.workflows.steps.requests import TEMPORARY, computed_id, pause_after
from waooaw_celery.workflows.steps.step import ChildCall

logger = get_logger(__name__)

T = TypeVar("T")


def begin(run: Run, record: StepRecord, call: ChildCall) -> None:
    """Create the child together with the step that waits for it."""
    run.busy += 1
    run.spawn(_begin(run, record, call))


async def _begin(run: Run, record: StepRecord, call: ChildCall) -> None:
    child_id = call.workflow_id or computed_id(run.workflow_id, run.claim.run, record.path)
    row: dict[str, Any] = {}
    try:
        other = run.changes.by_request.get(child_id)
        if other is not None and not other.ended:
            raise WorkflowConflict(f"step {other.path} waits for workflow {child_id} already")
        # Before anything else: a child that runs already may end meanwhile.
        record.request_id = child_id
        run.changes.by_request[child_id] = record
        target = parse_name(call.name)
        await _until_answered(run, partial(run.engine.app.registry.check_handler, target))
        row = new_row(
            run.engine.app,
            target,
            dict(call.input),
            workflow_id=child_id,
            priority=call.priority,
            conversation_id=run.claim.conversation_id,
            trace=run.claim.trace,
            retention=run.claim.retention,
            parent_id=run.workflow_id,
        )
        known = None
        if call.workflow_id is not None:
            known = await _until_answered(run, partial(run.engine.journal.child, child_id))
        if known is not None:
            _check_same(run, known, row)
    except WaooawError as error:
        record.request_id = None
        run.changes.fail(record, error_to_json(error), run.then_resolve(record))
        return
    finally:
        run.busy -= 1
        run.touch()
    if run.closed or record.ended:
        return
    record.attempts = 1
    if known is None or known.report is None:
        run.changes.start_child(row)
        run.changes.change(record, then=partial(_send_start, run, target, row))
    elif "error" in known.report:
        run.changes.fail(record, known.report["error"], run.then_resolve(record))
    else:
        run.changes.complete(record, known.report["result"], run.then_resolve(record))


async def _until_answered(run: Run, function: Callable[[], T]) -> T:
    """Call a function that reads a database; while it does not answer, try again."""
    for number in count():
        try:
            return await run.engine.in_thread(function)
        except TEMPORARY as error:
            await asyncio.sleep(pause_after(error, number))
    raise AssertionError("unreachable")


def _check_same(run: Run, known: Child, row: dict[str, Any]) -> None:
    """Check that a workflow that exists is the child that is wanted."""
    child_id = row["workflow_id"]
    if known.parent_id != run.workflow_id:
        raise WorkflowConflict(f"workflow {child_id} exists already, and is no child of {run.workflow_id}")
    if (known.name, known.input_digest) != (row["name"], row["input_digest"]):
        raise WorkflowConflict(
            f"workflow {child_id} exists already, with another function or another input: choose another id"
        )


def _send_start(run: Run, target: HandlerName, row: dict[str, object]) -> None:
    run.spawn(_send_start_message(run, target, row))


async def _send_start_message(run: Run, target: HandlerName, row: dict[str, object]) -> None:
    try:
        await run.engine.publisher.start(target, row, from_agent=run.claim.agent)
    except WaooawError as error:  # a worker of its agent finds its row within a second
        logger.warning(
            "the start of child workflow %s could not be sent, and is found later: %s",
            row["workflow_id"],
            error,
            extra={"action": "child_start_not_sent"},
        )
