"""The rows of workflows: how they are made, added and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow
from waooaw_celery.messages.enums import Priority, RetentionPolicy
from waooaw_celery.messages.trace_context import TraceContext
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.journal.records import Claim, InputKind, StepRecord, WorkflowInput
from waooaw_celery.workflows.states import FINAL, StepKind, StepStatus, WorkflowStatus

#: The values of the final states.
FINAL_VALUES = [status.value for status in FINAL]


def create(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Create workflows. Those that exist stay as they are.

    Returns:
        How many were created.
    """
    if not rows:
        return 0
    statement = insert_into(connection)(WorkflowRow).on_conflict_do_nothing()
    return sum(connection.execute(statement.values(dict(row))).rowcount for row in rows)


def add_input(
    connection: Connection, now: Any, workflow_id: str, kind: InputKind, key: str, payload: JSON, input_id: str
) -> bool | None:
    """Add an input in a transaction.

    Returns:
        True: it was added. False: it was added before. None: the workflow has ended, or there is none.
    """
    changes: dict[str, Any] = {}
    if kind is InputKind.CANCEL:  # any worker of the agent can cancel one that waits for a worker with its version
        is_stuck = WorkflowRow.status == WorkflowStatus.STUCK.value
        changes["version"] = case((is_stuck, None), else_=WorkflowRow.version)
    statement = (
        update(WorkflowRow)
        .where(WorkflowRow.workflow_id == workflow_id, WorkflowRow.status.not_in(FINAL_VALUES))
        .values(inputs=WorkflowRow.inputs + 1, wake_at=now, **changes)
        .returning(WorkflowRow.inputs)
    )
    number = connection.scalar(statement)
    if number is None:
        return None
    values = {
        "input_id": input_id,
        "workflow_id": workflow_id,
        "number": number,
        "kind": kind.value,
        "key": key,
        "payload": payload,
        "at": now,
    }
    added = connection.execute(insert_into(connection)(WorkflowInputRow).values(values).on_conflict_do_nothing())
    return bool(added.rowcount)


def report_of(workflow_id: str, status: WorkflowStatus, result: JSON, error: JSON) -> dict[str, JSON]:
    """Return what a workflow that has ended reports to its parent: its result, or an error."""
    if status is WorkflowStatus.COMPLETED:
        return {"result": result}
    known = error if isinstance(error, dict) else {}
    failed: dict[str, JSON] = {
        "type": "WorkflowFailed",
        "message": known.get("message"),
        "workflow_id": workflow_id,
        "status": status.value,
        "child_type": known.get("type"),
    }
    return {"error": failed}


def insert_into(connection: Connection) -> Any:
    """Return the INSERT of a database, which can skip or change rows that exist."""
    return insert_for(connection.dialect.name)


def insert_for(dialect: str) -> Any:
    """Return the INSERT of a database by the name of its dialect."""
    return postgresql_insert if dialect == "postgresql" else sqlite_insert


def step_columns(workflow_id: str, run: int, changed: int, step: StepRecord) -> dict[str, Any]:
    """Return the columns of a step."""
    return {
        "workflow_id": workflow_id,
        "run": run,
        "path": step.path,
        "number": step.number,
        "changed": changed,
        "kind": step.kind.value,
        "status": step.status.value,
        "attempts": step.attempts,
        "request_id": step.request_id,
        "details": step.details,
        "outcome": step.outcome,
        "error": step.error,
        "due_at": step.due_at,
        "started_at": step.started_at,
        "ended_at": step.ended_at,
    }


def new_workflow(
    *,
    workflow_id: str,
    name: str,
    agent: str,
    version: int | None,
    priority: Priority,
    given: JSON,
    input_digest: str,
    conversation_id: str,
    trace: TraceContext | None = None,
    created_at: datetime,
    retention: RetentionPolicy,
    deadline: datetime | None = None,
    parent_id: str | None = None,
    forked_from: str | None = None,
    wake_at: datetime | None = None,
) -> dict[str, Any]:
    """Return the columns of a new workflow."""
    return {
        "workflow_id": workflow_id,
        "name": name,
        "version": version,
        "agent": agent,
        "status": WorkflowStatus.PENDING.value,
        "priority": priority.rank,
        "run": 1,
        "input": given,
        "input_digest": input_digest,
        "conversation_id": conversation_id,
        "trace": trace,
        "parent_id": parent_id,
        "forked_from": forked_from,
        "created_at": created_at,
        "deadline": deadline,
        "retention": retention.value,
        "fence": 0,
        "takeovers": 0,
        "wake_at": wake_at or created_at,
        "last_change": 0,
        "inputs": 0,
    }


CLAIM_COLUMNS = tuple(
    getattr(WorkflowRow, name)
    for name in (
        *("workflow_id", "name", "version", "agent", "status", "priority", "run", "input", "error"),
        *("conversation_id", "trace", "parent_id", "created_at", "started_at", "deadline", "retention", "fence"),
        *("takeovers", "last_change", "inputs"),
    )
)
_STEP_FIELDS = (
    *("path", "kind", "status", "number", "attempts", "request_id", "details", "outcome", "error"),
    *("due_at", "started_at", "ended_at"),
)
#: The columns of a step that a later change replaces.
CHANGING = ("changed", *(name for name in _STEP_FIELDS if name not in ("path", "kind", "number", "started_at")))
STEP_COLUMNS = tuple(getattr(WorkflowStepRow, name) for name in _STEP_FIELDS)
INPUT_COLUMNS = tuple(
    getattr(WorkflowInputRow, name) for name in ("input_id", "number", "kind", "key", "payload", "at")
)


def claim_of(row: Any) -> Claim:
    """Return a claim of a row."""
    fields = row._asdict() | {
        "status": WorkflowStatus(row.status),
        "priority": Priority.of_rank(row.priority),
        "retention": RetentionPolicy(row.retention),
    }
    return Claim(**fields)


def step_of(row: Any) -> StepRecord:
    """Return a step of a row."""
    fields = {name: getattr(row, name) for name in _STEP_FIELDS}
    return StepRecord(**fields | {"kind": StepKind(row.kind), "status": StepStatus(row.status)})


def input_of(row: Any) -> WorkflowInput:
    """Return an input of a row."""
    return WorkflowInput(**row._asdict() | {"kind": InputKind(row.kind)})
