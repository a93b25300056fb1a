"""Decides whether the handler of a message runs.

The handler does not run when the message has expired, was cancelled, was already handled, or has killed too many
workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.app.task import Context
from celery.exceptions import Ignore, Reject

from waooaw_celery.broker.incoming.delivery import DELIVERY_LIMIT
from waooaw_celery.errors import AuditUnavailable, DeliveryLimitExceeded, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.enums import FINAL
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.outcomes.acknowledged_outcomes import is_recorded, withdraw
from waooaw_celery.worker.outcomes.committed_effects import (
    is_marked_redelivered,
    is_redelivered,
    was_committed_before,
)
from waooaw_celery.worker.record import fact_of, readable_message, record

logger = get_logger(__name__)

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
    request = task.request
    event = reason_to_skip(task, request)
    if event is not None:
        withdraw(task.app, request)
        record(task, event, attempt=0)
        return
    attempt = attempt_of(request)
    if attempt.is_admitted:  # with the other messages of its batch
        return
    attempt.admitted_at = time.monotonic()
    if is_recorded(request):  # the claim has looked whether the message has ended before
        return
    fact = delivery_of(task, request, clock_of(task.app).now())
    admit_or_requeue(task, [request], partial(admit_delivery, task, request, fact))


def delivery_of(task: Any, request: Context, now: datetime) -> MessageFact:
    """Return the fact that a message is delivered.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        now: the time by the reference clock.
    """
    message = readable_message(task, request)
    waited = max((now - message.sent_at).total_seconds(), 0.0) if message is not None else None
    return fact_of(task, MessageEvent.DELIVERED, request, at=now, seconds=waited)


def check_admitted(task: Any) -> None:
    """Raise what ends a message that was not admitted.

    Args:
        task: the handler, an AgentTask.

    Raises:
        Reject: it goes back to its queue.
        Ignore: it has expired, was cancelled, or has ended before.
        DeliveryLimitExceeded: it has ended too many workers.
    """
    request = task.request
    attempt = attempt_of(request)
    if attempt.requeue_reason:
        raise Reject(attempt.requeue_reason, requeue=True)
    event = reason_to_skip(task, request)
    if event is MessageEvent.DUPLICATE:  # its caller has an answer, which stays
        raise Ignore(DUPLICATE_REASON)
    if event is not None:
        store_revoked(task, event.value)
        raise Ignore
    if attempt.lost_workers:
        raise DeliveryLimitExceeded(f"its worker died {attempt.lost_workers} times")


def reason_to_skip(task: Any, request: Context | None = None) -> MessageEvent | None:
    """Return the event with which a message ends without its handler, or None when the handler runs.

    The message may have expired or been cancelled while it waited in the pool, or be a DUPLICATE of a message that
    has ended. The answer is the same each time it is asked of one attempt. A message with a committed effect is
    not skipped: its handler returns what it returned before.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request; None: the one that the task handles.
    """
    request = task.request if request is None else request
    attempt = attempt_of(request)
    if not attempt.is_checked:
        attempt.is_checked, attempt.skipped_as = True, expired_or_cancelled(task, request)
    return attempt.skipped_as


def expired_or_cancelled(task: Any, request: Context, now: datetime | None = None) -> MessageEvent | None:
    """Return whether a message has expired or was cancelled, as the event with which it ends.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        now: the time by the reference clock; None: it is read if the message expires.
    """
    event = None
    expires_at = parse_datetime(request.expires, UTC)
    if expires_at is not None and expires_at <= (now or clock_of(task.app).now()):
        event = MessageEvent.EXPIRED
    elif request.id in cancellations_of(task.app):
        event = MessageEvent.CANCELLED
    return None if event is not None and was_committed_before(task, request) else event


def store_revoked(task: Any, reason: str) -> None:
    """Store in the result backend that a request gets no answer, unless nobody waits for one.

    Args:
        task: the handler, an AgentTask.
        reason: such as ``cancelled``.
    """
    request = task.request
    nobody_waits = task.ignore_result or bool(request.ignore_result)
    task.backend.mark_as_revoked(str(request.id), reason, request=request, store_result=not nobody_waits)


def admit_or_requeue(task: Any, requests: Sequence[Context], admit_all: Callable[[], object]) -> None:
    """Admit messages; where that cannot be recorded for ``REQUEUE_SECONDS``, have them requeued.

    Args:
        task: the handler, an AgentTask.
        requests: their requests.
        admit_all: records their deliveries. It may be called again after it has raised.
    """
    hard = (requests[0].timelimit or (None, None))[0] or task.time_limit or 2 * REQUEUE_SECONDS
    deadline = time.monotonic() + min(REQUEUE_SECONDS, float(hard) / 2)
    while True:
        try:
            admit_all()
        except AuditUnavailable as error:
            # The worker needs this time to stop consuming. Otherwise the message would come back at once.
            if time.monotonic() > deadline:
                for request in requests:
                    attempt_of(request).requeue_reason = str(error)
                return
            time.sleep(0.2)
        else:
            return


def admit_delivery(task: Any, request: Context, fact: MessageFact) -> None:
    """Record DELIVERED, unless the message has ended before or has ended too many workers.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        fact: the delivery.

    Raises:
        AuditUnavailable: it cannot be recorded.
    """
    if has_ended_workers(task, request):
        return
    if not task.app.receipts.begin(fact, may_be_redelivered=is_redelivered(request)):
        skip_duplicate(request)


def has_ended_workers(task: Any, request: Context) -> bool:
    """Return whether a message has ended too many workers, and note it in its attempt.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
    """
    if not is_marked_redelivered(request):
        return False
    lost_workers = _uncounted_lost_workers(task, request, str(request.id))
    if lost_workers <= int(task.app.transport_options.get("delivery_limit", DELIVERY_LIMIT)):
        return False
    attempt_of(request).lost_workers = lost_workers
    return True


def skip_duplicate(request: Context) -> None:
    """Note in the attempt of a message that it has ended before."""
    attempt = attempt_of(request)
    attempt.is_checked, attempt.skipped_as = True, MessageEvent.DUPLICATE


def _uncounted_lost_workers(task: Any, request: Context, message_id: str) -> int:
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
        logger.warning(
            "cannot read how often the worker of %s died, so its handler runs: %s", message_id, error, extra=extra
        )
        return 0
    return 0 if receipt.status in FINAL else int(receipt.attempts - request.retries)
