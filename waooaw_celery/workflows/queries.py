"""Reads workflows and their steps for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, String, Text, and_, bindparam, cast, func, or_, select

from waooaw_celery.errors import InvalidMessage, UnknownWorkflow
from waooaw_celery.ledger.database.column_types import decoded
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.workflow_models import WorkflowRow, WorkflowStepRow
from waooaw_celery.messages.enums import Priority
from waooaw_celery.workflows.info import WorkflowInfo, WorkflowPage, WorkflowStatistics, WorkflowStep
from waooaw_celery.workflows.states import FINAL, StepKind, StepStatus, WorkflowStatus

_FIELDS = (
    *("workflow_id", "name", "version", "agent", "status", "priority", "run", "input", "result", "error"),
    *("progress", "waits_for", "conversation_id", "parent_id", "forked_from", "created_at", "started_at"),
    *("ended_at", "deadline"),
)
_STEP_FIELDS = (
    *("path", "kind", "status", "attempts", "request_id", "outcome", "error", "due_at", "started_at", "ended_at"),
)


def read_workflow(connection: Connection, workflow_id: str) -> WorkflowInfo:
    """Return a workflow.

    Raises:
        UnknownWorkflow: there is none with this id.
    """
    rows = _infos(connection, select(*_columns()).where(WorkflowRow.workflow_id == workflow_id))
    if not rows:
        raise _unknown(workflow_id)
    return rows[0]


def created(row: Mapping[str, Any]) -> WorkflowInfo:
    """Return a workflow that was just created from its row, without reading it."""
    known: dict[str, Any] = {**dict.fromkeys(_FIELDS), **{name: row[name] for name in _FIELDS if name in row}}
    known |= {"status": WorkflowStatus(row["status"]), "priority": Priority.of_rank(row["priority"]), "steps": 0}
    return WorkflowInfo(**known | {"input": decoded(payload_text(row["input"]))})


#: Made once: whoever waits for a workflow executes it often.
_STATUS = select(WorkflowRow.status).where(WorkflowRow.workflow_id == bindparam("id", type_=String))


def read_status(connection: Connection, workflow_id: str) -> WorkflowStatus:
    """Return the status of a workflow.

    Raises:
        UnknownWorkflow: there is none with this id.
    """
    found = connection.scalar(_STATUS, {"id": workflow_id})
    if found is None:
        raise _unknown(workflow_id)
    return WorkflowStatus(found)


def _unknown(workflow_id: str) -> UnknownWorkflow:
    return UnknownWorkflow(f"there is no workflow {workflow_id!r}: it was never started, or was purged")


def has_input(connection: Connection, workflow_id: str, input_digest: str) -> bool:
    """Return whether a workflow was started with an input, which may be erased since."""
    query = select(WorkflowRow.input_digest).where(WorkflowRow.workflow_id == workflow_id)
    return connection.scalar(query) == input_digest


def read_steps(connection: Connection, workflow_id: str, run: int) -> list[WorkflowStep]:
    """Return the recorded steps of a run, in the order in which they began."""
    query = (
        select(*(getattr(WorkflowStepRow, name) for name in _STEP_FIELDS))
        .where(WorkflowStepRow.workflow_id == workflow_id, WorkflowStepRow.run == run)
        .order_by(WorkflowStepRow.number)
    )
    return [
        WorkflowStep(**row._asdict() | {"kind": StepKind(row.kind), "status": StepStatus(row.status)})
        for row in connection.execute(query)
    ]


def read_page(
    connection: Connection,
    *,
    name: str | None,
    status: WorkflowStatus | None,
    agent: str | None,
    parent_id: str | None,
    since: datetime | None,
    text: str | None,
    page: str | None,
    limit: int,
) -> WorkflowPage:
    """Return workflows that match, the newest first."""
    conditions: list[Any] = []
    if name is not None:
        conditions.append(WorkflowRow.name == name)
    if status is not None:
        conditions.append(WorkflowRow.status == status.value)
    if agent is not None:
        conditions.append(WorkflowRow.agent == agent)
    if parent_id is not None:
        conditions.append(WorkflowRow.parent_id == parent_id)
    if since is not None:
        conditions.append(WorkflowRow.created_at >= since)
    if text is not None:
        conditions.append(cast(WorkflowRow.input, Text).contains(text, autoescape=True))
    if page is not None:
        at, id_ = _position(page)
        conditions.append(
            or_(
                WorkflowRow.created_at < at,
                and_(WorkflowRow.created_at == at, WorkflowRow.workflow_id < id_),
            )
        )
    query = select(*_columns()).where(*conditions)
    query = query.order_by(WorkflowRow.created_at.desc(), WorkflowRow.workflow_id.desc()).limit(limit + 1)
    found = _infos(connection, query)
    last = found[limit - 1] if len(found) > limit else None
    next_page = None if last is None else f"{last.created_at.isoformat()}|{last.workflow_id}"
    return WorkflowPage(workflows=tuple(found[:limit]), next_page=next_page)


def read_statistics(connection: Connection, name: str | None, since: datetime | None) -> WorkflowStatistics:
    """Return how many workflows there are of each kind."""
    conditions: list[Any] = []
    if name is not None:
        conditions.append(WorkflowRow.name == name)
    if since is not None:
        conditions.append(WorkflowRow.created_at >= since)
    grouped = (
        select(WorkflowRow.name, WorkflowRow.status, func.count(), func.min(WorkflowRow.created_at))
        .where(*conditions)
        .group_by(WorkflowRow.name, WorkflowRow.status)
    )
    by_status: dict[str, int] = {}
    by_name: dict[str, int] = {}
    oldest: datetime | None = None
    for function, status, count, first in connection.execute(grouped):
        by_status[status] = by_status.get(status, 0) + count
        by_name[function] = by_name.get(function, 0) + count
        if WorkflowStatus(status) not in FINAL:
            oldest = first if oldest is None else min(oldest, first)
    ended = sum(count for status, count in by_status.items() if WorkflowStatus(status) in FINAL)
    failed = ended - by_status.get(WorkflowStatus.COMPLETED.value, 0)
    return WorkflowStatistics(
        total=sum(by_status.values()),
        by_status=dict(sorted(by_status.items())),
        by_name=dict(sorted(by_name.items())),
        failure_rate=failed / ended if ended else None,
        oldest_waiting_at=oldest,
    )


def _columns() -> Sequence[Any]:
    count = (
        select(func.count())
        .select_from(WorkflowStepRow)
        .where(WorkflowStepRow.workflow_id == WorkflowRow.workflow_id, WorkflowStepRow.run == WorkflowRow.run)
        .scalar_subquery()
    )
    return (*(getattr(WorkflowRow, name) for name in _FIELDS), count.label("steps"))


def _infos(connection: Connection, query: Any) -> list[WorkflowInfo]:
    return [
        WorkflowInfo(
            **row._asdict() | {"status": WorkflowStatus(row.status), "priority": Priority.of_rank(row.priority)}
        )
        for row in connection.execute(query)
    ]


def _position(page: str) -> tuple[datetime, str]:
    at, _, id_ = page.partition("|")
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise InvalidMessage(f"page must be the next_page of an earlier answer, not {page!r:.80}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC), id_
