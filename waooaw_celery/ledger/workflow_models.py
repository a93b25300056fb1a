"""The tables of workflows: one row for each workflow, its journal of steps, and what arrives for it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from waooaw_celery.ledger.database.column_types import PayloadText
from waooaw_celery.ledger.database.models import Base


class WorkflowRow(Base):
    """A workflow: what it is to do, how far it is, and which process runs it."""

    __tablename__ = "waooaw_workflows"
    __table_args__ = (
        Index(
            "waooaw_workflows_wake",
            "wake_at",
            postgresql_where=text("wake_at IS NOT NULL"),
            sqlite_where=text("wake_at IS NOT NULL"),
        ),
        Index("waooaw_workflows_created", "created_at", "workflow_id"),
        Index("waooaw_workflows_status", "status", "created_at", "workflow_id"),
        Index("waooaw_workflows_agent", "agent", "created_at", "workflow_id"),
        Index("waooaw_workflows_conversation", "conversation_id"),
        Index("waooaw_workflows_parent", "parent_id"),
    )

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    #: ``<agent>.<function>``, and the version of the function; NULL until a worker begins it.
    name: Mapped[str]
    version: Mapped[int | None]
    agent: Mapped[str]
    status: Mapped[str]
    priority: Mapped[int]
    #: Increased by ``continue_as_new`` and by ``retry``: the steps of an earlier run stay as they are.
    run: Mapped[int]
    #: NULL after an erasure.
    input: Mapped[Any | None] = mapped_column(PayloadText)
    input_digest: Mapped[str]
    result: Mapped[Any | None] = mapped_column(PayloadText)
    #: Why it failed, is stuck or is being undone: a JSON object with ``type`` and ``message``.
    error: Mapped[Any | None] = mapped_column(PayloadText)
    progress: Mapped[Any | None] = mapped_column(PayloadText)
    #: What it waits for, for people.
    waits_for: Mapped[str | None]
    conversation_id: Mapped[str]
    #: The trace context in which it was started.
    trace: Mapped[Any | None] = mapped_column(PayloadText)
    parent_id: Mapped[str | None]
    forked_from: Mapped[str | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    deadline: Mapped[datetime | None]
    retention: Mapped[str]
    #: Set when it ends.
    retain_until: Mapped[datetime | None]
    #: The process that runs it, until when without news, and a number that grows with each owner.
    owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    fence: Mapped[int]
    #: How many owners in a row were lost before they recorded anything.
    takeovers: Mapped[int]
    #: When a process must look at it; NULL: only an input wakes it.
    wake_at: Mapped[datetime | None]
    #: The number of the newest change of a step, and how many inputs have arrived.
    last_change: Mapped[int]
    inputs: Mapped[int]


class WorkflowStepRow(Base):
    """A step of a workflow: what it is, and its outcome."""

    __tablename__ = "waooaw_workflow_steps"
    __table_args__ = (Index("waooaw_workflow_steps_changed", "workflow_id", "run", "changed"),)

    workflow_id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Which step of the function it is, such as ``crm.create#1`` or ``gather#1[0]/price#2``.
    path: Mapped[str] = mapped_column(primary_key=True)
    #: The order in which the steps were first recorded, and the number of the newest change of this one.
    number: Mapped[int]
    changed: Mapped[int]
    kind: Mapped[str]
    status: Mapped[str]
    attempts: Mapped[int]
    #: Id of the message, or of the child workflow, that was sent for the current attempt.
    request_id: Mapped[str | None]
    #: What the step does, as far as that must be known without running the function.
    details: Mapped[Any | None] = mapped_column(PayloadText)
    outcome: Mapped[Any | None] = mapped_column(PayloadText)
    error: Mapped[Any | None] = mapped_column(PayloadText)
    due_at: Mapped[datetime | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class WorkflowInputRow(Base):
    """Something that arrived for a workflow and that it has not taken yet: an answer, a signal or a command."""

    __tablename__ = "waooaw_workflow_inputs"
    __table_args__ = (Index("waooaw_workflow_inputs_workflow", "workflow_id", "number"),)

    input_id: Mapped[str] = mapped_column(primary_key=True)
    workflow_id: Mapped[str]
    number: Mapped[int]
    kind: Mapped[str]
    #: The request or child that is answered, or the name of the signal.
    key: Mapped[str]
    payload: Mapped[Any | None] = mapped_column(PayloadText)
    at: Mapped[datetime]
