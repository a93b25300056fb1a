"""What Celery tells of a message in a worker, written to its receipt."""

from __future__ import annotations

import logging
import time
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.exceptions import Reject
from celery.states import UNREADY_STATES

from waooaw_celery.errors import (
    AuditUnavailable,
    DeliveryLimitExceeded,
    InvalidMessage,
    UnknownAgent,
    UnknownSender,
)
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.worker.admission import begin_or_give_back, given_back, reason_to_skip, store_revoked
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.execution.pools import retry_behind
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.intake import recording_of
from waooaw_celery.worker.outcomes import dead_lettering as letters
from waooaw_celery.worker.outcomes.committed_effects import is_committed
from waooaw_celery.worker.task import CANCELLED, AgentTask

logger = logging.getLogger(__name__)

#: What the ``Ignore`` says that ends a task which replaced itself.
REPLACED = "Replaced by new task"
#: How the result of a request begins whose method raised ``Ignore``.
IGNORED = "Ignore: "
#: How a message fails that ended its process, or its worker, each time.
_DEADLY = (WorkerLostError, DeliveryLimitExceeded)
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
    """A worker begins to handle a message, or finds that it expired or was cancelled (pool child)."""
    if isinstance(sender, AgentTask):
        event = reason_to_skip(sender)
        if event is not None:
            _note(sender, event, attempt=0)
            return
        sender.request.update({_BEGAN: time.monotonic()})
        message, now = _message(sender, sender.request), clock_of(sender.app).now()
        waited = max((now - message.sent_at).total_seconds(), 0.0) if message is not None else None
        begin_or_give_back(sender, _fact(sender, MessageEvent.DELIVERED, at=now, seconds=waited))


def on_success(sender: Any, **_: Any) -> None:
    """The handler returned (pool child)."""
    if isinstance(sender, AgentTask):
        _note(sender, MessageEvent.HANDLED)


def on_postrun(sender: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """The handler raised ``Ignore`` or ``Reject``, of which no other signal tells as much (pool child).

    A task that replaced itself raises ``Ignore`` too, but its replacement is what ends the message; and one that
    was refused has ended already.
    """
    if not isinstance(sender, AgentTask) or reason_to_skip(sender) is not None or given_back(sender):
        return
    if sender.was_stopped():
        _note(sender, MessageEvent.CANCELLED)
        store_revoked(sender, CANCELLED)
    elif state == "IGNORED" and str(retval) != REPLACED:
        _note(sender, MessageEvent.HANDLED)
        _answer_ignored(sender, retval)
    elif state == "REJECTED":
        error = f"Reject: {retval.reason}"
        if not retval.requeue:
            letters.keep_dead_letter(sender, sender.request, error[:MAX_ERROR])
        _note(sender, MessageEvent.RETRIED if retval.requeue else MessageEvent.FAILED, error=error)


def on_retry(sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
    """The handler asked for another attempt, or Celery did since its process died (pool child or parent)."""
    if isinstance(sender, AgentTask):
        _note(sender, MessageEvent.RETRIED, request, error=reason and str(reason))


def on_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """The handler gave up, ran too long or took its process with it (pool child or parent).

    What took its process or its worker with it each time would do so again: it is DEAD, where a letter of it is
    kept. It is HANDLED when its effect is committed all the same (``once=True``).
    """
    if isinstance(sender, AgentTask):
        if is_committed(sender, task_id):  # nothing is left to be tried again by hand
            _receipts(sender.app).note(MessageFact(message_id=task_id, event=MessageEvent.HANDLED))
            return
        error = _error(exception)
        # Of what was rejected there is a letter already: the pool process made it.
        rejected = isinstance(exception, Reject)
        kept = not rejected and letters.keep_dead_letter(
            sender, letters.request_of(sender, task_id), error[:MAX_ERROR]
        )
        event = MessageEvent.DEAD if kept and isinstance(exception, _DEADLY) else MessageEvent.FAILED
        if sender.request.id == task_id:
            _note(sender, event, error=error)
        else:  # Celery does not always say which request it tells of
            fact = MessageFact(message_id=task_id, event=event, error=error[:MAX_ERROR])
            _write(sender.app, fact)


def on_internal_error(sender: Any, request: Any, exception: BaseException, **_: Any) -> None:
    """The handler came to its end, and the result backend did not take what came of it (pool child)."""
    if isinstance(sender, AgentTask):
        # A retry is on its way already: Celery publishes it before it stores that.
        event = MessageEvent.RETRIED if retry_behind(exception) is not None else MessageEvent.FAILED
        unsent = isinstance(exception, UnknownAgent | UnknownSender | InvalidMessage)
        what = "what follows it could not be sent" if unsent else "its outcome could not be stored"
        error = f"{what}: {exception}"
        _note(sender, event, Context(request), error=error)


def on_revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """The message expired before it was begun, or it was cancelled, or an operator revoked it (parent)."""
    if isinstance(sender, AgentTask):
        event, error = (MessageEvent.EXPIRED, None) if expired else (MessageEvent.FAILED, "revoked by an operator")
        if not expired and request.id in cancellations_of(sender.app):
            event, error = MessageEvent.CANCELLED, None
        _note(sender, event, request, error=error, attempt=request.retries + 1 if terminated else 0)


def class_name(exception: BaseException) -> str:
    """Return the name of an exception's class, also of one that Celery had to wrap to carry it."""
    return str(getattr(exception, "exc_cls_name", type(exception).__name__))


def _error(exception: BaseException) -> str:
    """Return an exception's class and text, which for some of Celery's is the class again."""
    name, text = class_name(exception), str(exception)
    return text if text.startswith(f"{name}(") else f"{name}: {text}"


def _answer_ignored(task: AgentTask, reason: BaseException) -> None:
    """Tell whoever waits for the result that there will be none, unless the handler stored a state of its own."""
    request, id_ = task.request, str(task.request.id)
    nobody_waits = task.ignore_result or request.ignore_result
    if not nobody_waits and task.backend.get_state(id_) in UNREADY_STATES:
        task.backend.mark_as_revoked(id_, f"{IGNORED}{reason}", request=request)


def _note(
    task: AgentTask, event: MessageEvent, request: Any = None, *, error: str | None = None, **facts: Any
) -> None:
    """Write down what became of the message of a request; None: of the one that the task handles."""
    _write(task.app, _fact(task, event, request, error=error, **facts))


def _write(app: Any, fact: MessageFact) -> None:
    try:
        _receipts(app).note(fact)
    except AuditUnavailable:
        recording = recording_of(app)
        if recording is None or not recording.holds(fact.message_id):
            raise
        # The fact is kept and has been logged: its message is acknowledged when the fact is written down.


def _fact(
    task: AgentTask, event: MessageEvent, request: Any = None, *, error: str | None = None, **facts: Any
) -> MessageFact:
    request = task.request if request is None else request
    began = request.get(_BEGAN)
    known: dict[str, Any] = {
        "seconds": None if began is None else time.monotonic() - began,
        "error": error and error[:MAX_ERROR],
        "message": _message(task, request),
        "handler": task.handler,
        "worker": request.hostname,
        "attempt": request.retries + 1,
    }
    return MessageFact(message_id=str(request.id), event=event, **(known | facts))


def _message(task: AgentTask, request: Context) -> Message | None:
    try:
        return task.message_of(request)
    except (TypeError, ValueError):  # nobody can read its envelope or its arguments: it is known by its id
        return None


def _receipts(app: Any) -> ReceiptStore:
    receipts: ReceiptStore = app.receipts  # an AgentApp, which stands above here
    return receipts


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_success, on_success),
    (signals.task_postrun, on_postrun),
    (signals.task_retry, on_retry),
    (signals.task_failure, on_failure),
    (signals.task_internal_error, on_internal_error),
    (signals.task_revoked, on_revoked),
)
