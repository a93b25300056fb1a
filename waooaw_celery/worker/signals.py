"""What Celery tells of a message in a worker, written to its receipt."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

from celery import signals

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.message import Message
from waooaw_celery.receipts import Event, Fact, Receipts
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: What the ``Ignore`` says that ends a task which replaced itself.
REPLACED = "Replaced by new task"
#: Longest error text kept, in characters.
MAX_ERROR = 2000
#: Where a task's request keeps the moment at which the attempt began, by the monotonic clock.
_BEGAN = "waooaw_began"


def connect() -> None:
    """Listen. Called once a process; calling it again changes nothing."""
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"waooaw.{receiver.__name__}")


def disconnect() -> None:
    """Stop listening."""
    for signal, receiver in _RECEIVERS:
        signal.disconnect(receiver, dispatch_uid=f"waooaw.{receiver.__name__}")


def on_prerun(sender: Any, **_: Any) -> None:
    """A worker begins to handle a message (pool child)."""
    if isinstance(sender, AgentTask):
        sender.request.update({_BEGAN: time.monotonic()})
        message, now = _message(sender), datetime.now(UTC)
        waited = max((now - message.sent_at).total_seconds(), 0.0) if message is not None else None
        _note(sender, Event.DELIVERED, at=now, seconds=waited)


def on_success(sender: Any, **_: Any) -> None:
    """The handler returned (pool child)."""
    if isinstance(sender, AgentTask):
        _note(sender, Event.HANDLED)


def on_postrun(sender: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """The handler raised ``Ignore``, of which no other signal tells (pool child).

    A task that replaced itself raises it too, but its replacement is what ends the message.
    """
    if isinstance(sender, AgentTask) and state == "IGNORED" and str(retval) != REPLACED:
        _note(sender, Event.HANDLED)


def on_retry(sender: Any, reason: Any = None, **_: Any) -> None:
    """The handler asked for another attempt, or Celery did since its process died (pool child or parent)."""
    if isinstance(sender, AgentTask):
        _note(sender, Event.RETRIED, error=str(reason))


def on_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """The handler gave up, ran too long or took its process with it (pool child or parent)."""
    if isinstance(sender, AgentTask):
        _note(sender, Event.FAILED, task_id, error=f"{class_name(exception)}: {exception}")


def on_internal_error(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """The handler came to its end, and the result backend did not take what came of it (pool child)."""
    if isinstance(sender, AgentTask):
        _note(sender, Event.FAILED, task_id, error=f"its outcome could not be stored: {exception}")


def on_revoked(sender: Any, request: Any, expired: bool | None = None, **_: Any) -> None:
    """The message expired before it was begun, or an operator revoked it (parent)."""
    if isinstance(sender, AgentTask):
        event, error = (Event.EXPIRED, None) if expired else (Event.FAILED, "revoked by an operator")
        _receipts(sender.app).note(Fact(message_id=request.id, event=event, error=error))


def on_unknown(sender: Any, name: str, id: str, **_: Any) -> None:  # noqa: A002 - Celery's own name
    """The worker has no handler of this name (parent)."""
    if hasattr(sender.app, "receipts"):  # not a plain Celery worker that merely imports this package
        error = f"the worker has no handler {name!r}"
        _receipts(sender.app).note(Fact(message_id=id, event=Event.FAILED, error=error))


def on_rejected(sender: Any, message: Any, exc: BaseException | None = None, **_: Any) -> None:
    """Celery could not make a task of what arrived (parent)."""
    id_ = (message.headers or {}).get("id")
    logger.error("message %r was rejected: %s", id_, exc, extra={"action": "message_rejected"})
    if isinstance(id_, str) and hasattr(sender.app, "receipts"):
        error = f"rejected: {exc}"[:MAX_ERROR]
        _receipts(sender.app).note(Fact(message_id=id_, event=Event.FAILED, error=error))


def class_name(exception: BaseException) -> str:
    """Return the name of an exception's class, also of one that Celery had to wrap to carry it."""
    return str(getattr(exception, "exc_cls_name", type(exception).__name__))


def _note(
    task: AgentTask, event: Event, task_id: str | None = None, *, error: str | None = None, **facts: Any
) -> None:
    """Write down what became of the message that a task handles, or handled in a process that is gone."""
    request = task.request
    if task_id is not None and request.id != task_id:  # Celery does not always say which request it tells of
        _receipts(task.app).note(Fact(message_id=task_id, event=event, error=error and error[:MAX_ERROR]))
        return
    began = request.get(_BEGAN)
    known: dict[str, Any] = {
        "seconds": None if began is None else time.monotonic() - began,
        "error": error and error[:MAX_ERROR],
        "message": _message(task),
        "handler": task.handler,
        "worker": request.hostname,
        "attempt": request.retries + 1,
    }
    _receipts(task.app).note(Fact(message_id=str(request.id), event=event, **(known | facts)))


def _message(task: AgentTask) -> Message | None:
    try:
        return task.message
    except InvalidMessage:  # an envelope that nobody can read: what became of it is known by its id
        return None


def _receipts(app: Any) -> Receipts:
    receipts: Receipts = app.receipts  # an AgentApp, which stands above here
    return receipts


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_success, on_success),
    (signals.task_postrun, on_postrun),
    (signals.task_retry, on_retry),
    (signals.task_failure, on_failure),
    (signals.task_internal_error, on_internal_error),
    (signals.task_revoked, on_revoked),
    (signals.task_unknown, on_unknown),
    (signals.task_rejected, on_rejected),
)
