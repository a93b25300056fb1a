"""Reads and writes the journal of workflows, and decides which process owns a workflow.

A workflow has one owner at a time: a process that holds a lease, with a number that grows with each owner (a
fencing token). What an older owner writes is refused. Whoever is not the owner only adds inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, case, exists, func, or_, select, update

from waooaw_celery.ledger.database.clock import now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.journal.answers import AnswerStore
from waooaw_celery.workflows.journal.records import (
    Child,
    Claim,
    InputKind,
    Loaded,
    Turn,
    TurnResult,
    WorkflowInput,
)
from waooaw_celery.workflows.journal.rows import (
    FINAL_VALUES,
    add_input,
    claim_of,
    input_of,
    report_of,
    step_of,
)
from waooaw_celery.workflows.journal.statements import (
    CHANGED,
    INPUT_COUNT,
    INPUTS,
    claim_statement,
    time_parameters,
)
from waooaw_celery.workflows.journal.turns import TurnStore
from waooaw_celery.workflows.states import WorkflowStatus

#: The type of the error of a workflow that no running worker has in its version.
NO_WORKER = "NoWorkerForVersion"
#: The most inputs that are read at once. The others follow when these are taken.
_INPUTS_AT_ONCE = 5000
#: They are stuck already, or any version can go on with them.
_NOT_MARKED = [WorkflowStatus.STUCK.value, WorkflowStatus.COMPENSATING.value]

#: The functions that a process can run: the name of each, with its versions.
Known = Mapping[str, Sequence[int]]


class Journal:
    """The journal of workflows.

    Every method raises AuditUnavailable if the database does not answer.

    Args:
        database: the ledger's database.
        lease_seconds: seconds for which a process owns a workflow without news.
    """

    def __init__(self, database: Database, lease_seconds: float = 15.0) -> None:
        self.database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._turns = TurnStore(database)
        self.answers = AnswerStore(database, self._lease)

    def claim(
        self,
        owner: str,
        known: Known,
        *,
        ids: Sequence[str] | None = None,
        held: Sequence[str] = (),
        limit: int = 100,
    ) -> list[Claim]:
        """Become the owner of workflows that are due and that no living process owns.

        Args:
            owner: name of this process.
            known: the functions that it can run.
            ids: only these workflows, due or not; None: the due ones, the most urgent first.
            held: the workflows that this process runs. While the database does not answer, their leases end and
                their outcomes wait: this process does not take them over from itself, and so refuse its outcomes.
            limit: how many at most.
        """
        functions = tuple((name, tuple(versions)) for name, versions in known.items())
        statement = claim_statement(self.database.is_postgresql, functions, ids is not None)
        parameters = {"me": owner, "ids": list(ids or ()), "held": list(held), "most": limit}
        parameters |= time_parameters(self.database.is_postgresql, self._lease)
        with self.database.begin("claim workflows") as connection:
            return [claim_of(row) for row in connection.execute(statement, parameters)]

    def load(self, workflow_id: str, run: int, after: int = 0, after_input: int = 0) -> Loaded:
        """Return the steps that have changed since a change, and the inputs that were not taken.

        Args:
            workflow_id: the workflow.
            run: the run whose steps are wanted.
            after: the number of the newest change that the caller knows; 0: none.
            after_input: the number of the newest input that the caller knows; 0: none.
        """
        with self.database.begin(f"read the journal of {workflow_id}") as connection:
            found, known = _read_inputs(connection, workflow_id, after_input)
            given = {"id": workflow_id, "run": run, "after": after}
            return Loaded(
                [(row.changed, step_of(row)) for row in connection.execute(CHANGED, given)], found, known
            )

    def load_inputs(self, workflow_id: str, after_input: int) -> Loaded:
        """Return the inputs that were not taken, to a process that knows all steps.

        Args:
            workflow_id: the workflow.
            after_input: the number of the newest input that the caller knows; 0: none.
        """
        with self.database.begin(f"read the inputs of {workflow_id}") as connection:
            return Loaded([], *_read_inputs(connection, workflow_id, after_input))

    def with_new_inputs(self, known: Mapping[str, int]) -> list[str]:
        """Return those of some workflows for which more inputs have arrived than are known."""
        query = select(WorkflowRow.workflow_id, WorkflowRow.inputs).where(WorkflowRow.workflow_id.in_(list(known)))
        with self.database.begin("look for inputs of workflows") as connection:
            return [row.workflow_id for row in connection.execute(query) if row.inputs > known[row.workflow_id]]

    def write(self, turns: Sequence[Turn]) -> list[TurnResult]:
        """Write turns. A turn of a workflow that another process owns by now is left out.

        Each turn is written whole or not at all. Writing turns again changes nothing. Only one thread may write.
        """
        return self._turns.write(turns)

    def close(self) -> None:
        """Close the connections that write turns and answers."""
        self._turns.close()
        self.answers.close()

    def child(self, workflow_id: str) -> Child | None:
        """Return a workflow as its parent sees it; None: there is none with this id."""
        names = ("parent_id", "name", "input_digest", "status", "result", "error")
        query = select(*(getattr(WorkflowRow, name) for name in names)).where(
            WorkflowRow.workflow_id == workflow_id
        )
        with self.database.begin(f"look for workflow {workflow_id}") as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        status = WorkflowStatus(row.status)
        report = report_of(workflow_id, status, row.result, row.error) if status.final else None
        return Child(row.parent_id, row.name, row.input_digest, report)

    def renew(self, owner: str, ids: Sequence[str]) -> None:
        """Renew the leases of workflows that a process owns."""
        until = now_within(self.database) + self._lease
        own = (
            select(WorkflowRow.workflow_id)
            .where(WorkflowRow.workflow_id.in_(ids), WorkflowRow.owner == owner)
            .order_by(WorkflowRow.workflow_id)  # the order in which turns are written: no deadlocks
            .with_for_update()
        )
        with self.database.begin("renew the leases of workflows") as connection:
            connection.execute(
                update(WorkflowRow)
                .where(WorkflowRow.workflow_id.in_(own.scalar_subquery()), WorkflowRow.owner == owner)
                .values(lease_until=until)
            )

    def give_back(self, owner: str) -> None:
        """Let other processes claim everything that a process owns: it ends.

        They count as lost: their requests may not be published yet.
        """
        with self.database.begin("give back workflows") as connection:
            connection.execute(
                update(WorkflowRow)
                .where(WorkflowRow.owner == owner)
                .values(
                    owner=None,
                    lease_until=None,
                    fence=WorkflowRow.fence + 1,
                    takeovers=case((WorkflowRow.takeovers == 0, 1), else_=WorkflowRow.takeovers),
                )
            )

    def next_wake(self) -> datetime | None:
        """Return when the next workflow must be looked at without an input; None: none must."""
        with self.database.begin("read when a workflow is due") as connection:
            found: datetime | None = connection.scalar(select(func.min(WorkflowRow.wake_at)))
            return found

    def mark_without_worker(self, known: Known, error: Mapping[str, Any]) -> list[str]:
        """Mark as STUCK the due workflows whose function this process has, but not in their version.

        Args:
            known: the functions that it can run.
            error: why they are stuck.

        Returns:
            The ids of those that were not STUCK yet.
        """
        now = now_within(self.database)
        others = [
            and_(WorkflowRow.name == name, WorkflowRow.version.not_in(list(versions)))
            for name, versions in known.items()
        ]
        statement = (
            update(WorkflowRow)
            .where(
                or_(*others),
                WorkflowRow.wake_at <= now - self._lease,
                or_(WorkflowRow.owner.is_(None), WorkflowRow.lease_until <= now),
                WorkflowRow.status.not_in([*FINAL_VALUES, *_NOT_MARKED]),
            )
            .returning(WorkflowRow.workflow_id)
        )
        was_cancelled = exists().where(
            WorkflowInputRow.workflow_id == WorkflowRow.workflow_id,
            WorkflowInputRow.kind == InputKind.CANCEL.value,
        )
        columns: dict[str, Any] = {
            "status": WorkflowStatus.STUCK.value,
            "waits_for": None,
            "version": case((was_cancelled, None), else_=WorkflowRow.version),  # as ``add_input`` does
        }
        is_paused = WorkflowRow.status == WorkflowStatus.PAUSED.value
        found: list[str] = []
        with self.database.begin("mark workflows without a worker") as connection:
            for condition, more in ((is_paused, {"paused": True}), (~is_paused, {})):
                values = {**columns, "error": {**error, "type": NO_WORKER, **more}}
                found += connection.scalars(statement.where(condition).values(values))
        return found

    def add_input(self, workflow_id: str, kind: InputKind, key: str, payload: JSON, input_id: str) -> bool | None:
        """Add an input; see ``add_input``."""
        with self.database.begin(f"record an input of {workflow_id}") as connection:
            return add_input(connection, now_within(self.database), workflow_id, kind, key, payload, input_id)


def _read_inputs(connection: Connection, workflow_id: str, after_input: int) -> tuple[list[WorkflowInput], int]:
    """Return the inputs that were not taken, and how many have arrived in all."""
    # Counted before they are read: one that arrives meanwhile is looked for again.
    known = connection.scalar(INPUT_COUNT, {"id": workflow_id}) or 0
    given = {"id": workflow_id, "after": after_input, "most": _INPUTS_AT_ONCE}
    found = [input_of(row) for row in connection.execute(INPUTS, given)]
    if len(found) == _INPUTS_AT_ONCE:
        known = found[-1].number
    return found, known
