"""What Celery tells of a message in a worker, written to its receipt."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from waooaw_celery.message import MessageStatus
from waooaw_celery.receipts import Receipts
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: What the ``Ignore`` says that ends a task which replaced itself.
REPLACED = "Replaced by new task"
#: Longest error text kept, in characters.
MAX_ERROR = 2000


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
        _receipts(sender).delivered(sender.message, sender.handler, sender.request.hostname)


def on_success(sender: Any, **_: Any) -> None:
    """The handler returned (pool child)."""
    if isinstance(sender, AgentTask):
        request = sender.request
        _receipts(sender).finished(str(request.id), MessageStatus.HANDLED, worker=request.hostname)


def on_postrun(sender: Any, task_id: str, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """The handler raised ``Ignore``, of which no other signal tells (pool child).

    A task that replaced itself raises it too, but its replacement is what ends the message.
    """
    if isinstance(sender, AgentTask) and state == "IGNORED" and str(retval) != REPLACED:
        _receipts(sender).finished(task_id, MessageStatus.HANDLED)


def on_retry(sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
    """The handler asked for another attempt, or Celery did since its process died (pool child or parent)."""
    if isinstance(sender, AgentTask):
        _receipts(sender).retried(request.id, str(reason)[:MAX_ERROR], getattr(request, "hostname", None))


def on_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """The handler gave up, ran too long or took its process with it (pool child or parent)."""
    if isinstance(sender, AgentTask):
        _failed(_receipts(sender), task_id, f"{class_name(exception)}: {exception}")


def on_revoked(sender: Any, request: Any, expired: bool | None = None, **_: Any) -> None:
    """The message expired before it was begun, or an operator revoked it (parent)."""
    if not isinstance(sender, AgentTask):
        return
    if expired:
        _receipts(sender).finished(request.id, MessageStatus.EXPIRED)
    else:
        _failed(_receipts(sender), request.id, "revoked by an operator")


def class_name(exception: BaseException) -> str:
    """Return the name of an exception's class, also of one that Celery had to wrap to carry it."""
    return str(getattr(exception, "exc_cls_name", type(exception).__name__))


def on_unknown(sender: Any, name: str, id: str, **_: Any) -> None:  # noqa: A002 - Celery's own name
    """The worker has no handler of this name (parent)."""
    if hasattr(sender.app, "receipts"):  # not a plain Celery worker that merely imports this package
        _failed(sender.app.receipts, id, f"the worker has no handler {name!r}")


def on_rejected(sender: Any, message: Any, exc: BaseException | None = None, **_: Any) -> None:
    """Celery could not make a task of what arrived (parent)."""
    id_ = (message.headers or {}).get("id")
    logger.error("message %r was rejected: %s", id_, exc, extra={"action": "message_rejected"})
    if isinstance(id_, str) and hasattr(sender.app, "receipts"):
        _failed(sender.app.receipts, id_, f"rejected: {exc}")


def _receipts(task: AgentTask) -> Receipts:
    receipts: Receipts = task.app.receipts  # type: ignore[attr-defined]  # an AgentApp, which stands above here
    return receipts


def _failed(receipts: Receipts, message_id: str, error: str) -> None:
    receipts.finished(message_id, MessageStatus.FAILED, error[:MAX_ERROR])


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_success, on_success),
    (signals.task_postrun, on_postrun),
    (signals.task_retry, on_retry),
    (signals.task_failure, on_failure),
    (signals.task_revoked, on_revoked),
    (signals.task_unknown, on_unknown),
    (signals.task_rejected, on_rejected),
)
