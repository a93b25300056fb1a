"""Writes turns: the changes of workflows that their owners made.

Most turns are plain: they only have steps, and inputs that were taken. On PostgreSQL one statement writes those of
many workflows, in one round trip. Another one gives a single workflow back that waits. All other turns are written
in a transaction with a statement for each change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, update

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.clock import now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow
from waooaw_celery.ledger.write.pipeline import PipelinedConnection
from waooaw_celery.workflows.journal.records import Turn, TurnResult
from waooaw_celery.workflows.journal.rows import CHANGING, add_input, create, insert_into

_ACTION = "write to the journal of workflows"


class TurnStore:
    """Writes turns. Only one thread may use it at a time.

    Args:
        database: the ledger's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # SQLite and other PostgreSQL drivers write each turn in the same transaction as the others.
        is_psycopg2 = database.url.drivername == "postgresql+psycopg2"
        self._pipeline = PipelinedConnection(database) if is_psycopg2 else None

    def write(self, turns: Sequence[Turn]) -> list[TurnResult]:
        """Write turns, and return what became of each; see ``Journal.write``."""
        if self._pipeline is not None and len(turns) == 1 and _gives_back(turns[0]):
            return [self._give_back(self._pipeline, turns[0])]  # several of them share a transaction
        plain = set() if self._pipeline is None else _plain_workflows(turns)
        owned = self._write_plain([turn for turn in turns if turn.workflow_id in plain])
        others = iter(self._write_others([turn for turn in turns if turn.workflow_id not in plain]))
        return [
            next(others)
            if turn.workflow_id not in plain
            else TurnResult.WRITTEN
            if turn.workflow_id in owned
            else TurnResult.FENCED
            for turn in turns
        ]

    def close(self) -> None:
        """Close the connection. The next turns open another."""
        if self._pipeline is not None:
            self._pipeline.close()

    def _write_plain(self, turns: Sequence[Turn]) -> set[str]:
        """Write plain turns of PostgreSQL; return the workflows that this process owns."""
        if not turns or self._pipeline is None:
            return set()
        steps = _newest_steps(turns)
        is_one = len(turns) == len(steps) == 1
        try:
            if is_one:
                self._pipeline.send(_ACTION, _ONE, _parameters_of_one(turns[0], steps[0]))
            else:
                self._pipeline.send(_ACTION, _PLAIN, _parameters(turns, steps))
        except (ValueError, OverflowError) as error:  # a text or a number that the driver cannot encode
            raise AuditUnavailable(f"could not {_ACTION}: {error}") from error
        return {workflow_id for (workflow_id,) in self._pipeline.receive(_ACTION)}

    def _give_back(self, pipeline: PipelinedConnection, turn: Turn) -> TurnResult:
        """Give back a workflow of PostgreSQL in which nothing else has changed."""
        parameters = {
            "workflow_id": turn.workflow_id,
            "fence": turn.fence,
            "known_inputs": turn.known_inputs,
            "last_change": turn.last_change,
            **turn.columns,
        }
        pipeline.send(_ACTION, _GIVE_BACK, parameters)
        [(is_free, is_owned)] = pipeline.receive(_ACTION)
        if is_free:
            return TurnResult.WRITTEN
        return TurnResult.NEW_INPUTS if is_owned else TurnResult.FENCED

    def _write_others(self, turns: Sequence[Turn]) -> list[TurnResult]:
        if not turns:
            return []
        with self._database.begin(_ACTION) as connection:
            now = now_within(self._database)
            # All processes and threads lock the rows in one order, so that they cannot deadlock.
            order = sorted(range(len(turns)), key=lambda index: turns[index].workflow_id)
            written = {index: _write_workflow(connection, turns[index]) for index in order}
            results = [written[index] for index in range(len(turns))]
            valid = [turn for turn, result in zip(turns, results, strict=True) if result is not TurnResult.FENCED]
            _write_steps(connection, valid)
            taken = [input_id for turn in valid for input_id in turn.taken]
            if taken:
                connection.execute(delete(WorkflowInputRow).where(WorkflowInputRow.input_id.in_(taken)))
            for turn in valid:
                create(connection, turn.started)
                for workflow_id, kind, key, payload, input_id in turn.reports:
                    add_input(connection, now, workflow_id, kind, key, payload, input_id)
        return results


def _plain_workflows(turns: Sequence[Turn]) -> set[str]:
    """Return the workflows whose turns are all plain, and of one owner."""
    owners: dict[str, int] = {}
    others = set()
    for turn in turns:
        is_plain = turn.steps and turn.known_inputs is None and not (turn.columns or turn.started or turn.reports)
        if not is_plain or owners.setdefault(turn.workflow_id, turn.fence) != turn.fence:
            others.add(turn.workflow_id)
    return set(owners) - others


def _gives_back(turn: Turn) -> bool:
    """Whether a turn only gives a workflow back that waits."""
    changes = turn.steps or turn.taken or turn.started or turn.reports
    return turn.known_inputs is not None and turn.columns.keys() == _WAITING_COLUMNS and not changes


def _newest_steps(turns: Sequence[Turn]) -> list[Mapping[str, Any]]:
    """Return the steps of turns. Of several changes of one the newest: no statement changes a row twice."""
    return list(
        {(step["workflow_id"], step["run"], step["path"]): step for turn in turns for step in turn.steps}.values()
    )


# --- plain turns, on PostgreSQL

_STEP_TYPES = {
    **dict.fromkeys(
        ("workflow_id", "path", "kind", "status", "request_id", "details", "outcome", "error"), "varchar"
    ),
    **dict.fromkeys(("run", "number", "changed", "attempts"), "integer"),
    **dict.fromkeys(("due_at", "started_at", "ended_at"), "timestamptz"),
}
_JSON_COLUMNS = ("details", "outcome", "error")
#: The parameters are arrays, so that the text is the same for any number of rows.
_PLAIN = f"""
WITH owned AS (
    UPDATE waooaw_workflows AS workflow SET last_change = given.last_change, takeovers = 0
    FROM unnest(%(workflows)s::varchar[], %(fences)s::integer[], %(changes)s::integer[])
        AS given (workflow_id, fence, last_change)
    WHERE workflow.workflow_id = given.workflow_id AND workflow.fence = given.fence
    RETURNING workflow.workflow_id
), stored AS (
    INSERT INTO waooaw_workflow_steps ({", ".join(_STEP_TYPES)})
    SELECT {", ".join(f"step.{name}" for name in _STEP_TYPES)}
    FROM unnest({", ".join(f"%({name})s::{type_}[]" for name, type_ in _STEP_TYPES.items())})
        AS step ({", ".join(_STEP_TYPES)})
    JOIN owned ON owned.workflow_id = step.workflow_id
    ON CONFLICT (workflow_id, run, path) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in CHANGING)}
), taken AS (
    DELETE FROM waooaw_workflow_inputs AS input USING owned
    WHERE input.input_id = ANY (%(taken)s::varchar[]) AND input.workflow_id = owned.workflow_id
)
SELECT workflow_id FROM owned
"""  # noqa: S608 - the names are those of columns


#: The same for one turn with one step, without arrays: PostgreSQL takes half of the time for it.
_ONE = f"""
WITH owned AS (
    UPDATE waooaw_workflows SET last_change = %(last_change)s, takeovers = 0
    WHERE workflow_id = %(workflow_id)s AND fence = %(fence)s
    RETURNING workflow_id
), stored AS (
    INSERT INTO waooaw_workflow_steps ({", ".join(_STEP_TYPES)})
    SELECT {", ".join(f"%({name})s::{type_}" for name, type_ in _STEP_TYPES.items())} FROM owned
    ON CONFLICT (workflow_id, run, path) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in CHANGING)}
), taken AS (
    DELETE FROM waooaw_workflow_inputs AS input USING owned
    WHERE input.input_id = ANY (%(taken)s::varchar[]) AND input.workflow_id = owned.workflow_id
)
SELECT workflow_id FROM owned
"""  # noqa: S608 - the names are those of columns


_WAITING_COLUMNS = {"status", "waits_for", "wake_at"}
#: Give a workflow back unless more has arrived. If another process owns it by now, the fence differs.
_GIVE_BACK = """
WITH freed AS (
    UPDATE waooaw_workflows
    SET owner = NULL, lease_until = NULL, takeovers = 0, last_change = %(last_change)s, status = %(status)s,
        waits_for = %(waits_for)s, wake_at = %(wake_at)s::timestamptz
    WHERE workflow_id = %(workflow_id)s AND fence = %(fence)s AND inputs = %(known_inputs)s
    RETURNING workflow_id
)
SELECT EXISTS (SELECT FROM freed),
       EXISTS (SELECT FROM waooaw_workflows WHERE workflow_id = %(workflow_id)s AND fence = %(fence)s)
"""


def _parameters_of_one(turn: Turn, step: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: step[name] for name in _STEP_TYPES}
    for name in _JSON_COLUMNS:
        found[name] = None if found[name] is None else payload_text(found[name])
    return {**found, "fence": turn.fence, "last_change": turn.last_change, "taken": list(turn.taken)}


def _parameters(turns: Sequence[Turn], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # Sorted like the others.
    newest = sorted({turn.workflow_id: turn for turn in turns}.values(), key=lambda turn: turn.workflow_id)
    found: dict[str, Any] = {name: [step[name] for step in steps] for name in _STEP_TYPES}
    for name in _JSON_COLUMNS:
        found[name] = [None if value is None else payload_text(value) for value in found[name]]
    return {
        **found,
        "workflows": [turn.workflow_id for turn in newest],
        "fences": [turn.fence for turn in newest],
        "changes": [turn.last_change for turn in newest],
        "taken": [input_id for turn in turns for input_id in turn.taken],
    }


# --- other turns


def _write_workflow(connection: Connection, turn: Turn) -> TurnResult:
    """Write the row of a workflow, and give it back if that is wanted and nothing has arrived meanwhile."""
    own = and_(WorkflowRow.workflow_id == turn.workflow_id, WorkflowRow.fence == turn.fence)
    values = {**turn.columns, "last_change": turn.last_change}
    if turn.steps:
        values.setdefault("takeovers", 0)
    if turn.known_inputs is not None:
        free = {"takeovers": 0, **values, "owner": None, "lease_until": None}
        statement = update(WorkflowRow).where(own, WorkflowRow.inputs == turn.known_inputs).values(free)
        if connection.execute(statement).rowcount:
            return TurnResult.WRITTEN
        for name in ("status", "wake_at", "waits_for"):  # it goes on
            values.pop(name, None)
    if connection.execute(update(WorkflowRow).where(own).values(values)).rowcount:
        return TurnResult.WRITTEN if turn.known_inputs is None else TurnResult.NEW_INPUTS
    return TurnResult.FENCED


def _write_steps(connection: Connection, turns: Sequence[Turn]) -> None:
    steps = _newest_steps(turns)
    if steps:
        insert = insert_into(connection)(WorkflowStepRow)
        changed = {name: insert.excluded[name] for name in CHANGING}
        statement = insert.on_conflict_do_update(index_elements=["workflow_id", "run", "path"], set_=changed)
        connection.execute(statement, steps)
