"""A handler that gives its message back with ``Reject(requeue=True)``: the pauses, the bound, and outages.

A broker hands out such a message again at once, and RabbitMQ's classic queues do not count how often. So the
message is published as its next attempt, with a countdown and with a header that counts.
"""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import Reject, SoftTimeLimitExceeded

from waooaw_celery.errors import RequeueLimitExceeded
from waooaw_celery.worker.outcomes.retry_policy import Retries

#: The Celery header that says how often handlers gave the message back.
REQUEUED_HEADER = "waooaw_requeued"
#: The pauses before a message that was given back is handled again: 1 s, 2 s, 4 s, …, at most 60 s.
PAUSES = Retries(first_delay=1.0, factor=2.0, longest_delay=60.0, jitter=False)
#: Seconds before a message goes back whose next attempt cannot be published: while a broker hands out messages and
#: takes none, nothing else slows the circle down.
OUTAGE_PAUSE = 1.0


class ReturnedToQueue(Reject):
    """The broker does not take the next attempt: the message itself goes back. No limit counts this."""


def requeue(task: Any, error: Any) -> Exception:
    """Publish the next attempt of a message that its handler gave back, and return what ends this attempt.

    Args:
        task: the handler, an AgentTask.
        error: the ``Reject`` that the handler raised.

    Returns:
        The ``Retry`` of the next attempt; or RequeueLimitExceeded, which makes the message FAILED and a dead
        letter, when the handler gave it back more often than ``waooaw_requeue_limit`` says.

    Raises:
        RequeueLimitExceeded: the message expires before its next attempt.
        ReturnedToQueue: the broker does not answer.
    """
    request, limit = task.request, task.app.settings.requeue_limit
    count = requeued(request) + 1
    exceeded = RequeueLimitExceeded(f"the handler gave the message back {count} times: {error.reason}")
    if count > limit:
        return exceeded
    ended: Exception = task.retry(
        exc=exceeded,
        throw=False,
        countdown=PAUSES.delay(count - 1),
        max_retries=request.retries + 1,
        headers={**(request.headers or {}), REQUEUED_HEADER: count},
    )
    return ended


def requeued(request: Any) -> int:
    """Return how often handlers gave the message of a request back."""
    count = (request.headers or {}).get(REQUEUED_HEADER)
    return count if type(count) is int and count > 0 else 0


def pause_for_outage() -> None:
    """Wait a moment in the pool's thread or process before a message goes back that no broker would count."""
    try:
        time.sleep(OUTAGE_PAUSE)
    except SoftTimeLimitExceeded:  # the handler has ended: its limit must not make a failure of the outage
        return
