"""Records what happens to a message: one event for its receipt, and one row of the ledger."""

from __future__ import annotations

import time
from typing import Any

from celery.app.task import Context

from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.intake import recording_of
from waooaw_celery.worker.outcomes.acknowledged_outcomes import carry

#: The longest error text that is recorded, in characters.
MAX_ERROR_CHARACTERS = 2000


def record(
    task: Any, event: MessageEvent, request: Context | None = None, *, error: str | None = None, **facts: Any
) -> None:
    """Record an event of a message.

    Args:
        task: its handler, an AgentTask.
        event: what happened.
        request: Celery's request; None: the one that the task handles.
        error: why, where the event is a failure or a retry; cut at ``MAX_ERROR_CHARACTERS`` characters.
        facts: fields of MessageFact that differ from those of the request.

    Raises:
        AuditUnavailable: neither the ledger nor its spool can be written, and the worker cannot note that the
            message must wait.
    """
    record_fact(task.app, fact_of(task, event, request, error=error, **facts))


def record_fact(app: Any, fact: MessageFact) -> None:
    """Record a fact, or keep its message unacknowledged until the fact can be recorded.

    Args:
        app: the application, an AgentApp.
        fact: what happened.

    Raises:
        AuditUnavailable: neither is possible.
    """
    if carry(app, fact):
        return
    receipts: ReceiptStore = app.receipts
    try:
        receipts.note(fact)
    except AuditUnavailable:
        recording = recording_of(app)
        if recording is None or not recording.holds(fact.message_id):
            raise
        # The ledger has logged the fact and retries. The message is acknowledged once the fact is recorded.


def fact_of(
    task: Any, event: MessageEvent, request: Context | None = None, *, error: str | None = None, **facts: Any
) -> MessageFact:
    """Return an event of a message as a fact: with its attempt, worker, handler and the seconds since admission.

    The arguments are those of ``record``.
    """
    request = task.request if request is None else request
    admitted_at = attempt_of(request).admitted_at
    known: dict[str, Any] = {
        "seconds": None if admitted_at is None else time.monotonic() - admitted_at,
        "error": error and error[:MAX_ERROR_CHARACTERS],
        "message": readable_message(task, request),
        "handler": task.handler,
        "worker": request.hostname,
        "attempt": request.retries + 1,
    }
    return MessageFact(message_id=str(request.id), event=event, **(known | facts))


def readable_message(task: Any, request: Context) -> Message | None:
    """Return the message of a request, or None when its envelope or its arguments cannot be read.

    Args:
        task: its handler, an AgentTask.
        request: Celery's request.
    """
    try:
        message: Message = task.message_of(request)
    except (TypeError, ValueError):
        return None
    return message
