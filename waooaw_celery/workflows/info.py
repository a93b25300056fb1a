"""What can be known of a workflow and of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo(JsonForm):
    """A workflow.

    Attributes:
        workflow_id: its id, which is also that of the message that started it.
        name: its function, ``<agent>.<function>``.
        version: the version of the function; None: no worker has begun it.
        agent: the agent that runs it.
        status: its state.
        priority: how urgent its requests are.
        run: how often it was begun, from 1: ``continue_as_new`` and ``retry`` begin it again.
        input: its input; None after an erasure.
        result: what its function returned; None before.
        error: why it failed or is stuck: a JSON object with ``type`` and ``message``; None otherwise.
        progress: what its function set last.
        waits_for: what it waits for, for people; None while it runs.
        conversation_id: the conversation of all its messages.
        parent_id: the workflow whose child it is, or None.
        forked_from: the workflow that it was forked from, or None.
        created_at, started_at, ended_at: when.
        deadline: when it ends at the latest; None: never.
        steps: how many steps its run has recorded.
    """

    workflow_id: str
    name: str
    version: int | None
    agent: str
    status: WorkflowStatus
    priority: Priority
    run: int
    input: JSON
    result: JSON
    error: JSON
    progress: JSON
    waits_for: str | None
    conversation_id: str
    parent_id: str | None
    forked_from: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStep(JsonForm):
    """A recorded step.

    Attributes:
        path: which step of the function it is.
        kind: what it does.
        status: how far it is.
        attempts: how often it was begun.
        request_id: id of the message, or of the child, of its newest attempt; None: it has none.
        outcome: its result.
        error: its error, a JSON object with ``type`` and ``message``; also that of an attempt that is tried again.
        due_at: when it times out, is tried again or ends; None: never.
        started_at, ended_at: when.
    """

    path: str
    kind: StepKind
    status: StepStatus
    attempts: int
    request_id: str | None
    outcome: JSON
    error: JSON
    due_at: datetime | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowPage(JsonForm):
    """Some workflows, the newest first.

    Attributes:
        workflows: the workflows of this page.
        next_page: what to give as ``page`` for the next one; None: this is the last.
    """

    workflows: tuple[WorkflowInfo, ...]
    next_page: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowStatistics(JsonForm):
    """How many workflows there are, and how they end.

    Attributes:
        total: how many.
        by_status: how many of each status.
        by_name: how many of each function.
        failure_rate: the share of those that ended without a result among those that ended; None: none has ended.
        oldest_waiting_at: when the oldest one that has not ended was created.
    """

    total: int
    by_status: dict[str, int]
    by_name: dict[str, int]
    failure_rate: float | None
    oldest_waiting_at: datetime | None
