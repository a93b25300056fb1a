"""The statements of the journal that are executed most often.

They are made once, with names for what differs: SQLAlchemy takes longer to make a statement than to execute it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    DateTime,
    Integer,
    Interval,
    String,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    update,
)

from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow
from waooaw_celery.workflows.journal.rows import (
    CLAIM_COLUMNS,
    FINAL_VALUES,
    INPUT_COLUMNS,
    STEP_COLUMNS,
    insert_for,
)
from waooaw_celery.workflows.states import WorkflowStatus

_TIME = DateTime(timezone=True)
_WAITING = [WorkflowStatus.PENDING.value, WorkflowStatus.WAITING.value]
_ID = bindparam("id", type_=String)

#: The steps of a run that have changed since a change.
CHANGED = (
    select(*STEP_COLUMNS, WorkflowStepRow.changed)
    .where(
        WorkflowStepRow.workflow_id == _ID,
        WorkflowStepRow.run == bindparam("run", type_=Integer),
        WorkflowStepRow.changed > bindparam("after", type_=Integer),
    )
    .order_by(WorkflowStepRow.number)
)
#: The inputs of a workflow after one of them that were not taken.
INPUTS = (
    select(*INPUT_COLUMNS)
    .where(WorkflowInputRow.workflow_id == _ID, WorkflowInputRow.number > bindparam("after", type_=Integer))
    .order_by(WorkflowInputRow.number)
    .limit(bindparam("most", type_=Integer))
)
#: How many inputs have arrived for a workflow.
INPUT_COUNT = select(WorkflowRow.inputs).where(WorkflowRow.workflow_id == _ID)


def time_parameters(is_postgresql: bool, lease: timedelta) -> dict[str, Any]:
    """Return the parameters of the statements that read the time: PostgreSQL reads its own."""
    if is_postgresql:
        return {"lease": lease}
    now = datetime.now(UTC)
    return {"now": now, "until": now + lease}


@lru_cache(maxsize=32)
def claim_statement(is_postgresql: bool, functions: tuple[tuple[str, tuple[int, ...]], ...], by_id: bool) -> Any:
    """Return the statement that claims workflows; see ``Journal.claim``.

    Args:
        is_postgresql: whether it is for PostgreSQL.
        functions: the functions that the process can run, each with its versions.
        by_id: whether it claims given workflows, due or not.
    """
    now, until = _times(is_postgresql)
    owner = bindparam("me", type_=String)
    conditions = [
        _is_runnable(functions),
        or_(
            WorkflowRow.owner.is_(None),
            and_(
                WorkflowRow.lease_until <= now,
                or_(
                    WorkflowRow.owner != owner,
                    WorkflowRow.workflow_id.not_in(bindparam("held", expanding=True, type_=String)),
                ),
            ),
        ),
        WorkflowRow.status.not_in(FINAL_VALUES),
        WorkflowRow.workflow_id.in_(bindparam("ids", expanding=True, type_=String))
        if by_id
        else WorkflowRow.wake_at <= now,
    ]
    free = (
        select(WorkflowRow.workflow_id)
        .where(*conditions)
        .order_by(WorkflowRow.priority, WorkflowRow.wake_at)
        .limit(bindparam("most", type_=Integer))
        .with_for_update(skip_locked=True)
    )
    was_lost = case((WorkflowRow.owner.is_(None), 0), else_=1)
    return (
        update(WorkflowRow)
        .where(WorkflowRow.workflow_id.in_(free.scalar_subquery()), *conditions)
        .values(
            owner=owner,
            lease_until=until,
            fence=WorkflowRow.fence + 1,
            takeovers=WorkflowRow.takeovers + was_lost,
            wake_at=now,  # whoever finds the lease expired looks at it at once
            status=case(
                (WorkflowRow.status.in_(_WAITING), WorkflowStatus.RUNNING.value), else_=WorkflowRow.status
            ),
            started_at=func.coalesce(WorkflowRow.started_at, now),
        )
        .returning(*CLAIM_COLUMNS)
    )


@lru_cache(maxsize=4)
def arrival_statements(is_postgresql: bool, claims: bool) -> tuple[Any, Any]:
    """Return the statement that notes that an answer has arrived, and the one that inserts it.

    Args:
        is_postgresql: whether they are for PostgreSQL.
        claims: whether the first one also claims the workflow, and does nothing if anything has happened since
            this process gave it back.
    """
    now, until = _times(is_postgresql)
    note: dict[str, Any] = {"inputs": WorkflowRow.inputs + 1, "wake_at": now}
    if claims:
        note |= {
            "owner": bindparam("me", type_=String),
            "lease_until": until,
            "fence": WorkflowRow.fence + 1,
            "status": WorkflowStatus.RUNNING.value,
        }
        condition = and_(
            WorkflowRow.owner.is_(None),
            WorkflowRow.fence == bindparam("known_fence", type_=Integer),
            WorkflowRow.inputs == bindparam("known_inputs", type_=Integer),
            WorkflowRow.status == WorkflowStatus.WAITING.value,
        )
    else:
        condition = WorkflowRow.status.not_in(FINAL_VALUES)
    arrive = (
        update(WorkflowRow)
        .where(WorkflowRow.workflow_id == _ID, condition)
        .values(note)
        .returning(WorkflowRow.inputs, WorkflowRow.fence, WorkflowRow.wake_at)
    )
    columns = ("input_id", "workflow_id", "number", "kind", "key", "payload", "at")
    insert = insert_for("postgresql" if is_postgresql else "sqlite")(WorkflowInputRow)
    return arrive, insert.values({name: bindparam(name) for name in columns}).on_conflict_do_nothing()


def _times(is_postgresql: bool) -> tuple[Any, Any]:
    """Return now, and when a lease ends that begins now: for SQLite, times of this computer."""
    if not is_postgresql:
        return bindparam("now", type_=_TIME), bindparam("until", type_=_TIME)
    now = func.now(type_=_TIME)
    return now, now + bindparam("lease", type_=Interval)


def _is_runnable(functions: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
    """Whether a process that knows these functions can run a workflow."""
    return or_(
        *(
            and_(
                WorkflowRow.name == name,
                or_(
                    WorkflowRow.version.is_(None),
                    WorkflowRow.version.in_(versions),
                    # Compensations are carried out without the function.
                    WorkflowRow.status == WorkflowStatus.COMPENSATING.value,
                ),
            )
            for name, versions in functions
        )
    )
