"""Handles ``Reject(requeue=True)`` of a handler: pauses, a limit, and outages.

A broker would deliver such a message again at once, and RabbitMQ's classic queues do not count how often. So the
message is published as its next attempt, with a countdown and a header that counts.
"""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import Reject, SoftTimeLimitExceeded

from waooaw_celery.errors import RequeueLimitExceeded
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

#: The header that counts how often handlers have requeued a message.
REQUEUED_HEADER = "waooaw_requeued"
#: The pauses before a requeued message is handled again: 1 s, 2 s, 4 s, …, at most 60 s.
PAUSES = RetryPolicy(first_delay=1.0, factor=2.0, longest_delay=60.0, jitter=False)
#: Seconds before a message returns to its queue because its next attempt cannot be published. A broker that
#: delivers messages but accepts none would otherwise deliver it again at once, without end.
OUTAGE_PAUSE = 1.0


class ReturnedToQueue(Reject):
    """The broker does not accept the next attempt, so the message itself returns to its queue.

    No limit counts this.
    """


def requeue(task: Any, error: Any) -> Exception:
    """Publish the next attempt of a message that its handler requeued, and return what ends this attempt.

    Args:
        task: the handler, an AgentTask.
        error: the ``Reject`` that the handler raised.

    Returns:
        The ``Retry`` of the next attempt. When the handler has requeued the message more often than
        ``waooaw_requeue_limit``, RequeueLimitExceeded, which makes the message FAILED and a dead letter.

    Raises:
        RequeueLimitExceeded: the message expires before its next attempt.
        ReturnedToQueue: the broker does not answer.
    """
    request, limit = task.request, task.app.settings.requeue_limit
    count = requeue_count(request) + 1
    exceeded = RequeueLimitExceeded(f"the handler requeued the message {count} times: {error.reason}")
    if count > limit:
        return exceeded
    retry: Exception = task.retry(
        exc=exceeded,
        throw=False,
        countdown=PAUSES.delay(count - 1),
        max_retries=request.retries + 1,
        headers={**(request.headers or {}), REQUEUED_HEADER: count},
    )
    return retry


def requeue_count(request: Any) -> int:
    """Return how often handlers have requeued the message of a request."""
    count = (request.headers or {}).get(REQUEUED_HEADER)
    return count if type(count) is int and count > 0 else 0


def pause_for_outage() -> None:
    """Sleep for ``OUTAGE_PAUSE`` in the pool's thread or process."""
    try:
        time.sleep(OUTAGE_PAUSE)
    except SoftTimeLimitExceeded:  # the handler has ended: its time limit must not turn the outage into a failure
        return
