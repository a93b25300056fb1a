"""The steps of one running workflow, and the changes of them that are to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.journal.records import (
    Claim,
    InputKind,
    StepRecord,
    Turn,
    TurnResult,
    WorkflowInput,
)
from waooaw_celery.workflows.journal.rows import step_columns
from waooaw_celery.workflows.journal.writer import TurnWriter
from waooaw_celery.workflows.states import StepStatus


class Changes:
    """The journal of one workflow in memory. All methods run on the event loop.

    Args:
        claim: the claim of the workflow.
        writer: writes the turns of the process.
        now: returns the time by the reference clock.
        on_fenced: called when another process owns the workflow.
        on_written: called after each turn, when its callbacks were called.
        on_failed: called with the error of a turn that can never be written.
    """

    def __init__(
        self,
        claim: Claim,
        writer: TurnWriter,
        now: Callable[[], datetime],
        on_fenced: Callable[[], None],
        on_written: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self.records: dict[str, StepRecord] = {}
        #: The steps that have no outcome yet; those of them that have a time; and those that wait for an answer.
        self.open: dict[str, StepRecord] = {}
        self.due: dict[str, StepRecord] = {}
        self.by_request: dict[str, StepRecord] = {}
        self.last_change = claim.last_change
        self._claim, self._writer, self._now = claim, writer, now
        self._on_fenced, self._on_written, self._on_failed = on_fenced, on_written, on_failed
        self._numbers = 0
        self._steps: dict[str, dict[str, Any]] = {}
        self._taken: list[str] = []
        self._columns: dict[str, Any] = {}
        self._later: dict[str, Any] = {}
        self._started: list[dict[str, Any]] = []
        self._after: list[Callable[[], None]] = []
        #: After how many rounds of the event loop the changes are written; 0: nothing is to be written.
        self._rounds = 0
        self._tasks: set[asyncio.Task[TurnResult]] = set()
        #: Turns that are being written.
        self.writing = 0

    def load(self, changed: Iterable[tuple[int, StepRecord]]) -> list[StepRecord]:
        """Take over what the journal has and this process does not know yet; return these steps."""
        found = []
        for number, record in changed:
            self.records[record.path] = record
            self._index(record)
            self._numbers = max(self._numbers, record.number)
            self.last_change = max(self.last_change, number)
            found.append(record)
        return found

    def renew(self, claim: Claim) -> None:
        """Go on under a new claim of the same workflow."""
        self._claim = claim
        self.last_change = max(self.last_change, claim.last_change)

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        return bool(self._steps or self._taken or self._columns or self._started or self._after)

    def change(self, record: StepRecord, *, then: Callable[[], None] | None = None, rounds: int = 1) -> None:
        """Note that a step is new or has changed.

        Args:
            record: the step, with its new values.
            then: called when that is written.
            rounds: of the event loop after which it is written at the latest.
        """
        if not record.number:
            self._numbers += 1
            record.number = self._numbers
            self.records[record.path] = record
        self._index(record)
        self.last_change += 1
        self._steps[record.path] = step_columns(self._claim.workflow_id, self._claim.run, self.last_change, record)
        if then is not None:
            self._after.append(then)
        self._schedule(rounds)

    def _index(self, record: StepRecord) -> None:
        is_open = record.status is StepStatus.STARTED
        for index, belongs in ((self.open, is_open), (self.due, is_open and record.due_at is not None)):
            if belongs:
                index[record.path] = record
            else:
                index.pop(record.path, None)
        if is_open and record.request_id is not None:
            self.by_request[record.request_id] = record

    def complete(
        self, record: StepRecord, outcome: JSON, then: Callable[[], None] | None = None, rounds: int = 1
    ) -> None:
        """Record the result of a step; see ``change``."""
        record.status, record.outcome, record.error = StepStatus.COMPLETED, outcome, None
        record.due_at, record.ended_at = None, self._now()
        self.change(record, then=then, rounds=rounds)

    def fail(self, record: StepRecord, error: JSON, then: Callable[[], None] | None = None) -> None:
        """Record the error of a step."""
        record.status, record.error, record.due_at = StepStatus.FAILED, error, None
        record.ended_at = self._now()
        self.change(record, then=then)

    def take(self, taken: WorkflowInput, rounds: int = 1) -> None:
        """Note that an input was taken: it is deleted together with the changes that it has caused."""
        self._taken.append(taken.input_id)
        self._schedule(rounds)

    def set(self, then: Callable[[], None] | None = None, **columns: Any) -> None:
        """Change columns of the workflow."""
        self._columns |= columns
        if then is not None:
            self._after.append(then)
        self._schedule()

    def set_later(self, **columns: Any) -> None:
        """Change columns of the workflow with the next changes, whenever they are."""
        self._later |= columns

    def start_child(self, row: dict[str, Any]) -> None:
        """Create a child workflow together with the next changes."""
        self._started.append(row)

    async def write(
        self,
        *,
        known_inputs: int | None = None,
        reports: Iterable[tuple[str, InputKind, str, JSON, str]] = (),
        **columns: Any,
    ) -> TurnResult:
        """Write all changes, and call what waits for them.

        Args:
            known_inputs: to give the workflow back, how many inputs are known.
            reports: inputs of other workflows.
            columns: new values of columns of the workflow.
        """
        turn = Turn(
            workflow_id=self._claim.workflow_id,
            run=self._claim.run,
            fence=self._claim.fence,
            last_change=self.last_change,
            steps=list(self._steps.values()),
            taken=self._taken,
            columns={**self._later, **self._columns, **columns},
            known_inputs=known_inputs,
            started=list(self._started),
            reports=list(reports),
        )
        after = self._after
        self._steps, self._taken, self._columns, self._later = {}, [], {}, {}
        self._started, self._after = [], []
        self.writing += 1
        try:
            result = await self._writer.write(turn)
        finally:
            self.writing -= 1
        if result is TurnResult.FENCED:
            self._on_fenced()
        else:
            for call in after:
                call()
            self._on_written()
        return result

    def _schedule(self, rounds: int = 1) -> None:
        """Write the changes after some rounds of the event loop: those of these rounds are written together."""
        if not self._rounds:
            asyncio.get_running_loop().call_soon(self._count_down)
        self._rounds = min(self._rounds or rounds, rounds)

    def _count_down(self) -> None:
        self._rounds -= 1
        if self._rounds:
            asyncio.get_running_loop().call_soon(self._count_down)
        elif self.pending:
            self._tasks.add(task := asyncio.ensure_future(self.write()))
            task.add_done_callback(self._end_writing)

    def _end_writing(self, task: asyncio.Task[TurnResult]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failed(error)
