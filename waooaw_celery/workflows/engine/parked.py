"""Workflows that only a command lets go on: they are paused, or stuck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from waooaw_celery.workflows.engine.interface import Engine
from waooaw_celery.workflows.journal.journal import NO_WORKER
from waooaw_celery.workflows.journal.records import Claim, InputKind, Turn, TurnResult, WorkflowInput
from waooaw_celery.workflows.states import WorkflowStatus


def is_parked(claim: Claim) -> bool:
    """Whether a workflow that was claimed is paused or stuck. One without a worker goes on with this one."""
    if claim.status is WorkflowStatus.STUCK:
        return not _had_no_worker(claim) or _was_paused(claim)
    return claim.status is WorkflowStatus.PAUSED


async def take_command(engine: Engine, claim: Claim, inputs: Sequence[WorkflowInput]) -> bool:
    """Take the command with which a workflow goes on, and return whether there is one, or its deadline has passed.

    Without one, the workflow is given back as it is; what has arrived for it stays.
    """
    commands = [each for each in inputs if each.kind in (InputKind.RESUME, InputKind.PAUSE)]
    resumed = commands and commands[-1].kind is InputKind.RESUME
    cancelled = any(each.kind is InputKind.CANCEL for each in inputs)
    is_late = claim.deadline is not None and claim.deadline <= engine.now()
    # Not 0 if its requests may not be published yet.
    columns: dict[str, Any] = {"takeovers": min(claim.takeovers, 1)}
    if resumed:  # written together: a process that is lost here may not lose the command
        columns |= {"status": WorkflowStatus.RUNNING.value, "error": None}
    elif not (cancelled or is_late):
        columns["wake_at"] = claim.deadline
        if _had_no_worker(claim):  # it has one again
            columns |= {"status": WorkflowStatus.PAUSED.value, "error": None}
    turn = Turn(
        workflow_id=claim.workflow_id,
        run=claim.run,
        fence=claim.fence,
        last_change=claim.last_change,
        taken=[each.input_id for each in commands],
        columns=columns,
        known_inputs=None if resumed or cancelled or is_late else claim.inputs,
    )
    result = await engine.writer.write(turn)
    if result is TurnResult.NEW_INPUTS:  # one of them may be a command
        freed = {"owner": None, "lease_until": None, "wake_at": engine.now()}
        await engine.writer.write(replace(turn, taken=[], columns=freed, known_inputs=None))
    if isinstance(inputs, list):
        inputs[:] = [each for each in inputs if each not in commands]
    return bool(resumed or cancelled or is_late)


def _had_no_worker(claim: Claim) -> bool:
    return (claim.error or {}).get("type") == NO_WORKER


def _was_paused(claim: Claim) -> bool:
    return bool((claim.error or {}).get("paused"))
