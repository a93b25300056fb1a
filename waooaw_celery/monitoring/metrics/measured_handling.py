"""Measures how messages are handled in a worker, from its main process, which hears of each end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import Ignore, Retry

from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.monitoring.metrics.definitions import CONSUMED, OUTCOMES, PROCESS_SECONDS, QUEUE_WAIT
from waooaw_celery.monitoring.metrics.process_metrics import ProcessMetrics

#: The values of the label ``priority``, by the name in the envelope; another program may have written any text.
_PRIORITIES = {priority.value: priority.value.lower() for priority in Priority}


def note_processed(
    metrics: ProcessMetrics,
    task: Any,
    headers: Mapping[str, Any],
    seconds: float,
    waited: float | None,
    error: BaseException | None,
) -> None:
    """Count an attempt that has ended.

    Args:
        metrics: where it is counted.
        task: its handler, an AgentTask.
        headers: the headers of its message.
        seconds: how long the handler ran.
        waited: how long the message waited in its queue; None: a retry, or one that was delayed.
        error: what ended it; None: the handler returned.
    """
    status, error_type = _outcome(error)
    metrics.count(CONSUMED, task.agent)
    metrics.count(OUTCOMES, task.agent, status)
    metrics.observe(PROCESS_SECONDS, task.agent, task.handler, error_type, seconds=seconds)
    if waited is not None:
        envelope = headers.get(ENVELOPE_HEADER)
        name = str(envelope.get("priority")) if isinstance(envelope, Mapping) else ""
        priority = _PRIORITIES.get(name, Priority.NORMAL.value.lower())
        metrics.observe(QUEUE_WAIT, task.agent, priority, seconds=waited)


def note_skipped(metrics: ProcessMetrics, task: Any, *, cancelled: bool) -> None:
    """Count a message whose handler does not start.

    Args:
        metrics: where it is counted.
        task: its handler, an AgentTask.
        cancelled: whether it was cancelled; or else it has expired.
    """
    metrics.count(OUTCOMES, task.agent, "cancelled" if cancelled else "expired")


def _outcome(error: BaseException | None) -> tuple[str, str]:
    """Return the status of an attempt, and the class of its error."""
    if error is None or isinstance(error, Ignore):
        return "handled", ""
    if isinstance(error, Retry):
        return "retried", _class_of(error.exc) if isinstance(error.exc, BaseException) else ""
    return "failed", _class_of(error)


def _class_of(error: BaseException) -> str:
    return str(getattr(error, "exc_cls_name", type(error).__qualname__))
