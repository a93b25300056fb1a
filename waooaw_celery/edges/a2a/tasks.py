"""A task of ours as a task of A2A, and its changes as events."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime

from a2a.types import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.types import TaskState as A2AState

from waooaw_celery.edges.a2a.values import part_of, parts_of
from waooaw_celery.edges.gateway.task import TaskInfo, TaskState
from waooaw_celery.messages.validation import JSON

#: Seconds within which the ledger has the end of a task of which this process knows.
_KEPT_SECONDS = 10.0
#: The artifact with the result of a task, and the one with the parts of a streamed answer.
RESULT, STREAM = "result", "stream"

_STATES = {
    TaskState.SUBMITTED: A2AState.TASK_STATE_SUBMITTED,
    TaskState.WORKING: A2AState.TASK_STATE_WORKING,
    TaskState.INPUT_REQUIRED: A2AState.TASK_STATE_INPUT_REQUIRED,
    TaskState.COMPLETED: A2AState.TASK_STATE_COMPLETED,
    TaskState.FAILED: A2AState.TASK_STATE_FAILED,
    TaskState.EXPIRED: A2AState.TASK_STATE_FAILED,
    TaskState.CANCELLED: A2AState.TASK_STATE_CANCELED,
}


def a2a_state(state: TaskState) -> A2AState:
    """Return the state as A2A names it; a task whose time was over has failed."""
    return _STATES[state]


def a2a_task(task: TaskInfo, history_length: int | None = None, *, artifacts: bool = True) -> Task:
    """Return a task as A2A has it.

    Args:
        task: the task.
        history_length: how many messages of its history; None: all. It has one: what it was called with.
        artifacts: whether it has its artifacts.
    """
    made = Task(id=task.task_id, context_id=task.conversation_id, status=status_of(task))
    made.metadata.update({"agent": task.agent, "skill_id": task.method})
    if artifacts:
        made.artifacts.extend(artifacts_of(task))
    if task.arguments is not None and (history_length is None or history_length > 0):
        made.history.append(
            Message(
                message_id=task.task_id,
                context_id=task.conversation_id,
                task_id=task.task_id,
                role=Role.ROLE_USER,
                parts=[part_of(task.arguments)],
            )
        )
    return made


def status_of(task: TaskInfo) -> TaskStatus:
    """Return the status of a task, with a sentence where there is something to say."""
    status = TaskStatus(state=a2a_state(task.state))
    status.timestamp.FromDatetime(task.updated_at.astimezone(UTC))
    text = _sentence(task)
    if text is not None:
        status.message.CopyFrom(_said(task, text))
    elif task.progress is not None:
        status.message.CopyFrom(_said(task, task.progress))
    return status


def artifacts_of(task: TaskInfo) -> list[Artifact]:
    """Return the artifacts of a task: the recorded parts of its stream, and its result."""
    found = []
    if task.parts:
        found.append(artifact(STREAM, [part_of(each) for each in task.parts]))
    if task.state is TaskState.COMPLETED and (parts := parts_of(task.result)):
        found.append(artifact(RESULT, parts))
    return found


def artifact(id_: str, parts: Sequence[Part]) -> Artifact:
    """Return an artifact.

    Args:
        id_: its id and name.
        parts: its parts.
    """
    return Artifact(artifact_id=id_, name=id_, parts=parts)


def status_event(task: TaskInfo) -> TaskStatusUpdateEvent:
    """Return the event that a task has another status."""
    return TaskStatusUpdateEvent(task_id=task.task_id, context_id=task.conversation_id, status=status_of(task))


def artifact_event(
    task: TaskInfo, made: Artifact, *, append: bool = False, last: bool = True
) -> TaskArtifactUpdateEvent:
    """Return the event that a task has another artifact, or more of one.

    Args:
        task: the task.
        made: the artifact, or what is new of it.
        append: whether it is added to what there is of it; otherwise it replaces that.
        last: whether nothing more of it comes.
    """
    return TaskArtifactUpdateEvent(
        task_id=task.task_id, context_id=task.conversation_id, artifact=made, append=append, last_chunk=last
    )


class EndedTasks:
    """The tasks whose end this process has told a client in the last seconds.

    The ledger learns of an answer a moment after the caller: a client that asks again must not read that its task
    still runs.
    """

    def __init__(self) -> None:
        self._ended: OrderedDict[str, tuple[float, TaskInfo]] = OrderedDict()

    def note(self, task: TaskInfo) -> TaskInfo:
        """Note a task if it has ended, and return it."""
        if task.state.final:
            self._ended[task.task_id] = time.monotonic(), task
            self._ended.move_to_end(task.task_id)
            while next(iter(self._ended.values()))[0] < time.monotonic() - _KEPT_SECONDS:
                self._ended.popitem(last=False)
        return task

    def newest(self, task: TaskInfo) -> TaskInfo:
        """Return a task as the ledger has it, or its end if the ledger does not have that yet."""
        return task if task.state.final else self._ended.get(task.task_id, (0.0, task))[1]


def now() -> datetime:
    """Return the time of this computer, aware UTC."""
    return datetime.now(UTC)


def _sentence(task: TaskInfo) -> str | None:
    if task.state is TaskState.EXPIRED:
        why = task.error.message if task.error is not None else "no worker was in time"
        return f"the time of the task was over before it was done: {why}"
    if task.error is not None and task.state in (TaskState.FAILED, TaskState.COMPLETED):
        return f"{task.error.type}: {task.error.message}" if task.error.type != "Error" else task.error.message
    if task.state is TaskState.INPUT_REQUIRED:
        return f"the task waits for {task.waits_for}: send it in a message with this taskId"
    return None


def _said(task: TaskInfo, value: JSON) -> Message:
    return Message(
        message_id=f"{task.task_id}-{task.state.name.lower()}",
        context_id=task.conversation_id,
        task_id=task.task_id,
        role=Role.ROLE_AGENT,
        parts=[part_of(value)],
    )
