"""One process at a time writes the journal of a workflow, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import delete

from waooaw_celery import Priority
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.workflow_models import WorkflowInputRow, WorkflowRow, WorkflowStepRow
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.workflows.journal.journal import Journal
from waooaw_celery.workflows.journal.records import Claim, InputKind, StepRecord, Turn, TurnResult
from waooaw_celery.workflows.journal.rows import create, new_workflow, step_columns
from waooaw_celery.workflows.journal.writer import TurnWriter
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus

KNOWN = {"shop.order": [1]}


@pytest.fixture
def workflow_id(database: Database) -> Iterator[str]:
    """The id of a workflow that nobody owns."""
    new_id = uuid4().hex
    row = new_workflow(
        workflow_id=new_id,
        name="shop.order",
        agent="shop",
        version=1,
        priority=Priority.NORMAL,
        given={},
        input_digest="",
        conversation_id=new_id,
        created_at=datetime.now(UTC),
        retention=RetentionPolicy.DAYS_30,
    )
    with database.begin("create a workflow") as connection:
        assert create(connection, [row]) == 1
    yield new_id
    with database.begin("delete the workflow") as connection:
        for table in (WorkflowInputRow, WorkflowStepRow, WorkflowRow):
            connection.execute(delete(table).where(table.workflow_id == new_id))


def turn(claim: Claim, path: str, known_inputs: int | None = None) -> Turn:
    """Return a turn of the owner of a workflow, in which a step got its outcome."""
    step = StepRecord(
        path=path,
        kind=StepKind.STEP,
        status=StepStatus.COMPLETED,
        number=1,
        outcome=path,
        started_at=datetime.now(UTC),
    )
    return Turn(
        workflow_id=claim.workflow_id,
        run=claim.run,
        fence=claim.fence,
        last_change=claim.last_change + 1,
        steps=[step_columns(claim.workflow_id, claim.run, claim.last_change + 1, step)],
        columns={"status": WorkflowStatus.WAITING.value},
        known_inputs=known_inputs,
    )


def paths(journal: Journal, claim: Claim) -> list[str]:
    return [step.path for _, step in journal.load(claim.workflow_id, claim.run).changed]


def test_a_process_whose_lease_has_ended_writes_nothing_once_another_owns_the_workflow(
    database: Database, workflow_id: str
) -> None:
    """Its turn is refused whole: neither the workflow nor the step changes."""
    slow, journal = Journal(database, lease_seconds=0), Journal(database)
    [old] = slow.claim("slow", KNOWN, ids=[workflow_id])
    [new] = journal.claim("other", KNOWN, ids=[workflow_id])
    assert new.fence > old.fence
    assert new.takeovers == 1
    assert journal.write([turn(old, "late"), turn(new, "own")]) == [TurnResult.FENCED, TurnResult.WRITTEN]
    assert paths(journal, new) == ["own"]


def test_plain_turns_are_written_whole_or_refused(database: Database, workflow_id: str) -> None:
    """One statement writes their steps, replaces what has changed, and deletes the inputs that were taken."""
    slow, journal = Journal(database, lease_seconds=0), Journal(database)
    [old] = slow.claim("slow", KNOWN, ids=[workflow_id])
    [new] = journal.claim("other", KNOWN, ids=[workflow_id])
    for number in (1, 2):
        assert journal.add_input(workflow_id, InputKind.SIGNAL, "paid", number, f"{workflow_id}-{number}")
    taken = [f"{workflow_id}-1"]
    late = replace(turn(old, "late"), columns={}, taken=taken)
    assert journal.write([late]) == [TurnResult.FENCED]
    assert paths(journal, new) == []
    first = replace(turn(new, "a"), columns={}, taken=taken)
    second = replace(turn(new, "b"), columns={}, last_change=new.last_change + 2)
    changed = step_columns(
        workflow_id,
        new.run,
        new.last_change + 2,
        StepRecord(
            path="a", kind=StepKind.STEP, number=1, outcome={"text": "ä\0'\""}, started_at=datetime.now(UTC)
        ),
    )
    second.steps.append(changed)
    assert journal.write([first, second]) == [TurnResult.WRITTEN, TurnResult.WRITTEN]
    loaded = journal.load(workflow_id, new.run)
    assert {step.path: step.outcome for _, step in loaded.changed} == {"a": {"text": "ä\0'\""}, "b": "b"}
    assert [each.payload for each in loaded.inputs] == [2]


def test_an_answer_that_comes_twice_is_one_input(database: Database, workflow_id: str) -> None:
    """Its id is that of the request."""
    journal = Journal(database)
    answer = (InputKind.ANSWER, "request-1", {"result": 1}, f"answer:{workflow_id}")
    assert journal.add_input(workflow_id, *answer) is True
    assert journal.add_input(workflow_id, *answer) is False
    [claim] = journal.claim("first", KNOWN, ids=[workflow_id])
    assert len(journal.load(workflow_id, claim.run).inputs) == 1


def test_a_workflow_has_one_owner_while_its_lease_lasts(database: Database, workflow_id: str) -> None:
    """A second process cannot claim it."""
    journal = Journal(database)
    assert journal.claim("first", KNOWN, ids=[workflow_id])
    assert not journal.claim("second", KNOWN, ids=[workflow_id])


def test_a_workflow_is_not_given_back_when_an_input_has_arrived(database: Database, workflow_id: str) -> None:
    """The step is written, and the owner keeps the workflow until it knows of all inputs."""
    journal = Journal(database)
    [claim] = journal.claim("first", KNOWN, ids=[workflow_id])
    assert journal.add_input(workflow_id, InputKind.SIGNAL, "paid", True, "input-1")
    assert journal.write([turn(claim, "a", claim.inputs)]) == [TurnResult.NEW_INPUTS]
    assert paths(journal, claim) == ["a"]
    assert not journal.claim("second", KNOWN, ids=[workflow_id])
    assert journal.write([turn(claim, "a", claim.inputs + 1)]) == [TurnResult.WRITTEN]
    assert journal.claim("second", KNOWN, ids=[workflow_id])


class _Refusing(Journal):
    """A journal whose database refuses one turn, and does not answer once in the middle."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.order: list[str] = []
        self._away = True

    def write(self, turns: Sequence[Turn]) -> list[TurnResult]:
        names = [turn.steps[0]["path"] for turn in turns]
        if "refused" in names:
            raise AuditUnavailable("the database refuses it") from ValueError("a value")
        if self._away and names == ["first"]:
            self._away = False
            raise AuditUnavailable("the database is away")
        self.order += names
        return [TurnResult.WRITTEN] * len(turns)


def test_turns_keep_their_order_when_one_is_refused_and_the_database_goes_away(
    database: Database, workflow_id: str
) -> None:
    """Only the refused turn fails."""
    [claim] = Journal(database).claim("first", KNOWN, ids=[workflow_id])
    journal = _Refusing(database)

    async def write() -> list[TurnResult | BaseException]:
        writer = TurnWriter(journal)
        turns = [turn(claim, path) for path in ("refused", "first", "second")]
        try:
            return await asyncio.wait_for(asyncio.gather(*map(writer.write, turns), return_exceptions=True), 20)
        finally:
            writer.close()

    refused, *others = asyncio.run(write())
    assert isinstance(refused, AuditUnavailable)
    assert others == [TurnResult.WRITTEN] * 2
    assert journal.order == ["first", "second"]
