"""Admits the messages of a batch together: decides which of them the handler gets, and records DELIVERED."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.receipt import MessageFact
from waooaw_celery.worker.admission import (
    admit_or_requeue,
    delivery_of,
    expired_or_cancelled,
    has_ended_workers,
    skip_duplicate,
)
from waooaw_celery.worker.execution.arguments import check_arguments
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.outcomes.acknowledged_outcomes import is_recorded
from waooaw_celery.worker.outcomes.committed_effects import is_redelivered
from waooaw_celery.worker.payloads.loading import loaded_arguments


def admit_batch(task: Any, members: Sequence[Any]) -> None:
    """Decide which messages the handler gets, and record that they are delivered, with one write.

    A member that the handler gets has its message afterwards. Celery's trace ends each of the others.

    Args:
        task: the handler, a BatchTask.
        members: the messages, each a Member.
    """
    begun, now = [], clock_of(task.app).now()
    for member in members:
        attempt, request = member.attempt, member.request
        attempt.is_checked, attempt.skipped_as = True, expired_or_cancelled(task, request, now)
        if attempt.skipped_as is None:
            attempt.admitted_at, attempt.is_admitted = time.monotonic(), True
            begun.append(member)
    deliveries = [
        (member, delivery_of(task, member.request, now)) for member in begun if not is_recorded(member.request)
    ]
    if deliveries:
        requests = [member.request for member, _ in deliveries]
        admit_or_requeue(task, requests, partial(_record, task, deliveries))
    for member in begun:
        attempt = member.attempt
        if attempt.skipped_as is None and not attempt.requeue_reason and not attempt.lost_workers:
            member.message = _readable(task, member)


def _record(task: Any, deliveries: Sequence[tuple[Any, MessageFact]]) -> None:
    """Record the deliveries.

    Raises:
        AuditUnavailable: they cannot be recorded.
    """
    known = [each for each in deliveries if not has_ended_workers(task, each[0].request)]
    if not known:
        return
    begins = task.app.receipts.begin_all([(fact, is_redelivered(member.request)) for member, fact in known])
    for (member, _), is_new in zip(known, begins, strict=True):
        if not is_new:
            skip_duplicate(member.request)


def _readable(task: Any, member: Any) -> Any:
    """Return the message of a member, or None where its own trace meets an error that ends it."""
    try:
        request = member.request
        check_arguments(task, *loaded_arguments(task, request, request.args or (), request.kwargs or {}))
        return task.message_of(request)
    except (WaooawError, TypeError, ValueError):
        return None
