"""One workflow while this process runs it: its function, the steps that it waits for, and when it is put down.

The function runs from its beginning. A step that the journal has returns its recorded outcome at once (replay).
The first steps that the journal does not have begin when nothing is left to replay. When all branches of the
function wait, the workflow is given back: the lease ends, and the function stays in memory for a moment only.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from waooaw_celery.errors import StoreUnavailable, WorkflowChanged
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.definition import WorkflowDefinition
from waooaw_celery.workflows.engine.branch import Branch, current_branch
from waooaw_celery.workflows.engine.changes import Changes
from waooaw_celery.workflows.engine.ending import MAX_TAKEOVERS, Ending
from waooaw_celery.workflows.engine.function import run_function
from waooaw_celery.workflows.engine.interface import Engine
from waooaw_celery.workflows.errors_form import error_from_json
from waooaw_celery.workflows.journal.answers import GivenBack
from waooaw_celery.workflows.journal.records import Claim, InputKind, StepRecord, TurnResult, WorkflowInput
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus
from waooaw_celery.workflows.steps import kinds
from waooaw_celery.workflows.steps.publisher import PUBLISH_SECONDS
from waooaw_celery.workflows.steps.step import Call, Step

logger = get_logger(__name__)

#: Rounds of the event loop without a step after which all branches of a function count as waiting: what a result
#: wakes runs in the next rounds.
_QUIET_ROUNDS = 10
_COMMANDS = (InputKind.CANCEL, InputKind.PAUSE, InputKind.RESUME)
#: The step of a run at which a warning proposes to begin anew.
MANY_STEPS = 10_001
#: Seconds for which a workflow stays here after an answer, while at least so many requests are open. It costs more
#: to give it back and to claim it again for each answer.
KEEP_SECONDS, MANY_REQUESTS = 0.1, 8


class WorkflowRun:
    """A workflow in this process. All methods run on the event loop.

    Args:
        engine: the engine of this process.
        definition: the workflow's function.
        claim: the claim of the workflow.

    Attributes:
        owned: whether this process owns the workflow now.
        closed: whether it has ended here: it has ended, or another process goes on with it.
        busy: how many things of it run: local steps, publishes, threads of its function.
        working: how many local steps run.
        calls: what the steps that wait for an outcome do, by path.
        attempts: the local steps that run, by path.
        publishing: the tasks that publish requests.
        signals: signals that nobody has waited for yet.
    """

    def __init__(self, engine: Engine, definition: WorkflowDefinition, claim: Claim) -> None:
        self.engine, self.definition, self.claim = engine, definition, claim
        self.changes = Changes(
            claim,
            engine.writer,
            engine.now,
            on_fenced=self.abandon,
            on_written=self.touch,
            on_failed=self._fail_to_write,
        )
        self.root = Branch()
        self.owned, self.closed, self.stopped = True, False, False
        self.busy = self.working = 0
        self.calls: dict[str, Call] = {}
        self.attempts: dict[str, asyncio.Task[Any]] = {}
        self.publishing: set[asyncio.Task[Any]] = set()
        self.signals: deque[WorkflowInput] = deque()
        self.ending = Ending(self)
        self._inputs: deque[WorkflowInput] = deque()
        self.known_inputs = claim.inputs
        self._seen_inputs: set[str] = set()
        self._read_up_to = 0
        #: How many branches await a step.
        self._awaiting: Counter[str] = Counter()
        self._waiters: dict[str, asyncio.Future[JSON]] = {}
        #: Steps whose outcome is on its way to the journal: nobody may see it before.
        self._unwritten: set[str] = set()
        self._reached: set[str] = set()
        self._dropped: set[str] = set()
        self._queued: list[Step] = []
        self._replaying = True
        self._quiet = 0
        self._ticking = self._keeping = False
        #: When the newest answer was taken.
        self._answered_at = float("-inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._function: asyncio.Task[Any] | None = None
        self.dormant_since: float | None = None
        #: What another thread needs to claim the workflow with an answer; None: it was not given back.
        self.given_back: GivenBack | None = None

    @property
    def workflow_id(self) -> str:
        """Id of the workflow."""
        return self.claim.workflow_id

    @property
    def runs_code(self) -> bool:
        """Whether code of it runs here, so that it stays here while it waits for steps."""
        return self.busy > 0 or self._awaits_others()

    # --- the claim

    def take(
        self, claim: Claim, changed: Iterable[tuple[int, StepRecord]], inputs: Iterable[WorkflowInput]
    ) -> None:
        """Go on under a claim, with what the journal has and this process does not know yet."""
        self.claim, self.owned, self.dormant_since, self.given_back = claim, True, None, None
        self.known_inputs = claim.inputs
        # Another process may have taken some of them since. All that were not taken are read again.
        self.signals.clear()
        self._inputs.clear()
        self._seen_inputs.clear()
        self._read_up_to = 0
        self.changes.renew(claim)
        for record in self.changes.load(changed):
            if record.ended:
                self.resolve(record)
        if claim.status is WorkflowStatus.COMPENSATING:
            self.ending.undo()
        self._take_inputs(inputs)
        if self._function is None and not self.stopped and not self.ending.is_due():
            self._start()
        self.touch()

    def claim_again(self, fence: int, inputs: int) -> Claim:
        """Return the claim of the workflow under a new number, when nothing but an input has arrived."""
        return replace(
            self.claim,
            fence=fence,
            inputs=inputs,
            status=WorkflowStatus.RUNNING,
            takeovers=0,
            last_change=self.changes.last_change,
        )

    def go_on(self, claim: Claim, given: WorkflowInput) -> None:
        """Go on under a claim with the only thing that has happened since the workflow was given back."""
        self.claim, self.owned, self.dormant_since, self.given_back = claim, True, None, None
        self.changes.renew(claim)
        self.receive(given)

    def receive(self, given: WorkflowInput) -> None:
        """Take the next input, which is recorded."""
        self.known_inputs = given.number
        self._take_inputs([given])
        self.process()
        self.touch()

    def _take_inputs(self, inputs: Iterable[WorkflowInput]) -> None:
        for each in inputs:
            if each.input_id not in self._seen_inputs:
                self._seen_inputs.add(each.input_id)
                self._read_up_to = max(self._read_up_to, each.number)
                if each.kind in _COMMANDS:  # also if it cannot be replayed
                    self.ending.command(each)
                else:
                    self._inputs.append(each)

    def _start(self) -> None:
        if self.claim.status is WorkflowStatus.COMPENSATING:
            self.stopped = True
            self._replaying = False
            self.ending.resume()
            return
        context = copy_context()
        context.run(current_branch.set, self.root)
        self._function = asyncio.get_running_loop().create_task(run_function(self), context=context)
        self.adopt(self._function)

    # --- steps

    async def perform(self, step: Step) -> JSON:
        """Return the outcome of a step: the recorded one, or that of letting it happen now.

        Raises:
            WaooawError: the step failed.
            WorkflowChanged: the journal has another kind of step in this place.
            asyncio.CancelledError: the workflow does not go on here.
        """
        if self.closed or self.stopped:
            raise asyncio.CancelledError
        self._reached.add(step.path)
        record = self.changes.records.get(step.path)
        if record is not None and record.kind is not step.kind:
            raise WorkflowChanged(
                f"the workflow's function has changed: step {step.path} was recorded as {record.kind}, and is now "
                f"{step.kind}, at {step.location}"
            )
        if record is not None and record.ended and record.path not in self._unwritten:
            self.touch()
            return self._outcome(record)
        waiter = self.waiter(step.path)
        self._awaiting[step.path] += 1
        self.calls[step.path] = step.call
        if self._awaiting[step.path] > 1:
            pass  # another branch has begun it
        elif record is not None:
            if not record.ended:
                kinds.go_on(self, record)
        elif self._replaying or not self.owned:
            self._queued.append(step)
            if not self.owned:
                self.engine.wake(self.workflow_id)
        else:
            kinds.begin(self, step)
        self.touch()
        try:
            return await asyncio.shield(waiter)
        finally:
            self._awaiting[step.path] -= 1
            if not self._awaiting[step.path]:
                del self._awaiting[step.path]
                self.calls.pop(step.path, None)
                attempt = self.attempts.get(step.path)
                if attempt is not None:  # its branch was cancelled
                    attempt.cancel()

    def waiter(self, path: str) -> asyncio.Future[JSON]:
        """Return the future of a step's outcome."""
        if path not in self._waiters:
            self._waiters[path] = asyncio.get_running_loop().create_future()
        return self._waiters[path]

    def then_resolve(self, record: StepRecord) -> Callable[[], None]:
        """Return what gives the outcome of a step, once it is written, to the code that waits for it."""
        self._unwritten.add(record.path)
        return partial(self._resolve_written, record)

    def _resolve_written(self, record: StepRecord) -> None:
        self._unwritten.discard(record.path)
        self.resolve(record)

    def new_record(self, step: Step) -> StepRecord:
        """Return the record of a step that begins now."""
        if len(self.changes.records) + 1 == MANY_STEPS:
            logger.warning(
                "workflow %s makes more than %d steps, and each replay reads them all: let its function begin "
                "anew with flow.continue_as_new(...)",
                self.workflow_id,
                MANY_STEPS - 1,
                extra={"action": "workflow_has_many_steps", "workflow_id": self.workflow_id},
            )
        return StepRecord(path=step.path, kind=step.kind, started_at=self.now())

    def resolve(self, record: StepRecord) -> None:
        """Give the outcome of a step, which is written, to the code that waits for it."""
        waiter = self._waiters.pop(record.path, None)
        if waiter is not None and not waiter.done():
            try:
                waiter.set_result(self._outcome(record))
            except Exception as error:  # noqa: BLE001 - it is the outcome of the step
                waiter.set_exception(error)
                waiter.exception()  # nobody waits any more, if its branch was cancelled
        self.touch()

    def _outcome(self, record: StepRecord) -> JSON:
        if record.status is StepStatus.FAILED:
            raise error_from_json(record.error, record.path)
        return record.outcome

    def drop(self, prefix: str) -> None:
        """Note that a branch was cancelled: its steps need not be reached in a replay."""
        self._dropped.add(prefix)
        for path, task in self.attempts.items():
            if path.startswith(prefix):
                task.cancel()
        self._queued = [step for step in self._queued if not step.path.startswith(prefix)]

    def is_dropped(self, path: str) -> bool:
        """Whether a step belongs to a branch that was cancelled: its outcome does not count any more."""
        return bool(self._dropped) and path.startswith(tuple(self._dropped))

    def reach(self, path: str) -> None:
        """Note that the function has made a step which has its outcome at once."""
        self._reached.add(path)
        self.touch()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Note a task of this workflow; it is cancelled when the workflow does not go on here."""
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine of the engine for this workflow. Its failure is logged, and puts the workflow down."""
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self.adopt(task)
        task.add_done_callback(self._check_task)
        return task

    def _check_task(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or self.closed or (error := task.exception()) is None:
            return
        if isinstance(error, StoreUnavailable):  # a process goes on when the lease ends and the database answers
            logger.warning("%s; workflow %s waits", error, self.workflow_id, extra={"action": "workflow_waits"})
            self.abandon()
        else:
            self._fail_to_write(error)

    def _end_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever awaits it gets it; the function's own is read at its end
        self.touch()

    def now(self) -> datetime:
        """Return the time by the reference clock."""
        return self.engine.now()

    # --- when all branches wait

    def touch(self) -> None:
        """Note that something has happened: look again, in a few rounds, whether all branches wait."""
        self._quiet = 0
        if not self._ticking and not self.closed:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        self._quiet += 1
        if self.closed or self.busy or self.changes.writing:
            self._ticking = False
        elif self._quiet < _QUIET_ROUNDS:
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self._ticking = False
            self._settle()

    def _settle(self) -> None:
        """Go on when all branches wait: write, end the replay, take inputs, or give the workflow back."""
        if self.changes.pending:
            return  # it is being written, and looked at again then
        if not self.owned:
            if self._queued or self._has_ended():  # it did not wait for steps only, and was given back too early
                self.engine.wake(self.workflow_id)
        elif self.ending.is_due():
            self._end(self.ending.stop())
        elif self._replaying and (self._awaits_others() or not self._end_replay()):
            return  # the function has not reached all its recorded steps, or cannot
        elif self.stopped and not self.ending.begun:
            return  # the process ends: another one goes on
        elif self._function is not None and self._has_ended():
            self._end(self.ending.of_function(self._function))
        elif not self._go_on() and (self.ending.waits or not self.ending.begun):
            self._wait()

    def _has_ended(self) -> bool:
        """Whether the function has ended, and its workflow has not."""
        return self._function is not None and self._function.done() and not self.ending.begun

    def _end(self, ending: Coroutine[Any, Any, None]) -> None:
        """Let the workflow end; nothing else lets it end from now on."""
        self.ending.begun = True
        self.spawn(ending)

    def process(self) -> None:
        """Take inputs and end waits now, although local steps run."""
        if self.owned and not self._replaying and not self.closed:
            if self.ending.is_due():
                self._end(self.ending.stop())
            else:
                self._go_on()

    def _end_replay(self) -> bool:
        """Begin the steps that are new, and return whether the code fits the journal."""
        missing = [
            record
            for record in self.changes.records.values()
            if record.path not in self._reached
            and record.kind is not StepKind.COMPENSATION
            and not self.is_dropped(record.path)
        ]
        has_ended = self._function is not None and self._function.done()
        if missing and (self._queued or has_ended) and not self.stopped:
            first = min(missing, key=lambda record: record.number)
            now = (
                f"{self._queued[0].path} at {self._queued[0].location}"
                if self._queued
                else "the end of the function"
            )
            self._end(
                self.ending.stick(
                    WorkflowChanged(
                        f"the workflow's function has changed: it has recorded the step {first.path} "
                        f"({first.kind}), and makes {now} instead. Restore the function, then `waooaw workflow "
                        f"resume {self.workflow_id}`; or fork it from an earlier step"
                    )
                )
            )
            return False
        if self.claim.takeovers >= MAX_TAKEOVERS and not self.stopped:
            self._end(self.ending.stick_after_losses([step.path for step in self._queued]))
            return False
        self._replaying = False
        return True

    def _go_on(self) -> bool:
        """Begin what can begin now, and return whether something did."""
        queued, self._queued = self._queued, []
        for step in queued:
            kinds.begin(self, step)
        inputs, self._inputs = self._inputs, deque()
        for each in inputs:
            self._take_input(each)
        fired = kinds.fire_due(self)
        if queued or inputs or fired:
            self.touch()
        return bool(queued or inputs or fired)

    def _take_input(self, given: WorkflowInput) -> None:
        if given.kind is InputKind.SIGNAL:
            kinds.take_signal(self, given)
        else:
            self._answered_at = time.monotonic()
            self.changes.take(given, rounds=kinds.TAKING_ROUNDS)
            kinds.take_answer(self, given)

    # --- the end, for this process

    def _wait(self) -> None:
        """Give the workflow back; while answers to many requests come in, keep it until they pause."""
        is_answered = time.monotonic() - self._answered_at < KEEP_SECONDS
        if is_answered and len(self.changes.by_request) >= MANY_REQUESTS:
            if not self._keeping:
                self._keeping = True
                asyncio.get_running_loop().call_later(KEEP_SECONDS, self._end_keeping)
        elif not self._awaits_others():
            self._give_back()

    def _awaits_others(self) -> bool:
        """Whether the function awaits no step, but something that only this process knows."""
        runs = self._function is not None and not self._function.done() and not self.ending.begun
        return runs and not self._awaiting

    def _end_keeping(self) -> None:
        self._keeping = False
        self.touch()

    def _give_back(self) -> None:
        """Let other processes go on with the workflow: it waits."""
        self.owned = False  # at once: whatever arrives before the turn is written must not be taken
        self.busy += 1
        self.spawn(self._write_back(GivenBack(self.claim.fence, self.known_inputs)))

    async def _write_back(self, given_back: GivenBack) -> None:
        """Write that the workflow waits, and that nobody owns it. Go on with it if more has arrived meanwhile."""
        try:
            result = await self.changes.write(
                known_inputs=given_back.known_inputs,
                status=self.ending.waiting_status.value,
                waits_for=self.waits_for(),
                wake_at=self.next_due(),
            )
            if self.closed:
                return
            if result is TurnResult.NEW_INPUTS:
                self.owned = True
                await self.read_inputs()
            elif result is TurnResult.WRITTEN and not self.owned:  # else it was claimed again meanwhile
                self.given_back = given_back
                self.engine.put_down(self)
        finally:
            self.busy -= 1
            self.touch()

    async def read_inputs(self) -> None:
        """Take what has arrived since the claim."""
        loaded = await self.engine.load_inputs(self.claim, self._read_up_to)
        self.known_inputs = max(self.known_inputs, loaded.known_inputs)
        self._take_inputs(loaded.inputs)
        self.touch()

    def next_due(self) -> datetime | None:
        """Return when the workflow must be looked at again without an input; None: never."""
        times = [record.due_at for record in self.changes.due.values() if record.due_at is not None]
        if self.claim.deadline is not None:
            times.append(self.claim.deadline)
        return min(times, default=None)

    def waits_for(self) -> str:
        """Return what the workflow waits for, for people."""
        waiting = self.changes.open.values()
        first = heapq.nsmallest(3, waiting, key=lambda record: record.number)
        # The path of a wait for a signal says that it is one.
        shown = ", ".join(
            record.path if record.path.rpartition("/")[2].startswith("signal ") else f"{record.kind} {record.path}"
            for record in first
        )
        more = len(waiting) - 3
        return f"{shown} and {more} more" if more > 0 else shown

    async def halt(self) -> None:
        """Stop the function: its steps raise CancelledError from now on."""
        self.stopped = True
        self._queued = []
        function = self._function
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if function is not None:
            await asyncio.wait([function], timeout=1.0)
        if self.publishing:  # another process may go on then, and publish the same requests
            await asyncio.wait(self.publishing, timeout=PUBLISH_SECONDS)

    def abandon(self) -> None:
        """Forget the workflow: another process goes on with it, or it has ended."""
        if self.closed:
            return
        self.closed, self.owned, self.given_back = True, False, None
        self.engine.forget(self)
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _fail_to_write(self, error: BaseException) -> None:
        """Put the workflow down after a defect; another process goes on when the lease ends."""
        self.engine.log_defect(self, error)
        self.abandon()
