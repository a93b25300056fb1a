"""The Celery task that every handler of an agent is."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery._state import get_current_worker_task

from waooaw_celery.message import ENVELOPE_HEADER, JSON, TYPE_NAMES, Message


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
        headers = {
            "id": request.id,
            "root_id": request.root_id,
            "parent_id": request.parent_id,
            ENVELOPE_HEADER: (request.headers or {}).get(ENVELOPE_HEADER),
        }
        payload = message_payload(self.handler, request.args or (), request.kwargs or {})
        return Message.from_headers(headers, self.agent, payload)


def message_payload(handler: str, args: Any, kwargs: Any) -> JSON:
    """Return what a call of this handler says: the payload itself, or a method's parameters.

    Args:
        handler: name of the handler.
        args: positional arguments of the task; a message's payload is the only one.
        kwargs: keyword arguments of the task.
    """
    if handler in TYPE_NAMES and len(args) == 1 and not kwargs:
        return args[0]
    return {"args": list(args), "kwargs": dict(kwargs)} if args else dict(kwargs)


def current_task() -> AgentTask | None:
    """Return the handler that is running in this thread, or None outside of handlers."""
    task = get_current_worker_task()
    return task if isinstance(task, AgentTask) else None


def current_message() -> Message | None:
    """Return the message that is being handled in this thread, or None outside of handlers."""
    task = current_task()
    return task.message if task is not None else None
