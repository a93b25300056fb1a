"""What steps and endings need of the workflow that they belong to, and of the engine of the process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol, TypeVar

from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.definition import Definitions, WorkflowDefinition
from waooaw_celery.workflows.engine.changes import Changes
from waooaw_celery.workflows.journal.journal import Journal
from waooaw_celery.workflows.journal.records import Claim, Loaded, StepRecord, WorkflowInput
from waooaw_celery.workflows.journal.writer import TurnWriter
from waooaw_celery.workflows.states import WorkflowStatus

T = TypeVar("T")


class Engine(Protocol):
    """The engine of a process. See ``WorkflowEngine``."""

    app: Any
    definitions: Definitions
    owner: str
    journal: Journal
    writer: TurnWriter
    publisher: Any
    threads: Any

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more workflows."""

    def now(self) -> datetime:
        """Return the time by the reference clock."""

    def wake(self, workflow_id: str) -> None:
        """Look at a workflow now."""

    def arm(self, run: Any) -> None:
        """Set the timer of a workflow."""

    def put_down(self, run: Any) -> None:
        """Keep a workflow that waits in memory for a moment only."""

    def forget(self, run: Any) -> None:
        """Remove a workflow from this process."""

    def note_end(self, run: Any, status: WorkflowStatus) -> None:
        """Log the end of a workflow."""

    def log_defect(self, run: Any, error: BaseException) -> None:
        """Log an error that no workflow should cause."""

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that blocks, in a thread."""

    async def load(self, claim: Claim, after: int, after_input: int = 0) -> Loaded:
        """Return what the journal has of a workflow after a change, and after an input."""

    async def load_inputs(self, claim: Claim, after_input: int) -> Loaded:
        """Return the inputs of a workflow after one of them."""


class Run(Protocol):
    """A workflow in this process. See ``WorkflowRun``."""

    engine: Engine
    definition: WorkflowDefinition
    claim: Claim
    changes: Changes
    busy: int
    working: int
    closed: bool
    stopped: bool
    calls: dict[str, Any]
    attempts: dict[str, asyncio.Task[Any]]
    publishing: set[asyncio.Task[Any]]
    signals: deque[WorkflowInput]
    known_inputs: int

    @property
    def workflow_id(self) -> str:
        """Id of the workflow."""

    async def perform(self, step: Any) -> JSON:
        """Return the outcome of a step."""

    def waiter(self, path: str) -> asyncio.Future[JSON]:
        """Return the future of a step's outcome."""

    def then_resolve(self, record: StepRecord) -> Callable[[], None]:
        """Return what gives the outcome of a step, once it is written, to the code that waits for it."""

    def resolve(self, record: StepRecord) -> None:
        """Give the outcome of a step to the code that waits for it."""

    def new_record(self, step: Any) -> StepRecord:
        """Return the record of a step that begins now."""

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine of this workflow."""

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Note a task of this workflow."""

    def is_dropped(self, path: str) -> bool:
        """Whether a step belongs to a branch that was cancelled."""

    def drop(self, prefix: str) -> None:
        """Note that a branch was cancelled."""

    def reach(self, path: str) -> None:
        """Note that the function has made a step."""

    def touch(self) -> None:
        """Note that something has happened."""

    def now(self) -> datetime:
        """Return the time by the reference clock."""

    def next_due(self) -> datetime | None:
        """Return when the workflow must be looked at again without an input."""

    async def halt(self) -> None:
        """Stop the function."""

    def abandon(self) -> None:
        """Forget the workflow."""
