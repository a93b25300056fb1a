"""Whether a message is begun: not when it expired, was cancelled, has ended before, or ended too many workers."""

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
from waooaw_celery.worker.cancellation import cancellations_of
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.outcomes.committed_effects import (
    is_marked_redelivered,
    is_redelivered,
    was_committed_before,
)

logger = logging.getLogger(__name__)

#: Where a task's request keeps as what its message ends without having been begun, or None.
_REFUSED = "waooaw_refused"
#: Where it keeps how many workers ended with it, when they are too many.
_DEATHS = "waooaw_deaths"
#: Where it keeps why the message is given back to its queue.
_GIVEN_BACK = "waooaw_given_back"
#: Seconds after which it is, at most.
GIVE_BACK_SECONDS = 2.0
#: What Celery's log says of a message that had ended before.
DUPLICATE_REASON = "it has ended before, and is not handled again"


def reason_to_skip(task: Any) -> MessageEvent | None:
    """Return as what a task's message ends if it is not to be begun, or None: what Celery no longer looks at.

    It may have expired, or been cancelled, while it waited in the pool; or it is a DUPLICATE of a message that has
    ended. Asked of one attempt again, it answers the same. A message whose effect is committed is begun: its
    handler returns what it returned before.
    """
    request = task.request
    if _REFUSED not in request.__dict__:
        expires_at = parse_datetime(request.expires, UTC)
        event = None
        if expires_at is not None and expires_at <= clock_of(task.app).now():
            event = MessageEvent.EXPIRED
        elif request.id in cancellations_of(task.app):
            event = MessageEvent.CANCELLED
        if event is not None and was_committed_before(task, request):
            event = None
        request.update({_REFUSED: event})
    known: MessageEvent | None = request.get(_REFUSED)
    return known


def admit_delivery(task: Any, fact: MessageFact) -> None:
    """Write down that a worker begins with a message, unless it has ended, or has ended too many workers.

    Args:
        task: its handler, an AgentTask.
        fact: DELIVERED.
    """
    if is_marked_redelivered(task.request):
        deaths = _uncounted_deaths(task, fact.message_id)
        if deaths > int(task.app.transport_options.get("delivery_limit", DELIVERY_LIMIT)):
            task.request.update({_DEATHS: deaths})
            return
    if not task.app.receipts.begin(fact, doubtful=is_redelivered(task.request)):
        task.request.update({_REFUSED: MessageEvent.DUPLICATE})


def begin_or_give_back(task: Any, fact: MessageFact) -> None:
    """Write down that a worker begins with a message; when that can be written nowhere, have it given back.

    Args:
        task: its handler, an AgentTask.
        fact: DELIVERED.
    """
    hard = (task.request.timelimit or (None, None))[0] or task.time_limit or 2 * GIVE_BACK_SECONDS
    deadline = time.monotonic() + min(GIVE_BACK_SECONDS, float(hard) / 2)
    while True:
        try:
            return admit_delivery(task, fact)
        except AuditUnavailable as error:
            # The worker stops to take messages meanwhile: else this one would come again at once.
            if time.monotonic() > deadline:
                task.request.update({_GIVEN_BACK: str(error)})
                return None
            time.sleep(0.2)


def given_back(task: Any) -> bool:
    """Whether a task's message is given back to its queue, since its beginning can be written nowhere."""
    return bool(task.request.get(_GIVEN_BACK))


def check_admitted(task: Any) -> None:
    """Drop a message that is not to be begun.

    Raises:
        Reject: it goes back to its queue.
        Ignore: its time was over, it was cancelled, or it had ended.
        DeliveryLimitExceeded: it ended too many workers.
    """
    if given_back(task):
        raise Reject(task.request.get(_GIVEN_BACK), requeue=True)
    event = reason_to_skip(task)
    if event is MessageEvent.DUPLICATE:  # whoever waits has been told, and what was told stays
        raise Ignore(DUPLICATE_REASON)
    if event is not None:
        store_revoked(task, event.value)
        raise Ignore
    if deaths := task.request.get(_DEATHS):
        raise DeliveryLimitExceeded(f"{deaths} workers ended with it")


def store_revoked(task: Any, reason: str) -> None:
    """Tell whoever waits for the answer that there will be none."""
    request = task.request
    nobody_waits = task.ignore_result or bool(request.ignore_result)
    task.backend.mark_as_revoked(str(request.id), reason, request=request, store_result=not nobody_waits)


def _uncounted_deaths(task: Any, message_id: str) -> int:
    """Return how many workers ended with a message in their hands, where its transport does not count them.

    Our own on Redis does. RabbitMQ's classic queues and Kombu's transport for Redis only say that it was handed
    out before: then the receipt knows how often it was begun, and all but the retries were cut short.
    """
    if task.app.claims and task.app.driver == "redis":
        return 0
    try:
        receipt = task.app.receipts.get(message_id)
    except UnknownMessage:
        return 0
    except StoreUnavailable as error:  # once too often is better than never
        extra = {"action": "deaths_not_known", "message_id": message_id}
        logger.warning("how many workers ended with %s is not known: %s", message_id, error, extra=extra)
        return 0
    return 0 if receipt.status in FINAL else int(receipt.attempts - task.request.retries)
