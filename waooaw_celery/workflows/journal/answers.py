"""Records the answers to requests of workflows, and lets the process that has the waiting workflow go on with it.

A process that gave a workflow back keeps its function in memory for a moment. If nothing else has happened to the
workflow when an answer arrives in that process, the transaction that records the answer also claims the workflow:
there is nothing to read then. Otherwise the answer is recorded in a second transaction, and claims nothing.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.column_types import decoded
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS
from waooaw_celery.ledger.write.pipeline import PipelinedConnection
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.journal.records import InputKind, WorkflowInput
from waooaw_celery.workflows.journal.rows import FINAL_VALUES
from waooaw_celery.workflows.journal.statements import arrival_statements, time_parameters


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
        self._database, self._lease = database, lease
        # SQLite and other PostgreSQL drivers use a transaction with both statements.
        is_psycopg2 = database.url.drivername == "postgresql+psycopg2"
        self._pipeline = PipelinedConnection(database) if is_psycopg2 else None
        self._turn = threading.Lock()

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
        text = payload_text(payload)
        parameters: dict[str, Any] = {"id": workflow_id, "input_id": f"answer:{request_id}", "key": request_id}
        found: _Arrived | None = None
        if given_back is not None:
            claim = {"me": owner, "known_fence": given_back.fence, "known_inputs": given_back.known_inputs}
            found = self._write(parameters | claim, payload, text, claims=True)
        is_claimed = found is not None
        if found is None:
            found = self._write(parameters, payload, text, claims=False)
        if found is None:
            return None
        recorded = WorkflowInput(
            input_id=parameters["input_id"],
            number=found.inputs,
            kind=InputKind.ANSWER,
            key=request_id,
            payload=decoded(text),
            at=found.at,
        )
        return Answer(recorded, found.is_new, found.fence if is_claimed else None)

    def close(self) -> None:
        """Close the connection. The next answer opens another."""
        if self._pipeline is not None and self._turn.acquire(timeout=DEADLINE_SECONDS):
            try:
                self._pipeline.close()
            finally:
                self._turn.release()

    def _write(self, parameters: dict[str, Any], payload: JSON, text: str, *, claims: bool) -> _Arrived | None:
        """Record an answer if its workflow has not ended; with ``claims``, if nothing has happened to it."""
        what = f"record an answer for {parameters['id']}"
        if self._pipeline is None:
            return self._write_in_transaction(what, parameters, payload, claims)
        return self._write_at_once(self._pipeline, what, {**parameters, "payload": text}, claims)

    def _write_at_once(
        self, pipeline: PipelinedConnection, what: str, parameters: dict[str, Any], claims: bool
    ) -> _Arrived | None:
        """Record an answer in PostgreSQL with one statement, in one round trip."""
        if not self._turn.acquire(timeout=2 * DEADLINE_SECONDS):
            raise AuditUnavailable(f"could not {what}: other threads of this process wait for the database")
        try:
            more = {"lease": self._lease} if claims else {"final": FINAL_VALUES}
            pipeline.send(what, _CLAIM if claims else _NOTE, {**parameters, **more})
            rows = pipeline.receive(what)
        finally:
            self._turn.release()
        return _Arrived(*rows[0]) if rows else None

    def _write_in_transaction(
        self, what: str, parameters: dict[str, Any], payload: JSON, claims: bool
    ) -> _Arrived | None:
        """Record an answer in a transaction."""
        is_postgresql = self._database.is_postgresql
        arrive, insert = arrival_statements(is_postgresql, claims)
        times = time_parameters(is_postgresql, self._lease)
        with self._database.begin(what) as connection:
            row = connection.execute(arrive, {**parameters, **times}).one_or_none()
            if row is None:
                return None
            values = {
                "input_id": parameters["input_id"],
                "workflow_id": parameters["id"],
                "number": row.inputs,
                "kind": InputKind.ANSWER.value,
                "key": parameters["key"],
                "payload": payload,
                "at": row.wake_at,
            }
            added = connection.execute(insert, values)
        return _Arrived(row.inputs, row.fence, row.wake_at, bool(added.rowcount))


class _Arrived(NamedTuple):
    """The row of a workflow after an answer has arrived, and whether the answer is new."""

    inputs: int
    fence: int
    at: datetime
    is_new: bool


def _at_once(changes: str, condition: str) -> str:
    """Return what ``arrival_statements`` do as one statement of PostgreSQL."""
    return f"""
WITH arrived AS (
    UPDATE waooaw_workflows SET inputs = inputs + 1, wake_at = now(){changes}
    WHERE workflow_id = %(id)s AND {condition}
    RETURNING inputs, fence, wake_at
), added AS (
    INSERT INTO waooaw_workflow_inputs (input_id, workflow_id, number, kind, key, payload, at)
    SELECT %(input_id)s, %(id)s, inputs, 'answer', %(key)s, %(payload)s, wake_at FROM arrived
    ON CONFLICT DO NOTHING
    RETURNING number
)
SELECT inputs, fence, wake_at, EXISTS (SELECT FROM added) FROM arrived
"""  # noqa: S608 - both texts are constants


_NOTE = _at_once("", "status <> ALL (%(final)s)")
_CLAIM = _at_once(
    ", owner = %(me)s, lease_until = now() + %(lease)s, fence = fence + 1, status = 'running'",
    "owner IS NULL AND fence = %(known_fence)s AND inputs = %(known_inputs)s AND status = 'waiting'",
)
