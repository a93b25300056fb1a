"""Receivers of Celery's signals: they admit messages and record how their handlers end."""

from __future__ import annotations

from typing import Any

from billiard.exceptions import WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.exceptions import Reject
from celery.states import UNREADY_STATES

from waooaw_celery.errors import DeliveryLimitExceeded, InvalidMessage, UnknownAgent, UnknownSender
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.worker.admission import admit, reason_to_skip, store_revoked
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.cancellation import CANCELLED, cancellations_of
from waooaw_celery.worker.execution.pools import retry_behind
from waooaw_celery.worker.outcomes.acknowledged_outcomes import ends_with_acknowledgement, withdraw
from waooaw_celery.worker.outcomes.answers import failed, recorded_answer, succeeded
from waooaw_celery.worker.outcomes.committed_effects import is_committed
from waooaw_celery.worker.outcomes.dead_lettering import add_dead_letter, request_of
from waooaw_celery.worker.record import MAX_ERROR_CHARACTERS, record, record_fact
from waooaw_celery.worker.task import AgentTask

#: The text of the ``Ignore`` that Celery raises in a task that replaces itself.
REPLACED = "Replaced by new task"
#: The prefix of the result of a request whose method raised ``Ignore``.
IGNORED = "Ignore: "
#: The failures of a message that ends its process or its worker each time.
_DEADLY = (WorkerLostError, DeliveryLimitExceeded)


def connect() -> None:
    """Connect the receivers, once per process; a second call changes nothing."""
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"waooaw.{receiver.__name__}")


def disconnect() -> None:
    """Disconnect the receivers."""
    for signal, receiver in _RECEIVERS:
        signal.disconnect(receiver, dispatch_uid=f"waooaw.{receiver.__name__}")


def on_prerun(sender: Any, **_: Any) -> None:
    """Admit the message (in the pool process)."""
    if isinstance(sender, AgentTask):
        admit(sender)


def on_success(sender: Any, result: Any = None, **_: Any) -> None:
    """Record that the handler returned, and what (in the pool process). The result backend has the result."""
    if not isinstance(sender, AgentTask):
        return
    request = sender.request
    if not ends_with_acknowledgement(request):
        answer = recorded_answer(sender, request, succeeded(result))
        record(sender, MessageEvent.HANDLED, request, answer=answer)


def on_postrun(sender: Any, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """Record that the handler was stopped, or raised ``Ignore`` or ``Reject`` (in the pool process).

    A task that replaces itself raises ``Ignore`` too, but the replacement ends its message. A message that was not
    admitted has ended already.
    """
    if not isinstance(sender, AgentTask):
        return
    request = sender.request
    attempt = attempt_of(request)
    if reason_to_skip(sender, request) is not None or attempt.requeue_reason:
        return
    if attempt.is_stopped:
        record(sender, MessageEvent.CANCELLED)
        store_revoked(sender, CANCELLED)
    elif state == "IGNORED" and str(retval) != REPLACED:
        record(sender, MessageEvent.HANDLED)
        _store_ignored(sender, retval)
    elif state == "REJECTED":
        error = f"Reject: {retval.reason}"
        if not retval.requeue:
            add_dead_letter(sender, sender.request, error[:MAX_ERROR_CHARACTERS])
        record(sender, MessageEvent.RETRIED if retval.requeue else MessageEvent.FAILED, error=error)


def on_retry(sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
    """Record a retry: the handler asked for it, or its process died (in the pool or the main process)."""
    if isinstance(sender, AgentTask):
        record(sender, MessageEvent.RETRIED, request, error=reason and str(reason))


def on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    """Record that the handler failed, ran too long or lost its process (in the pool or the main process).

    A message that ended its process or its worker each time is DEAD, if a dead letter of it is kept. A message
    whose effect is committed (``once=True``) is still HANDLED.
    """
    if not isinstance(sender, AgentTask):
        return
    request = request_of(sender, task_id)
    told = failed(class_name(exception), str(exception), getattr(einfo, "traceback", None))
    answer = recorded_answer(sender, request, told)
    if is_committed(sender, task_id):  # nothing is left to retry by hand
        record_fact(sender.app, MessageFact(message_id=task_id, event=MessageEvent.HANDLED, answer=answer))
        return
    error = _describe(exception)
    # The pool process has made the dead letter of a rejected message.
    is_dead_letter = not isinstance(exception, Reject) and add_dead_letter(
        sender, request, error[:MAX_ERROR_CHARACTERS]
    )
    event = MessageEvent.DEAD if is_dead_letter and isinstance(exception, _DEADLY) else MessageEvent.FAILED
    if sender.request.id == task_id:
        record(sender, event, error=error, answer=answer)
    else:  # Celery does not always make the request current
        text = error[:MAX_ERROR_CHARACTERS]
        record_fact(sender.app, MessageFact(message_id=task_id, event=event, error=text, answer=answer))


def on_internal_error(sender: Any, request: Any, exception: BaseException, **_: Any) -> None:
    """Record that the handler ended, but its result could not be stored or its follow-up sent (pool process)."""
    if isinstance(sender, AgentTask):
        # Celery publishes a retry before it stores its state.
        event = MessageEvent.RETRIED if retry_behind(exception) is not None else MessageEvent.FAILED
        is_unsent = isinstance(exception, UnknownAgent | UnknownSender | InvalidMessage)
        what = "its follow-up could not be sent" if is_unsent else "its outcome could not be stored"
        record(sender, event, Context(request), error=f"{what}: {exception}")


def on_revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """Record that the message expired, was cancelled, or was revoked by an operator (in the main process)."""
    if isinstance(sender, AgentTask):
        event, error = (MessageEvent.EXPIRED, None) if expired else (MessageEvent.FAILED, "revoked by an operator")
        if not expired and request.id in cancellations_of(sender.app):
            event, error = MessageEvent.CANCELLED, None
        if not terminated:
            withdraw(sender.app, request)
        record(sender, event, request, error=error, attempt=request.retries + 1 if terminated else 0)


def class_name(exception: BaseException) -> str:
    """Return the name of an exception's class; also of one that Celery wrapped because it cannot be pickled."""
    return str(getattr(exception, "exc_cls_name", type(exception).__name__))


def _describe(exception: BaseException) -> str:
    """Return the class and the text of an exception; the text of some of Celery's begins with the class."""
    name, text = class_name(exception), str(exception)
    return text if text.startswith(f"{name}(") else f"{name}: {text}"


def _store_ignored(task: AgentTask, reason: BaseException) -> None:
    """Store in the result backend that a request gets no answer, unless its handler has stored a state."""
    request, id_ = task.request, str(task.request.id)
    nobody_waits = task.ignore_result or request.ignore_result
    if not nobody_waits and task.backend.get_state(id_) in UNREADY_STATES:
        task.backend.mark_as_revoked(id_, f"{IGNORED}{reason}", request=request)


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_success, on_success),
    (signals.task_postrun, on_postrun),
    (signals.task_retry, on_retry),
    (signals.task_failure, on_failure),
    (signals.task_internal_error, on_internal_error),
    (signals.task_revoked, on_revoked),
)
