"""Records together which messages of a batch are handled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType

from celery import Task, signals

from waooaw_celery.errors import AuditUnavailable, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.worker.batches.message_batch import VerdictKind
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.intake import recording_of
from waooaw_celery.worker.record import fact_of

logger = get_logger(__name__)

_PACKAGE = __name__.partition(".")[0]
#: The signals that Celery sends around the handler of a message that is handled alone.
_SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)
#: The methods of a task that Celery calls when its handler has returned.
_HOOKS = ("on_success", "after_return")
#: What a message may carry that follows its handler.
_FOLLOW_UPS = ("callbacks", "chain", "chord")


def can_be_recorded_together(task: Any, member: Any) -> bool:
    """Return whether nothing follows a message but the record that it is handled.

    Args:
        task: the handler, a BatchTask.
        member: the message, a Member.
    """
    request, verdict = member.request, member.attempt.verdict
    if verdict is None or verdict.kind is not VerdictKind.HANDLED:
        return False
    ignored = request.ignore_result if request.ignore_result is not None else task.ignore_result
    return (
        bool(ignored)
        and not any(getattr(request, name) for name in _FOLLOW_UPS)
        and not any(getattr(type(task), name) is not getattr(Task, name) for name in _HOOKS)
    )


def record_handled(task: Any, members: Sequence[Any]) -> None:
    """Record that messages are handled, with one write.

    Args:
        task: the handler, a BatchTask.
        members: the messages, each a Member.
    """
    if not members:
        return
    facts, now = [], clock_of(task.app).now()
    for member in members:
        member.attempt.end(failed=False)
        facts.append(fact_of(task, MessageEvent.HANDLED, member.request, at=now))
    try:
        task.app.receipts.note(*facts)
    except StoreUnavailable as error:
        recording = recording_of(task.app) if isinstance(error, AuditUnavailable) else None
        if recording is not None and all(recording.holds(fact.message_id) for fact in facts):
            return  # the ledger has logged the facts and retries; the messages wait for it
        logger.exception(
            "it could not be recorded that %d messages of a batch are handled: %s",
            len(facts),
            ", ".join(fact.message_id for fact in facts),
            extra={"action": "batch_not_recorded"},
        )


def others_listen() -> bool:
    """Return whether other code than this package listens to Celery's signals, such as a tracing tool."""
    return any(_is_foreign(receiver) for signal in _SIGNALS for _, receiver in signal.receivers or ())


def _is_foreign(receiver: Any) -> bool:
    function = receiver() if isinstance(receiver, ReferenceType) else receiver
    return function is not None and not str(getattr(function, "__module__", "")).startswith(f"{_PACKAGE}.")
