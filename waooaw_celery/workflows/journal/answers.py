"""Records the answers to requests of workflows, and lets the process that has the waiting workflow go on with it.

A process that gave a workflow back keeps its function in memory for a moment. If nothing else has happened to the
workflow when an answer arrives in that process, the transaction that records the answer also claims the workflow:
there is nothing to read then.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import DateTime, Integer, String, and_, bindparam, case, func, update

from waooaw_celery.ledger.database.column_types import as_read
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.journal.records import InputKind, WorkflowInput
from waooaw_celery.workflows.journal.rows import FINAL_VALUES, insert_for
from waooaw_celery.workflows.states import WorkflowStatus

#: No workflow has this number of a claim.
_NONE = -1


class GivenBack(NamedTuple):
    """A workflow that a process has given back and still has in memory.

    Attributes:
        fence: the number of its last claim.
        known_inputs: how many inputs it knew of.
    """

    fence: int
    known_inputs: int


class Answer(NamedTuple):
    """An answer that was recorded.

    Attributes:
        recorded: the answer as an input.
        is_new: whether it was not recorded before.
        fence: the number of the claim of this process; None: it did not claim the workflow.
    """

    recorded: WorkflowInput
    is_new: bool
    fence: int | None


class AnswerStore:
    """Records answers. Any thread may use it.

    Args:
        database: the ledger's database.
        lease: for how long a process owns a workflow without news.
    """

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database = database
        # The statements are made once: to make one takes longer than to execute it.
        self._arrive, self._insert = _statements(database, lease)

    def add(
        self, workflow_id: str, request_id: str, payload: JSON, owner: str, given_back: GivenBack | None
    ) -> Answer | None:
        """Record an answer, and claim its workflow if nothing else has happened since it was given back.

        Args:
            workflow_id: the workflow.
            request_id: the request that is answered.
            payload: its result or its error.
            owner: name of this process.
            given_back: what this process has of the workflow; None: nothing.

        Returns:
            The answer; None: the workflow has ended, or there is none.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        fence, known = given_back or (_NONE, _NONE)
        now = datetime.now(UTC)  # only SQLite uses it
        parameters = {"id": workflow_id, "me": owner, "known_fence": fence, "known_inputs": known, "now": now}
        with self._database.begin(f"record an answer for {workflow_id}") as connection:
            row = connection.execute(self._arrive, parameters).one_or_none()
            if row is None:
                return None
            recorded = WorkflowInput(
                input_id=f"answer:{request_id}",
                number=row.inputs,
                kind=InputKind.ANSWER,
                key=request_id,
                payload=as_read(payload),
                at=row.wake_at,
            )
            added = connection.execute(self._insert, {"workflow_id": workflow_id, **asdict(recorded)})
        is_claimed = given_back is not None and (row.owner, row.fence) == (owner, fence + 1)
        return Answer(recorded, bool(added.rowcount), row.fence if is_claimed else None)


def _statements(database: Database, lease: timedelta) -> tuple[Any, Any]:
    """Return the statement that changes the workflow, and the one that inserts the answer."""
    now: Any = (
        func.now(type_=DateTime(timezone=True))
        if database.is_postgresql
        else bindparam("now", type_=DateTime(timezone=True))
    )
    owner = bindparam("me", type_=String)
    is_untouched = and_(
        WorkflowRow.owner.is_(None),
        WorkflowRow.fence == bindparam("known_fence", type_=Integer),
        WorkflowRow.inputs == bindparam("known_inputs", type_=Integer),
        WorkflowRow.status == WorkflowStatus.WAITING.value,
    )
    claimed = {
        "owner": owner,
        "lease_until": now + lease,
        "fence": WorkflowRow.fence + 1,
        "status": WorkflowStatus.RUNNING.value,
    }
    arrive = (
        update(WorkflowRow)
        .where(WorkflowRow.workflow_id == bindparam("id", type_=String), WorkflowRow.status.not_in(FINAL_VALUES))
        .values(
            inputs=WorkflowRow.inputs + 1,
            wake_at=now,
            **{
                name: case((is_untouched, value), else_=getattr(WorkflowRow, name))
                for name, value in claimed.items()
            },
        )
        .returning(WorkflowRow.inputs, WorkflowRow.fence, WorkflowRow.owner, WorkflowRow.wake_at)
    )
    columns = ("input_id", "workflow_id", "number", "kind", "key", "payload", "at")
    insert = insert_for("postgresql" if database.is_postgresql else "sqlite")(WorkflowInputRow)
    return arrive, insert.values({name: bindparam(name) for name in columns}).on_conflict_do_nothing()
