"""Decides whether a message is tried again after an error of its handler, and publishes the next attempt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry

from waooaw_celery.broker.circuit_breaker import is_outage
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.retries.requeue import ReturnedToQueue, pause_for_outage, requeue
from waooaw_celery.worker.retries.retried_out import is_request, is_retried_out, mark_retried_out
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

logger = get_logger(__name__)


def retry_if_allowed(task: Any, error: Exception) -> None:
    """Retry a message after an error of its handler, if its retry policy allows it.

    Args:
        task: the handler, an AgentTask.
        error: what it raised.

    Raises:
        Retry: the next attempt is published.
        RequeueLimitExceeded: the handler returned the message to its queue too often.
        ReturnedToQueue: the broker does not accept the next attempt.
    """
    try:
        _retry_for(task, error)
    except ReturnedToQueue:
        pause_for_outage()
        raise
    except Exception as final:
        mark_retried_out(task, final)
        raise
    mark_retried_out(task, error)
    if isinstance(error, ReturnedToQueue):
        pause_for_outage()


def _retry_for(task: Any, error: Exception) -> None:
    request = task.request
    if request.called_directly or attempt_of(request).is_final:
        return
    if isinstance(error, Reject) and not isinstance(error, ReturnedToQueue) and getattr(error, "requeue", False):
        raise requeue(task, error) from error
    if isinstance(error, (Ignore, Reject, Retry)):
        return
    if task.retries is None and getattr(task, "autoretry_for", None):  # Celery retries it
        return
    policy = retry_policy(task)
    seconds = 0.0
    if policy.total_seconds is not None:  # the first attempt cannot have begun before the message was sent
        seconds = (clock_of(task.app).now() - task.message.sent_at).total_seconds()
    if policy.may_retry(request.retries + 1, error, seconds):
        pause = policy.delay(request.retries)
        raise task.retry(exc=error, countdown=pause, max_retries=policy.attempts - 1)


def count_request(task: Any, request: Context) -> None:
    """Count a request that is handled for the first time; it adds to the retry budget of the process.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
    """
    if (request.headers or {}).get(REPLY_TO_HEADER) is not None and not request.retries:
        task.app.retry_budget.deposit()


def check_may_retry(task: Any, error: Exception) -> None:
    """Fail a message whose next attempt would repeat what was retried out, or exceed the retry budget.

    Args:
        task: the handler, an AgentTask.
        error: what the handler raised.

    Raises:
        Exception: the handler's error.
    """
    if task.request.called_directly:
        return
    if is_retried_out(error):
        raise error
    if is_request(task) and not task.app.retry_budget.withdraw():
        attempt_of(task.request).is_over_budget = True
        logger.warning(
            "%s[%s] is not tried again: this process has retried too many of its requests",
            task.name,
            task.request.id,
            extra={"action": "retry_budget_spent", "message_id": task.request.id},
        )
        raise error


def retry_policy(task: Any) -> RetryPolicy:
    """Return the retry policy of a handler: its own, or that of the setting ``waooaw_retries``."""
    return task.retries if task.retries is not None else RetryPolicy.of(task.app.settings.retries)


def publish_next_attempt(publish: Callable[[], Any]) -> Any:
    """Publish the next attempt of a message.

    Args:
        publish: Celery's ``Task.retry``, with its arguments.

    Raises:
        Retry: it is published.
        Reject: it cannot be published. It is ReturnedToQueue when the broker does not answer: the message stays
            unacknowledged, and is redelivered when the broker answers again.
    """
    try:
        return publish()
    except Reject as error:
        reason: Any = error.args[0] if error.args else None
        if isinstance(reason, Exception) and is_outage(reason):
            raise ReturnedToQueue(reason, requeue=True) from error
        raise


def check_expiry(task: Any, error: Exception | None, eta: datetime | None, countdown: float) -> None:
    """Fail a message that would expire before its next attempt.

    Args:
        task: the handler, an AgentTask.
        error: what the handler raised; None: the error that is being handled.
        eta: when the next attempt is due; None: after ``countdown``.
        countdown: seconds until the next attempt.

    Raises:
        Exception: the handler's error, or ``MaxRetriesExceededError`` when there is none.
    """
    request = task.request
    if request.called_directly:
        return
    expires_at = parse_datetime(request.expires, UTC)
    due = parse_datetime(eta, task.app.timezone) or clock_of(task.app).now() + timedelta(seconds=countdown)
    if expires_at is not None and due >= expires_at:
        cause = error or sys.exc_info()[1]
        if cause is not None:
            raise cause
        raise task.MaxRetriesExceededError(f"{task.name}[{request.id}] expires before its next attempt")
