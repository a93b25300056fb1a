"""Tells which handler runs here, and whether what is sent here follows a handler that has ended."""

from __future__ import annotations

from typing import Any

from celery._state import get_current_worker_task

from waooaw_celery.messages.message import Message
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.execution.completion import running_coroutine
from waooaw_celery.worker.outcomes.follow_up_context import is_resent_follow_up, message_that_ended
from waooaw_celery.worker.task import AgentTask


def current_task() -> AgentTask | None:
    """Return the handler that runs in this thread or coroutine, or None outside of handlers."""
    running = running_coroutine.get()
    task = get_current_worker_task() if running is None else running[0]
    if task is None and (ended := message_that_ended()) is not None:
        task = ended[0]
    return task if isinstance(task, AgentTask) else None


def current_message() -> Message | None:
    """Return the message that is being handled in this thread or coroutine.

    Returns:
        None outside of handlers, and in a handler of batches, which handles several messages at once.

    Raises:
        InvalidMessage: this version cannot read the message's envelope.
    """
    task = current_task()
    return task.message if task is not None and not attempt_of(task.request).is_batch else None


def is_sent_by_finished_handler() -> bool:
    """Return whether Celery sends a follow-up here, such as the next step of a chain, and no handler runs."""
    if running_coroutine.get() is not None:  # a coroutine of a handler may outlive its handler
        return False
    if is_resent_follow_up():
        return True
    task = get_current_worker_task()
    if isinstance(task, AgentTask):
        return attempt_of(task.request).handler_ended
    if task is None:
        ended = message_that_ended()
        return ended is not None and isinstance(ended[0], AgentTask)
    return bool(task.name.startswith("celery."))


def is_errback(task_name: str, args: Any) -> bool:
    """Return whether a follow-up is an errback: the message that it follows has failed.

    Args:
        task_name: name of the task that is sent.
        args: its positional arguments; the first of an errback is the id of the failed message.
    """
    task = current_task()
    if task is None or get_current_worker_task() is None:  # Celery does this after failures only
        return True
    request = task.request
    if attempt_of(request).has_failed:
        return True
    errbacks = [each.get("task") for each in request.errbacks or () if isinstance(each, dict)]
    return task_name in errbacks and tuple(args or ())[:1] == (request.id,)


def note_failed() -> None:
    """Note that the message that has ended fails because its follow-up cannot be sent."""
    task = current_task()
    if task is not None:
        attempt_of(task.request).has_failed = True
