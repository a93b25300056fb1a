"""What the journal holds of a workflow: the claim of it, its steps, and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from waooaw_celery.messages.enums import Priority, RetentionPolicy
from waooaw_celery.messages.trace_context import TraceContext
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus


class InputKind(StrEnum):
    """What arrived for a workflow."""

    ANSWER = "answer"  #: the answer to a request
    CHILD = "child"  #: the end of a child workflow
    SIGNAL = "signal"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """A step in the journal. ``docs/workflows.md`` explains its path.

    Attributes:
        path: which step of the function it is.
        kind: what it does.
        status: how far it is.
        number: its place in the order in which the steps were first recorded, from 1.
        attempts: how often it was begun.
        request_id: id of the message or of the child of the current attempt.
        details: what must be known of it without running the function, such as what a compensation calls.
        outcome: its result.
        error: its error, a JSON object.
        due_at: when it times out, is tried again, or a sleep ends.
        started_at: when it was first recorded.
        ended_at: when it got its outcome.
    """

    path: str
    kind: StepKind
    started_at: datetime
    status: StepStatus = StepStatus.STARTED
    number: int = 0
    attempts: int = 0
    request_id: str | None = None
    details: JSON = None
    outcome: JSON = None
    error: JSON = None
    due_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it has an outcome."""
        return self.status in (StepStatus.COMPLETED, StepStatus.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInput:
    """Something that arrived for a workflow.

    Attributes:
        input_id: unique id, for example that of the message which brought it.
        number: its place in the order of arrival.
        kind: what it is.
        key: the request or child that it answers, or the name of the signal.
        payload: what it carries.
        at: when it arrived.
    """

    input_id: str
    number: int
    kind: InputKind
    key: str
    payload: JSON
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A workflow that this process owns, as it was when it was claimed."""

    workflow_id: str
    name: str
    version: int | None
    agent: str
    status: WorkflowStatus
    priority: Priority
    run: int
    input: JSON
    error: JSON
    conversation_id: str
    trace: TraceContext | None
    parent_id: str | None
    created_at: datetime
    started_at: datetime | None
    deadline: datetime | None
    retention: RetentionPolicy
    fence: int
    takeovers: int
    last_change: int
    inputs: int


class Child(NamedTuple):
    """A workflow that exists, as one that wants it for its child sees it.

    Attributes:
        parent_id: its parent, or None.
        name: its function.
        input_digest: the digest of its input.
        report: what it has reported to its parent, a result or an error; None: it has not ended.
    """

    parent_id: str | None
    name: str
    input_digest: str
    report: dict[str, JSON] | None


class Loaded(NamedTuple):
    """What the journal has of a workflow.

    Attributes:
        changed: the steps that have changed, each with the number of its newest change, in the order of the steps.
        inputs: the inputs that were not taken, in the order of their arrival.
        known_inputs: how many inputs had arrived.
    """

    changed: list[tuple[int, StepRecord]]
    inputs: list[WorkflowInput]
    known_inputs: int


@dataclass(slots=True, kw_only=True)
class Turn:
    """Changes of one workflow that are written together, or not at all when another process owns it meanwhile.

    Attributes:
        workflow_id, run: the workflow.
        fence: the number of this process's claim.
        steps: new and changed steps, as columns.
        last_change: the number of the newest change.
        taken: ids of the inputs that are taken.
        columns: new values of columns of the workflow.
        known_inputs: to give the workflow back, how many inputs this process knows of. It stays owned if there are
            more.
        started: rows of child workflows to create.
        reports: inputs of other workflows to add: the end of this one for its parent.
    """

    workflow_id: str
    run: int
    fence: int
    last_change: int
    steps: list[Mapping[str, Any]] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    known_inputs: int | None = None
    started: list[Mapping[str, Any]] = field(default_factory=list)
    reports: list[tuple[str, InputKind, str, JSON, str]] = field(default_factory=list)


class TurnResult(StrEnum):
    """What became of a turn."""

    WRITTEN = "written"
    FENCED = "fenced"  #: another process owns the workflow: nothing was written
    NEW_INPUTS = "new inputs"  #: written, but not given back: there are more inputs
