"""How a workflow ends in this process: it returns, fails, is cancelled, paused, stuck, or goes on as a new run."""

from __future__ import annotations

import asyncio
from typing import Any

from waooaw_celery.errors import HandlerExited, WorkflowChanged
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.workflows.engine.flow_control import ContinueAsNew
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.errors_form import error_to_json
from waooaw_celery.workflows.journal.records import InputKind, StepRecord, TurnResult, WorkflowInput
from waooaw_celery.workflows.journal.rows import report_of
from waooaw_celery.workflows.states import StepKind, WorkflowStatus
from waooaw_celery.workflows.steps import compensations

logger = get_logger(__name__)

#: Owners in a row that may be lost before they recorded anything. Then the workflow is stuck.
MAX_TAKEOVERS = 5


class Ending:
    """The end of a workflow. Whoever lets it begin notes that it has ``begun``.

    Args:
        run: the workflow.

    Attributes:
        begun: whether the workflow's function does not go on.
        waits: whether the workflow waits for a compensation, and may be given back meanwhile.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.begun = self.waits = False
        self._cancelled: dict[str, Any] | None = None
        self._paused = False
        #: The commands that were not carried out: each is deleted together with its effect, so that none is lost.
        self._commands: dict[str, WorkflowInput] = {}
        #: Whether what was done is being undone: then nothing is left to cancel or to pause.
        self._undoing = False

    @property
    def waiting_status(self) -> WorkflowStatus:
        """The status of the workflow while nobody runs it."""
        return WorkflowStatus.COMPENSATING if self.begun else WorkflowStatus.WAITING

    def command(self, given: WorkflowInput) -> None:
        """Note that the workflow is to be cancelled or paused, or to go on after a pause that is being made."""
        if self._undoing or (given.kind is InputKind.RESUME and not self._paused):
            self._run.changes.take(given)
            return
        if given.kind is InputKind.CANCEL:
            self._cancelled = dict(given.payload or {})
        elif given.kind is InputKind.PAUSE:
            self._paused = True
            self._take_commands(InputKind.RESUME)  # they were given before
        self._commands[given.input_id] = given

    def is_due(self) -> bool:
        """Whether the function must be stopped."""
        deadline = self._run.claim.deadline
        is_late = deadline is not None and deadline <= self._run.now()
        return not self.begun and (self._cancelled is not None or self._paused or is_late)

    async def stop(self) -> None:
        """Stop the function: it was cancelled or paused, or its deadline has passed."""
        if self._cancelled is None and self._paused:
            await self._finish_steps()
        await self._run.halt()
        if self._cancelled is not None:
            by = self._cancelled.get("by") or "somebody"
            error = {"type": "Cancelled", "message": f"cancelled by {by}"}
            await self._undo(WorkflowStatus.CANCELLED, error, self._cancelled.get("compensate", True))
        elif self._paused:
            await self._park(WorkflowStatus.PAUSED)
        else:
            error = {"type": "DeadlineExceeded", "message": f"its deadline was {self._run.claim.deadline}"}
            await self._undo(WorkflowStatus.TIMED_OUT, error)

    def _take_commands(self, *kinds: InputKind) -> None:
        """Delete the commands of some kinds with the next changes; without a kind, all of them."""
        for each in list(self._commands.values()):
            if not kinds or each.kind in kinds:
                self._run.changes.take(self._commands.pop(each.input_id))

    async def _finish_steps(self) -> None:
        """Let the local steps that run end, and no other begin, unless the workflow is cancelled meanwhile."""
        run = self._run
        run.stopped = True
        while (run.working or run.changes.writing) and self._cancelled is None and not run.closed:
            await asyncio.sleep(0.02)

    async def of_function(self, function: asyncio.Task[Any]) -> None:
        """End the workflow as its function has ended."""
        run = self._run
        error: BaseException | None
        try:
            error = function.exception()
        except asyncio.CancelledError:
            error = HandlerExited("the workflow's own code cancelled its function")
        await run.halt()
        if isinstance(error, ContinueAsNew):
            await self._continue_as_new(error.input)
        elif isinstance(error, WorkflowChanged):
            await self.stick(error)
        elif error is not None:
            await self._undo(WorkflowStatus.FAILED, error_to_json(error))
        else:
            try:
                result = json_copy(function.result(), f"the result of workflow {run.claim.name}")
            except Exception as invalid:  # noqa: BLE001 - a result that cannot travel fails the workflow
                await self._undo(WorkflowStatus.FAILED, error_to_json(invalid))
            else:
                await self._end(WorkflowStatus.COMPLETED, result=result)

    async def stick(self, error: Exception) -> None:
        """Stop, because the workflow cannot go on; an operator must act."""
        await self._run.halt()
        form = error_to_json(error)
        logger.error(
            "workflow %s is stuck: %s",
            self._run.workflow_id,
            form["message"],
            extra={"action": "workflow_stuck", "workflow_id": self._run.workflow_id},
        )
        await self._park(WorkflowStatus.STUCK, form)

    async def stick_after_losses(self, steps: list[str]) -> None:
        """Stop, because each process that ran the workflow was lost."""
        what = f"in the step {', '.join(steps[:3])}" if steps else "while they replayed it"
        takeovers = self._run.claim.takeovers
        await self.stick(
            WorkflowLost(
                f"{takeovers} processes in a row were lost {what}, and recorded nothing. "
                "Mend the step, then resume the workflow"
            )
        )

    def undo(self) -> None:
        """Note that another process has begun to undo what was done: commands come too late."""
        self.begun = self._undoing = True

    def resume(self) -> None:
        """Go on with the compensations that another process has begun."""
        run = self._run
        error = dict(run.claim.error or {})
        status = WorkflowStatus(error.pop("end", WorkflowStatus.FAILED.value))
        first = next(iter(self._to_undo()), None)
        if run.claim.takeovers >= MAX_TAKEOVERS and first is not None and compensations.is_local(first):
            lost = WorkflowLost(f"{run.claim.takeovers} processes in a row were lost while they carried it out")
            run.changes.fail(first, error_to_json(lost))
        run.spawn(self._compensate(status, error))

    async def _undo(self, status: WorkflowStatus, error: dict[str, JSON], compensate: bool = True) -> None:
        """Run the compensations of what was done, the last first, and end."""
        records = self._to_undo() if compensate else []
        if not records:
            await self._end(status, error=error)
            return
        self._undoing = True
        self._take_commands()
        result = await self._run.changes.write(
            status=WorkflowStatus.COMPENSATING.value, error={**error, "end": status.value}
        )
        if result is not TurnResult.FENCED:
            await self._compensate(status, error)

    def _to_undo(self) -> list[StepRecord]:
        found = [
            record
            for record in self._run.changes.records.values()
            if record.kind is StepKind.COMPENSATION and not record.ended
        ]
        return sorted(found, key=lambda record: record.number, reverse=True)

    async def _compensate(self, status: WorkflowStatus, error: dict[str, JSON]) -> None:
        run = self._run
        for record in self._to_undo():
            self.waits = True
            run.touch()
            try:
                await compensations.carry_out(run, record)
            except Exception as failure:  # noqa: BLE001 - it is recorded, and the others are carried out
                logger.warning(
                    "a compensation of workflow %s failed: %s",
                    run.workflow_id,
                    failure,
                    extra={"action": "compensation_failed", "workflow_id": run.workflow_id},
                )
                if not record.ended and not run.closed:  # it could not even be tried
                    run.changes.fail(record, error_to_json(failure))
            self.waits = False
        failed = [
            record
            for record in run.changes.records.values()
            if record.kind is StepKind.COMPENSATION and record.error is not None and record.ended
        ]
        if failed:
            names = ", ".join(record.path for record in failed)
            await self._end(WorkflowStatus.FAILED, error={**error, "not_compensated": names})
        else:
            ended = WorkflowStatus.COMPENSATED if status is WorkflowStatus.FAILED else status
            await self._end(ended, error=error)

    async def _end(
        self, status: WorkflowStatus, result: JSON = None, error: dict[str, JSON] | None = None
    ) -> None:
        run = self._run
        now = run.now()
        reports = []
        if run.claim.parent_id is not None:
            payload = report_of(run.workflow_id, status, result, error)
            reports.append(
                (run.claim.parent_id, InputKind.CHILD, run.workflow_id, payload, f"end:{run.workflow_id}")
            )
        self._take_commands()
        written = await run.changes.write(
            reports=reports,
            status=status.value,
            result=result,
            error=error,
            ended_at=now,
            retain_until=run.claim.retention.until(now),
            **_FREE,
            wake_at=None,
            waits_for=None,
        )
        if written is not TurnResult.FENCED:
            run.engine.note_end(run, status)
        run.abandon()

    async def _park(self, status: WorkflowStatus, error: JSON = None) -> None:
        """Give the workflow back; only a command lets it go on."""
        run = self._run
        self._take_commands(InputKind.PAUSE)
        columns: dict[str, Any] = {
            "status": status.value,
            "waits_for": None,
            # A deadline also ends a workflow that is paused or stuck.
            "wake_at": run.now() if self._commands else run.claim.deadline,
            "takeovers": 1,  # its requests may not be published yet
        }
        if error is not None:
            columns["error"] = error
        result = await run.changes.write(known_inputs=run.known_inputs, **columns)
        if result is TurnResult.NEW_INPUTS:  # one of them may be the command
            await run.changes.write(**columns | _FREE | {"wake_at": run.now()})
        run.abandon()

    async def _continue_as_new(self, given: dict[str, JSON]) -> None:
        run = self._run
        await run.changes.write(
            run=run.claim.run + 1,
            input=given,
            version=None,
            status=WorkflowStatus.PENDING.value,
            waits_for=None,
            wake_at=run.now(),
            **_FREE,
        )
        run.abandon()
        run.engine.wake(run.workflow_id)


class WorkflowLost(Exception):
    """Each process that ran a workflow was lost."""


_FREE: dict[str, Any] = {"owner": None, "lease_until": None}
