"""A task: a request or a workflow that was called from outside, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.validation import JSON


class TaskState(StrEnum):
    """How far a task is."""

    SUBMITTED = "submitted"  #: no worker has begun it
    WORKING = "working"  #: a worker handles it, or the workflow runs or waits for an answer or a time
    INPUT_REQUIRED = "input required"  #: the workflow waits for a signal
    COMPLETED = "completed"  #: it has a result
    FAILED = "failed"  #: it failed, became a dead letter, or was undone
    EXPIRED = "expired"  #: its time was over before it was done
    CANCELLED = "cancelled"  #: it was cancelled

    @property
    def final(self) -> bool:
        """Whether it can no longer change."""
        return self in _FINAL


_FINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.EXPIRED, TaskState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call from outside.

    Attributes:
        principal: who calls.
        protocol: by which protocol, such as ``a2a``.
        agent: the agent.
        method: its method or workflow.
        arguments: the arguments of the method, or the input of the workflow.
        task_id: id of the task, which becomes the id of the message or workflow.
        conversation_id: id of the conversation; None: the task begins one.
        priority: how urgent it is.
        timeout: seconds within which a request must be answered, and a workflow must have ended.
    """

    principal: Principal
    protocol: str
    agent: str
    method: str
    arguments: Mapping[str, JSON]
    task_id: str
    conversation_id: str | None = None
    priority: Priority = Priority.NORMAL
    timeout: float = 300.0

    @property
    def ids(self) -> dict[str, str]:
        """The ids of its message, and who has sent it."""
        ids = {"message_id": self.task_id, "identity": self.principal.identity(self.protocol)}
        return ids if self.conversation_id is None else {**ids, "conversation_id": self.conversation_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskError(JsonForm):
    """Why a task has no result.

    Attributes:
        type: name of the error's class.
        message: its text.
    """

    type: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", self.message.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo(JsonForm):
    """A task, as the ledger knows it.

    Attributes:
        task_id: its id, which is that of the message or of the workflow.
        agent: the agent.
        method: its method or workflow.
        is_workflow: whether it is a workflow.
        state: how far it is.
        conversation_id: id of its conversation.
        from_agent: in whose name it was called.
        arguments: what it was called with; None: erased, or not read.
        result: its result; None before it has one.
        error: why it has none, or None. A completed task has one if its result is not known any more.
        waits_for: the name of the signal that it waits for, or None.
        progress: what a workflow has set as its progress, or None.
        created_at: when it was called, aware UTC.
        updated_at: when it changed last, aware UTC.
        parts: the parts of its streamed answer, if the ledger has them (``waooaw_record_stream_parts``), or None.
    """

    task_id: str
    agent: str
    method: str
    is_workflow: bool
    state: TaskState
    conversation_id: str
    from_agent: str
    arguments: JSON
    result: JSON
    error: TaskError | None
    waits_for: str | None
    progress: JSON
    created_at: datetime
    updated_at: datetime
    parts: JSON = None

    def __post_init__(self) -> None:
        for name in ("result", "parts", "progress"):
            if not _is_utf8(getattr(self, name)):
                object.__setattr__(self, name, None)
                object.__setattr__(self, "error", _NOT_UTF8)


#: What is told of a result that no protocol can carry. Celery's JSON can, and the ledger keeps it.
_NOT_UTF8 = TaskError(
    type="ResultNotUtf8",
    message=(
        "it has ended, and its result has half of a surrogate pair, which is no character: let the agent return "
        "valid text"
    ),
)


def _is_utf8(value: JSON) -> bool:
    """Return whether all texts of a value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True
