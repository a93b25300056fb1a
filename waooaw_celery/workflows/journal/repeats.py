"""Runs a workflow again from one of its steps: as a new run, or as another workflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update

from waooaw_celery.errors import InvalidMessage, UnknownWorkflow, WorkflowConflict
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow
from waooaw_celery.messages.enums import Priority, RetentionPolicy
from waooaw_celery.workflows.journal.records import InputKind
from waooaw_celery.workflows.journal.rows import create, new_workflow
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus

#: What a workflow can be retried from.
_RETRIED = (WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.TIMED_OUT)


def retry(connection: Connection, now: Any, workflow_id: str, from_step: str | None) -> None:
    """Begin a new run of a workflow; see ``Workflows.retry``."""
    row = _workflow(connection, workflow_id)
    if WorkflowStatus(row["status"]) not in _RETRIED:
        raise InvalidMessage(
            f"workflow {workflow_id} is {row['status']}: only one that failed, was cancelled or timed out, and "
            "has undone nothing, can be retried. Fork it to run it again"
        )
    steps = _steps(connection, workflow_id, row["run"])
    if any(_is_carried_out(step) for step in steps):
        raise InvalidMessage(
            f"workflow {workflow_id} has undone what it did: fork it, which begins with nothing done"
        )
    failed = next((step for step in steps if step["status"] == StepStatus.FAILED.value), None)
    number = _number_of(steps, workflow_id, from_step) if from_step is not None else failed and failed["number"]
    # A step without an outcome begins again: its answer may have come after the end, and was dropped.
    kept = [
        step
        for step in steps
        if (number is None or step["number"] < number) and step["status"] != StepStatus.STARTED.value
    ]
    _copy(connection, kept, workflow_id, row["run"] + 1)
    values = {
        "run": row["run"] + 1,
        "status": WorkflowStatus.PENDING.value,
        "result": None,
        "error": None,
        "ended_at": None,
        "retain_until": None,
        "deadline": None,  # it may have passed
        "wake_at": now,
        "last_change": len(kept),
        "takeovers": 0,
        "fence": WorkflowRow.fence + 1,
    }
    connection.execute(update(WorkflowRow).where(WorkflowRow.workflow_id == workflow_id).values(values))
    # What came too late for the last run is not for this one, such as a second command to cancel it.
    late = and_(WorkflowInputRow.workflow_id == workflow_id, WorkflowInputRow.kind != InputKind.SIGNAL.value)
    connection.execute(delete(WorkflowInputRow).where(late))


def fork(
    connection: Connection,
    now: datetime,
    workflow_id: str,
    from_step: str | None,
    new_id: str,
    version: int | None,
) -> None:
    """Start another workflow with the first steps of one; see ``Workflows.fork``."""
    row = _workflow(connection, workflow_id)
    kept: list[dict[str, Any]] = []
    if from_step is not None:
        steps = _steps(connection, workflow_id, row["run"])
        number = _number_of(steps, workflow_id, from_step)
        kept = [step for step in steps if step["number"] < number]
        undone = [step["path"] for step in kept if _is_carried_out(step)]
        if undone:
            raise InvalidMessage(
                f"workflow {workflow_id} has carried out {undone[-1]}: what comes before {from_step} is undone. "
                "Fork it from the first step, or from one before that"
            )
        if open_ := [step["path"] for step in kept if step["status"] == StepStatus.STARTED.value]:
            raise InvalidMessage(
                f"step {open_[0]} comes before {from_step} and has no outcome yet: fork from that step, or wait"
            )
    values = new_workflow(
        workflow_id=new_id,
        name=row["name"],
        agent=row["agent"],
        version=version,
        priority=Priority.of_rank(row["priority"]),
        given=row["input"],
        input_digest=row["input_digest"],
        conversation_id=new_id,
        created_at=now,
        retention=RetentionPolicy(row["retention"]),
        forked_from=workflow_id,
    )
    if not create(connection, [values | {"last_change": len(kept)}]):
        raise WorkflowConflict(f"workflow {new_id} exists already: choose another id")
    _copy(connection, kept, new_id, 1)


def _workflow(connection: Connection, workflow_id: str) -> Mapping[str, Any]:
    query = select(WorkflowRow.__table__).where(WorkflowRow.workflow_id == workflow_id).with_for_update()
    found: Any = connection.execute(query).mappings().one_or_none()
    if found is None:
        raise UnknownWorkflow(f"there is no workflow {workflow_id!r}: it was never started, or was purged")
    return dict(found)


def _steps(connection: Connection, workflow_id: str, run: int) -> list[dict[str, Any]]:
    query = (
        select(WorkflowStepRow.__table__)
        .where(WorkflowStepRow.workflow_id == workflow_id, WorkflowStepRow.run == run)
        .order_by(WorkflowStepRow.number)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _is_carried_out(step: Mapping[str, Any]) -> bool:
    """Whether a step is a compensation that was begun."""
    return bool(step["kind"] == StepKind.COMPENSATION.value and step["status"] != StepStatus.REGISTERED.value)


def _number_of(steps: list[dict[str, Any]], workflow_id: str, path: str) -> int:
    for step in steps:
        if step["path"] == path:
            return int(step["number"])
    similar = [step["path"] for step in steps if step["path"].rpartition("/")[2] in (path, f"{path}#1")]
    hint = f": did you mean {similar[0]!r}?" if similar else ""
    raise InvalidMessage(
        f"workflow {workflow_id} has no step {path!r}{hint}. `waooaw workflow show {workflow_id}` shows its steps"
    )


def _copy(connection: Connection, steps: list[dict[str, Any]], workflow_id: str, run: int) -> None:
    rows = [
        step | {"workflow_id": workflow_id, "run": run, "number": number, "changed": number}
        for number, step in enumerate(steps, 1)
    ]
    if rows:
        connection.execute(insert(WorkflowStepRow.__table__), rows)  # type: ignore[arg-type]  # a Table
