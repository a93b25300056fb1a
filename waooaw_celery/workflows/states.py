"""The states of workflows and of their steps, and the kinds of steps."""

from __future__ import annotations

from enum import StrEnum


class WorkflowStatus(StrEnum):
    """The state of a workflow."""

    PENDING = "pending"  #: no worker has begun it
    RUNNING = "running"  #: a process runs its function
    WAITING = "waiting"  #: it waits for an answer, a signal or a time, and costs no memory
    PAUSED = "paused"  #: an operator has paused it
    STUCK = "stuck"  #: it cannot go on: its error says why, and what to do
    COMPENSATING = "compensating"  #: it failed, was cancelled or timed out, and its compensations run
    COMPLETED = "completed"  #: its function returned
    FAILED = "failed"  #: its function raised, and there was nothing to undo, or undoing failed
    COMPENSATED = "compensated"  #: its function raised, and all compensations were carried out
    CANCELLED = "cancelled"  #: it was cancelled
    TIMED_OUT = "timed out"  #: its deadline passed

    @property
    def final(self) -> bool:
        """Whether the workflow has ended."""
        return self in FINAL


FINAL = frozenset(
    {
        WorkflowStatus.COMPLETED,
        WorkflowStatus.FAILED,
        WorkflowStatus.COMPENSATED,
        WorkflowStatus.CANCELLED,
        WorkflowStatus.TIMED_OUT,
    }
)


class StepKind(StrEnum):
    """What a step does."""

    STEP = "step"  #: calls a local function
    REQUEST = "request"  #: requests a method of an agent
    SEND = "send"  #: sends a message
    PUBLISH = "publish"  #: publishes an event
    SLEEP = "sleep"  #: waits for a time
    SIGNAL = "signal"  #: waits for a signal
    CHILD = "child"  #: starts a workflow and waits for its result
    GATHER = "gather"  #: which of several branches failed first
    RACE = "race"  #: which of several branches was first
    NOW = "now"  #: reads the time
    COMPENSATION = "compensation"  #: undoes an earlier step


class StepStatus(StrEnum):
    """The state of a step."""

    REGISTERED = "registered"  #: a compensation that was not needed yet
    STARTED = "started"  #: it has no outcome yet
    COMPLETED = "completed"  #: it has a result
    FAILED = "failed"  #: it has an error
