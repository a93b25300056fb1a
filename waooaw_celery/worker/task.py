"""The Celery task that every handler of an agent is."""

from __future__ import annotations

from celery import Task
from celery._state import get_current_worker_task

from waooaw_celery.envelope import payload_of
from waooaw_celery.message import ENVELOPE_HEADER, Message

#: Where a task's request keeps its message once that has been read: large ones are not read twice.
_MESSAGE = "waooaw_message"


class AgentTask(Task):  # type: ignore[type-arg]
    """A handler of an agent.

    Attributes:
        agent: name of the agent.
        handler: name of the handler: ``command`` for ``@agent.on(MessageType.COMMAND)``, or the method's own.
    """

    abstract = True
    agent: str = ""
    handler: str = ""
    # Bounded: a message whose handler kills its process is published again this often, then it has failed.
    max_retries = 3
    default_retry_delay = 1

    @property
    def message(self) -> Message:
        """The message that is being handled.

        Raises:
            InvalidMessage: it came with an envelope that this version cannot read.
        """
        request = self.request
        message: Message | None = request.get(_MESSAGE)
        if message is None:
            headers = {
                "id": request.id,
                "root_id": request.root_id,
                "parent_id": request.parent_id,
                ENVELOPE_HEADER: (request.headers or {}).get(ENVELOPE_HEADER),
            }
            payload = payload_of(self.handler, request.args or (), request.kwargs or {})
            message = Message.from_headers(headers, self.agent, payload)
            request.update({_MESSAGE: message})
        return message


def current_task() -> AgentTask | None:
    """Return the handler that is running in this thread, or None outside of handlers."""
    task = get_current_worker_task()
    return task if isinstance(task, AgentTask) else None


def current_message() -> Message | None:
    """Return the message that is being handled in this thread, or None outside of handlers."""
    task = current_task()
    return task.message if task is not None else None
