"""Collects what an outside agent answers, until its task has ended."""

from __future__ import annotations

from a2a.types import Artifact, Message, Part, StreamResponse, Task, TaskState, TaskStatus

from waooaw_celery.edges.a2a.values import value_of
from waooaw_celery.errors import Cancelled, RemoteError
from waooaw_celery.messages.validation import JSON

_ENDED = {
    TaskState.TASK_STATE_COMPLETED,
    TaskState.TASK_STATE_FAILED,
    TaskState.TASK_STATE_CANCELED,
    TaskState.TASK_STATE_REJECTED,
}
#: A task in these states goes on only when somebody answers, and a request has nobody who could.
_WAITS = {TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED}


class RemoteAnswer:
    """What an outside agent has answered so far.

    Args:
        agent: our name of it, for errors.

    Attributes:
        task_id: the id of its task; empty: it has told none.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self.task_id = ""
        self._status: TaskStatus | None = None
        self._message: Message | None = None
        self._artifacts: dict[str, list[Part]] = {}

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come."""
        return self._message is not None or (self._status is not None and self._status.state in _ENDED | _WAITS)

    def add(self, event: StreamResponse) -> list[JSON]:
        """Add an event, and return the values of what is new in an artifact."""
        if event.HasField("message"):
            self._message = event.message
        elif event.HasField("task"):
            return self.add_task(event.task)
        elif event.HasField("status_update"):
            self.task_id = event.status_update.task_id or self.task_id
            self._status = event.status_update.status
        elif event.HasField("artifact_update"):
            update = event.artifact_update
            self.task_id = update.task_id or self.task_id
            return self._add_artifact(update.artifact, append=update.append)
        return []

    def add_task(self, task: Task) -> list[JSON]:
        """Add a whole task, and return the values of the artifacts that are new."""
        self.task_id, self._status = task.id, task.status
        new = [each for each in task.artifacts if each.artifact_id not in self._artifacts]
        self._artifacts |= {each.artifact_id: list(each.parts) for each in task.artifacts}
        return [value_of(each.parts) for each in new]

    def result(self) -> JSON:
        """Return the result, once it has ended: that of its only artifact, a list of several, or its message.

        Raises:
            RemoteError: the task failed, was rejected, or waits for input; with the words of the agent.
            Cancelled: the outside agent has cancelled it.
        """
        if self._message is not None:
            return value_of(self._message.parts)
        status = self._status or TaskStatus()
        said = value_of(status.message.parts)
        if status.state == TaskState.TASK_STATE_CANCELED:
            raise Cancelled(f"{self._agent} has cancelled the task {self.task_id}")
        if status.state != TaskState.TASK_STATE_COMPLETED:
            kind = TaskState.Name(status.state)
            text = said if isinstance(said, str) and said else f"the task {self.task_id} is {kind}"
            if status.state in _WAITS:
                text = f"the agent waits for an answer, which a request cannot give: {text}"
            raise RemoteError(self._agent, kind, text)
        values = [value_of(parts) for parts in self._artifacts.values()]
        if not values:
            return said
        return values[0] if len(values) == 1 else values

    def _add_artifact(self, artifact: Artifact, *, append: bool) -> list[JSON]:
        parts = self._artifacts.setdefault(artifact.artifact_id, [])
        if not append:
            parts.clear()
        parts.extend(artifact.parts)
        return [value_of([part]) for part in artifact.parts]
