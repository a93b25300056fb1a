"""Claims the workflows that this process is to run, and begins them or goes on with them."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import replace
from functools import partial

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.workflows.definition import WorkflowDefinition
from waooaw_celery.workflows.engine.interface import Engine
from waooaw_celery.workflows.engine.parked import is_parked, take_command
from waooaw_celery.workflows.engine.run import WorkflowRun
from waooaw_celery.workflows.journal.answers import Answer
from waooaw_celery.workflows.journal.records import Claim, Loaded
from waooaw_celery.workflows.states import WorkflowStatus

logger = get_logger(__name__)


class Claims:
    """The workflows that a process owns or wants to own. Use it on one event loop.

    Args:
        engine: the engine of this process.
        runs: the workflows that it has in memory, by id.
        capacity: how many it owns at the same time.
    """

    def __init__(self, engine: Engine, runs: MutableMapping[str, WorkflowRun], capacity: int) -> None:
        self._engine, self._runs, self._capacity = engine, runs, capacity
        self._wanted: dict[str, None] = {}
        self._claiming: asyncio.Task[None] | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        #: How many searches for workflows run that have not begun all that they have found.
        self._taking = 0

    @property
    def busy(self) -> bool:
        """Whether workflows are being claimed or begun."""
        return bool(self._taking or self._claiming or self._wanted)

    def hand_over(self, given_back: WorkflowRun | None, workflow_id: str, answer: Answer) -> None:
        """Let a workflow take an answer that was recorded, without reading it if nothing else has arrived."""
        run = self._runs.get(workflow_id)
        if answer.fence is not None and given_back is not None:
            claim = given_back.claim_again(answer.fence, answer.recorded.number)
            if run is given_back and not run.stopped and not self._engine.is_closed:
                run.go_on(claim, answer.recorded)
            elif not self._engine.is_closed:  # it was forgotten meanwhile
                task = asyncio.ensure_future(self._begin_all([claim]))
                self._beginning.add(task)
                task.add_done_callback(self._end_beginning)
        elif run is not None and run.owned and answer.is_new and answer.recorded.number == run.known_inputs + 1:
            run.receive(answer.recorded)
        else:
            self.want(workflow_id)

    def want(self, workflow_id: str) -> None:
        """Look at a workflow now: something has arrived for it."""
        self._wanted[workflow_id] = None
        if self._claiming is None and not self._engine.is_closed:
            self._claiming = asyncio.ensure_future(self._claim_wanted())
            self._claiming.add_done_callback(self._end_claiming)

    def _end_claiming(self, task: asyncio.Task[None]) -> None:
        self._claiming = None
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, StoreUnavailable):
                logger.error(
                    "workflows could not be claimed", exc_info=error, extra={"action": "workflows_not_claimed"}
                )
            self._wanted.clear()  # the next search finds them
        elif self._wanted:
            self.want(next(iter(self._wanted)))

    async def _claim_wanted(self) -> None:
        await asyncio.sleep(0)  # so that those of this round are claimed together
        ids, self._wanted = list(self._wanted)[:100], dict.fromkeys(list(self._wanted)[100:])
        to_claim = []
        for workflow_id in ids:
            run = self._runs.get(workflow_id)
            if run is not None and run.owned:
                await run.read_inputs()
                run.process()
            else:
                to_claim.append(workflow_id)
        if to_claim and self.room() > 0:
            await self.take(to_claim)

    def room(self) -> int:
        """Return how many more workflows this process may own. For any thread."""
        # A copy: other threads ask too.
        return self._capacity - sum(run.owned for run in list(self._runs.values()))

    async def take(self, ids: list[str] | None) -> list[Claim]:
        """Claim these workflows, or those that are due, and go on with them."""
        self._taking += 1
        try:
            claims = await self._claim(ids)
            await self._begin_all(claims)
            return claims
        finally:
            self._taking -= 1

    async def _begin_all(self, claims: list[Claim]) -> None:
        """Go on with workflows that were claimed."""
        self._taking += 1
        try:
            for claim in claims:
                await self._begin(claim)
        finally:
            self._taking -= 1

    def _end_beginning(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "a workflow could not be begun, and is tried again when its lease ends",
                exc_info=error,
                extra={"action": "workflow_not_begun"},
            )

    async def _claim(self, ids: list[str] | None) -> list[Claim]:
        known = self.known_functions()
        if not known:
            return []
        held = [run.workflow_id for run in self._runs.values() if run.dormant_since is None]
        claim = partial(self._engine.journal.claim, self._engine.owner, known, ids=ids, held=held)
        return await self._engine.in_thread(partial(claim, limit=max(self.room(), 1)))

    def known_functions(self) -> dict[str, tuple[int, ...]]:
        """Return the functions that this process runs: those of the agents whose queues its worker consumes."""
        agents = set(self._engine.app.consumed_agents())
        return {
            name: tuple(versions)
            for name, versions in self._engine.definitions.items()
            if name.partition(".")[0] in agents
        }

    async def _begin(self, claim: Claim) -> None:
        run = self._runs.get(claim.workflow_id)
        is_fresh = run is None or run.claim.run != claim.run or run.closed or run.stopped
        if run is not None and claim.status is WorkflowStatus.COMPENSATING and not run.ending.begun:
            is_fresh = True  # another process has stopped the function, and this one still waits in it
        if claim.status in (WorkflowStatus.PAUSED, WorkflowStatus.STUCK):
            is_fresh = True  # its function may have been mended meanwhile
        if is_fresh and run is not None:
            run.abandon()
        known = 0 if is_fresh or run is None else run.changes.last_change
        loaded = Loaded([], [], 0)
        if claim.last_change > known or claim.inputs:
            loaded = await self._engine.load(claim, known)
        if run is not None and run.closed and not is_fresh:  # it was put down meanwhile
            await self._begin(claim)
            return
        if is_parked(claim):
            await self._load_all_inputs(claim, loaded)
            if not await take_command(self._engine, claim, loaded.inputs):
                return
            claim = replace(claim, takeovers=min(claim.takeovers, 1))
        if is_fresh or run is None:
            definition = self._definition(claim)
            run = self._runs[claim.workflow_id] = WorkflowRun(self._engine, definition, claim)
            if claim.version is None:
                run.changes.set_later(version=definition.version)
        if claim.status is WorkflowStatus.STUCK or is_parked(claim):
            run.changes.set(status=WorkflowStatus.RUNNING.value, error=None)
        run.take(claim, loaded.changed, loaded.inputs)

    async def _load_all_inputs(self, claim: Claim, loaded: Loaded) -> None:
        """Read the inputs that were too many to be read at once: the command may be among them."""
        known = loaded.known_inputs
        while loaded.inputs and known < claim.inputs:
            more = await self._engine.load_inputs(claim, loaded.inputs[-1].number)
            if not more.inputs:
                return
            loaded.inputs.extend(more.inputs)
            known = more.known_inputs

    def _definition(self, claim: Claim) -> WorkflowDefinition:
        versions = self._engine.definitions[claim.name]
        # Only compensations are carried out without the right version, and they do not need the function.
        newest = versions[max(versions)]
        return newest if claim.version is None else versions.get(claim.version, newest)
