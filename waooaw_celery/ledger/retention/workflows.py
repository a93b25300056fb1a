"""The retention and the erasure of workflows: as for messages, legal holds protect them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    and_,
    cast,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import HoldRow
from waooaw_celery.ledger.read.reader import column_contains
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.removal import BATCH_SIZE, removing
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow

#: The columns with what a workflow was given, has made, or is told. A trace context may have baggage.
_CONTENTS = ("input", "result", "error", "progress", "trace")
_STEP_CONTENTS = ("details", "outcome", "error")


def count_expired_workflows(connection: Connection, at: datetime) -> int:
    """Return how many workflows a purge would remove."""
    return connection.scalar(select(func.count()).select_from(WorkflowRow).where(*_is_over(at))) or 0


def purge_workflows(database: Database, at: datetime) -> int:
    """Remove the workflows that have ended and whose retention is over, and return how many."""
    removed = 0
    while True:
        with removing(database, "purge workflows") as connection:
            query = select(WorkflowRow.workflow_id).where(*_is_over(at)).limit(BATCH_SIZE)
            ids = list(connection.scalars(query))
            if not ids:
                return removed
            for table in (WorkflowStepRow, WorkflowInputRow, WorkflowRow):
                connection.execute(delete(table).where(table.workflow_id.in_(ids)))
            removed += len(ids)


def erase_workflows(connection: Connection, agent: str | None, containing: str | None) -> tuple[int, int]:
    """Blank what workflows that have ended hold of an agent, or what contains a text.

    Those of the agent are blanked whole. In others, the steps that request it are blanked.

    Args:
        connection: a connection in a transaction.
        agent: the agent.
        containing: the text.

    Returns:
        How many workflows were blanked, and how many match and have not ended: a replay needs their steps.
    """
    matching = _matching(agent, containing)
    ended = WorkflowRow.ended_at.is_not(None)
    is_open = connection.scalar(select(func.count()).select_from(WorkflowRow).where(matching, ~ended)) or 0
    ids = list(connection.scalars(select(WorkflowRow.workflow_id).where(matching, ended, ~_is_held())))
    for start in range(0, len(ids), BATCH_SIZE):
        batch = ids[start : start + BATCH_SIZE]
        _blank(connection, batch, agent, containing)
    return len(ids), is_open


def _blank(connection: Connection, ids: list[str], agent: str | None, containing: str | None) -> None:
    whole: list[ColumnElement[bool]] = [] if agent is None else [WorkflowRow.agent == agent]
    for name in _CONTENTS:
        column = getattr(WorkflowRow, name)
        conditions = whole if containing is None else [column_contains(column, containing)]
        statement = update(WorkflowRow).where(WorkflowRow.workflow_id.in_(ids), *conditions)
        connection.execute(statement.values({name: null()}))
    own = select(WorkflowRow.workflow_id).where(WorkflowRow.workflow_id.in_(ids), *whole).scalar_subquery()
    for name in _STEP_CONTENTS:
        column = getattr(WorkflowStepRow, name)
        if containing is not None:
            condition: Any = column_contains(column, containing)
        else:
            condition = or_(WorkflowStepRow.workflow_id.in_(own), _asks(str(agent)))
        statement = update(WorkflowStepRow).where(WorkflowStepRow.workflow_id.in_(ids), condition)
        connection.execute(statement.values({name: null()}))
    connection.execute(delete(WorkflowInputRow).where(WorkflowInputRow.workflow_id.in_(ids)))


def _matching(agent: str | None, containing: str | None) -> ColumnElement[bool]:
    of_workflow = WorkflowStepRow.workflow_id == WorkflowRow.workflow_id
    if agent is not None:
        return or_(WorkflowRow.agent == agent, exists().where(of_workflow, _asks(agent)))
    text = str(containing)
    in_row = [column_contains(getattr(WorkflowRow, name), text) for name in _CONTENTS]
    in_step = or_(*(column_contains(getattr(WorkflowStepRow, name), text) for name in _STEP_CONTENTS))
    return or_(*in_row, exists().where(of_workflow, in_step))


def _asks(agent: str) -> ColumnElement[bool]:
    """Whether a step, or a compensation, requests an agent."""
    details = cast(WorkflowStepRow.details, String)
    return or_(
        details.like(f'"{_escaped(agent)}.%', escape="\\"),
        details.like(f'%"agent": "{_escaped(agent)}"%', escape="\\"),
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


def _is_over(at: datetime) -> tuple[ColumnElement[bool], ...]:
    return WorkflowRow.retain_until <= at, ~_is_held()


def _is_held() -> ColumnElement[bool]:
    """Return the condition that a hold names a workflow: its agent, its conversation, or its first message."""
    named = (
        (HoldKind.MESSAGE, WorkflowRow.workflow_id),
        (HoldKind.CONVERSATION, WorkflowRow.conversation_id),
        (HoldKind.AGENT, WorkflowRow.agent),
    )
    return exists().where(
        or_(*(and_(HoldRow.kind == kind.value, HoldRow.value == value) for kind, value in named))
    )
