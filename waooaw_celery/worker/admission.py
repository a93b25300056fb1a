"""Decides whether the handler of a message runs.

The handler does not run when the message has expired, was cancelled, was already handled, or has killed too many
workers.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC
from typing import Any

from celery.exceptions import Ignore, Reject

from waooaw_celery.broker.incoming.delivery import DELIVERY_LIMIT
from waooaw_celery.errors import AuditUnavailable, DeliveryLimitExceeded, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.enums import FINAL
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.outcomes.committed_effects import (
    is_marked_redelivered,
    is_redelivered,
    was_committed_before,
)
from waooaw_celery.worker.record import fact_of, readable_message, record

logger = logging.getLogger(__name__)

#: Seconds for which admission tries to record DELIVERED before the message goes back to its queue.
REQUEUE_SECONDS = 2.0
#: The reason that Celery logs for a duplicate.
DUPLICATE_REASON = "it has ended before, and is not handled again"


def admit(task: Any) -> None:
    """Decide whether the handler of a message runs, and record it: DELIVERED, or why the message is skipped.

    Celery calls the handler's ``before_start`` next, which raises when the message was not admitted.

    Args:
        task: the handler, an AgentTask.
    """
    event = reason_to_skip(task)
    if event is not None:
        record(task, event, attempt=0)
        return
    attempt_of(task.request).admitted_at = time.monotonic()
    message, now = readable_message(task, task.request), clock_of(task.app).now()
    waited = max((now - message.sent_at).total_seconds(), 0.0) if message is not None else None
    _admit_or_requeue(task, fact_of(task, MessageEvent.DELIVERED, at=now, seconds=waited))


def check_admitted(task: Any) -> None:
    """Raise what ends a message that was not admitted.

    Args:
        task: the handler, an AgentTask.

    Raises:
        Reject: it goes back to its queue.
        Ignore: it has expired, was cancelled, or has ended before.
        DeliveryLimitExceeded: it has ended too many workers.
    """
    attempt = attempt_of(task.request)
    if attempt.requeue_reason:
        raise Reject(attempt.requeue_reason, requeue=True)
    event = reason_to_skip(task)
    if event is MessageEvent.DUPLICATE:  # its caller has an answer, which stays
        raise Ignore(DUPLICATE_REASON)
    if event is not None:
        store_revoked(task, event.value)
        raise Ignore
    if attempt.lost_workers:
        raise DeliveryLimitExceeded(f"{attempt.lost_workers} workers ended with it")


def reason_to_skip(task: Any) -> MessageEvent | None:
    """Return the event with which a message ends without its handler, or None when the handler runs.

    The message may have expired or been cancelled while it waited in the pool, or be a DUPLICATE of a message that
    has ended. The answer is the same each time it is asked of one attempt. A message with a committed effect is
    not skipped: its handler returns what it returned before.

    Args:
        task: the handler, an AgentTask.
    """
    attempt = attempt_of(task.request)
    if not attempt.is_checked:
        attempt.is_checked, attempt.skipped_as = True, _expired_or_cancelled(task)
    return attempt.skipped_as


def _expired_or_cancelled(task: Any) -> MessageEvent | None:
    request, event = task.request, None
    expires_at = parse_datetime(request.expires, UTC)
    if expires_at is not None and expires_at <= clock_of(task.app).now():
        event = MessageEvent.EXPIRED
    elif request.id in cancellations_of(task.app):
        event = MessageEvent.CANCELLED
    return None if event is not None and was_committed_before(task, request) else event


def is_requeued(task: Any) -> bool:
    """Return whether a message goes back to its queue because its delivery cannot be recorded."""
    return bool(attempt_of(task.request).requeue_reason)


def store_revoked(task: Any, reason: str) -> None:
    """Store in the result backend that a request gets no answer, unless nobody waits for one.

    Args:
        task: the handler, an AgentTask.
        reason: such as ``cancelled``.
    """
    request = task.request
    nobody_waits = task.ignore_result or bool(request.ignore_result)
    task.backend.mark_as_revoked(str(request.id), reason, request=request, store_result=not nobody_waits)


def _admit_or_requeue(task: Any, fact: MessageFact) -> None:
    """Admit a delivery; where that cannot be recorded for ``REQUEUE_SECONDS``, have the message requeued."""
    hard = (task.request.timelimit or (None, None))[0] or task.time_limit or 2 * REQUEUE_SECONDS
    deadline = time.monotonic() + min(REQUEUE_SECONDS, float(hard) / 2)
    while True:
        try:
            return _admit_delivery(task, fact)
        except AuditUnavailable as error:
            # The worker needs this time to stop consuming. Otherwise the message would come back at once.
            if time.monotonic() > deadline:
                attempt_of(task.request).requeue_reason = str(error)
                return None
            time.sleep(0.2)


def _admit_delivery(task: Any, fact: MessageFact) -> None:
    """Record DELIVERED, unless the message has ended before or has ended too many workers."""
    attempt = attempt_of(task.request)
    if is_marked_redelivered(task.request):
        lost_workers = _uncounted_lost_workers(task, fact.message_id)
        if lost_workers > int(task.app.transport_options.get("delivery_limit", DELIVERY_LIMIT)):
            attempt.lost_workers = lost_workers
            return
    if not task.app.receipts.begin(fact, may_be_redelivered=is_redelivered(task.request)):
        attempt.is_checked, attempt.skipped_as = True, MessageEvent.DUPLICATE


def _uncounted_lost_workers(task: Any, message_id: str) -> int:
    """Return how many workers died with a message, where its transport does not count them; else 0.

    This package's transport for Redis counts. RabbitMQ's classic queues and Kombu's transport for Redis only mark
    a message as redelivered. There the receipt counts the attempts, and each one that is not a retry was lost.
    """
    if task.app.claims and task.app.driver == "redis":
        return 0
    try:
        receipt = task.app.receipts.get(message_id)
    except UnknownMessage:
        return 0
    except StoreUnavailable as error:  # one delivery too many is better than one too few
        extra = {"action": "deaths_not_known", "message_id": message_id}
        logger.warning("cannot read how many workers ended with %s: %s", message_id, error, extra=extra)
        return 0
    return 0 if receipt.status in FINAL else int(receipt.attempts - task.request.retries)
