"""The Celery task that every handler of an agent is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than its stubs
from celery import Task
from celery._state import get_current_worker_task
from celery.app.task import Context
from celery.exceptions import Ignore, WorkerShutdown, WorkerTerminate

from waooaw_celery.envelope import moment, payload_of
from waooaw_celery.errors import HandlerExited
from waooaw_celery.message import ENVELOPE_HEADER, Message

#: Where a task's request keeps its message once that has been read: large ones are not read twice.
_MESSAGE = "waooaw_message"
#: Where it keeps whether the message came too late to be begun.
_OVER = "waooaw_over"
#: Where it keeps that the handler has ended, and Celery goes on.
_ENDED = "waooaw_ended"


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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the handler.

        Raises:
            HandlerExited: it called ``sys.exit()`` or ran out of memory, which would otherwise end or wedge its
                worker.
        """
        outermost = self.request.get(_ENDED) is None  # a handler may call itself
        if outermost:
            self.request.update({_ENDED: False})
        try:
            return super().__call__(*args, **kwargs)
        except MemoryError as error:  # Celery would end the worker, and the next one that meets the message too
            raise HandlerExited(f"{self.name} ran out of memory: {error}") from error
        except (WorkerShutdown, WorkerTerminate):  # not the handler's: its worker is told to end
            raise
        except SystemExit as error:
            # Its process is told to end: Celery knows whether an operator revoked the message, or tries it again.
            if terminate_handler_fired():
                raise
            raise HandlerExited(f"{self.name} called sys.exit({error.code!r})") from error
        finally:
            if outermost:
                self.request.update({_ENDED: True})

    def is_over(self) -> bool:
        """Whether the time of the message was over while it waited in the worker, where Celery no longer looks.

        Asked of one attempt again, it answers the same.
        """
        over: bool | None = self.request.get(_OVER)
        if over is None:
            expires_at = moment(self.request.expires, UTC)
            over = expires_at is not None and expires_at <= datetime.now(UTC)
            self.request.update({_OVER: over})
        return over

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Drop a message whose time is over."""
        if self.is_over():
            self.backend.mark_as_revoked(
                task_id, "expired", request=self.request, store_result=not self.ignore_result
            )
            raise Ignore

    @property
    def message(self) -> Message:
        """The message that is being handled.

        Raises:
            InvalidMessage: it came with an envelope that this version cannot read.
        """
        return self.message_of(self.request)

    def message_of(self, request: Context) -> Message:
        """Return the message of a request for this handler.

        Raises:
            InvalidMessage: it came with an envelope that this version cannot read.
        """
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


def goes_on() -> bool:
    """Whether Celery sends on what was begun, such as the next step of a chain, and no handler runs."""
    task = get_current_worker_task()
    if isinstance(task, AgentTask):
        return bool(task.request.get(_ENDED))
    return task is not None and task.name.startswith("celery.")


def current_message() -> Message | None:
    """Return the message that is being handled in this thread, or None outside of handlers."""
    task = current_task()
    return task.message if task is not None else None
