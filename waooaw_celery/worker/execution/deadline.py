"""The deadline of a request: its caller stops waiting then, and its handler is stopped."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from billiard import current_process
from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from waooaw_celery.errors import DeadlineExceeded, InvalidMessage
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.worker.health.clock import clock_of

#: The option ``deadline=`` of a handler that is not stopped.
IGNORE_DEADLINE = "ignore"
#: Two processes of one computer may read the time this many seconds apart.
_CLOCK_MARGIN = 0.5
#: The shortest soft time limit, in seconds: Celery takes 0 for none.
_SHORTEST = 0.01


def deadline_of(task: Any, request: Context) -> datetime | None:
    """Return when the caller of a request stops waiting, or None when it is unknown or does not matter.

    It does not matter to a handler with ``deadline="ignore"``. It is unknown for a one-way message, a request that
    is answered with a message, and a stream whose caller has no deadline itself.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.

    Raises:
        InvalidMessage: the reply-to header is damaged.
    """
    reply_to = ReplyTo.from_header((request.headers or {}).get(REPLY_TO_HEADER))
    if reply_to is None or reply_to.on_reply is not None or task.deadline == IGNORE_DEADLINE:
        return None
    return reply_to.deadline if reply_to.stream else parse_datetime(request.expires, UTC)


def seconds_left(task: Any, request: Context) -> float | None:
    """Return the seconds until the deadline of a request, negative after it, or None; see ``deadline_of``."""
    deadline = deadline_of(task, request)
    return None if deadline is None else (deadline - clock_of(task.app).now()).total_seconds()


def soft_limit_within(left: float | None, soft: float | None, hard: float | None) -> float | None:
    """Return the soft time limit of a handler with a deadline, or None when the hard limit comes first.

    Args:
        left: seconds until the deadline; None: there is none.
        soft: its own soft time limit in seconds; None: there is none.
        hard: its hard time limit in seconds; None: there is none.
    """
    if left is None or (soft is not None and soft <= left):
        return soft
    # With a longer soft limit, Celery's pool ignores the hard one.
    return None if hard is not None and hard <= left else max(left, _SHORTEST)


def pool_options(request: Any, options: dict[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which Celery gives a task to a pool of processes; the deadline is its soft limit.

    Args:
        request: Celery's request in the worker. An ordinary task or a one-way message has no deadline.
        options: Celery's options.
        usual: the limits that the pool has for all tasks.
    """
    facts = getattr(request, "request_dict", None) or {}
    if facts.get(REPLY_TO_HEADER) is None or not hasattr(request.task, "deadline"):
        return options
    try:
        left = seconds_left(request.task, Context(facts))
    except InvalidMessage:  # the handler's process meets it too, and fails the message
        return options
    if left is None:
        return options
    soft, hard = (options.get(name) or usual.get(name) for name in ("soft_timeout", "timeout"))
    return {**options, "soft_timeout": soft_limit_within(left, soft, hard)}


def check_deadline(task: Any, request: Context) -> None:
    """Check that the caller of a request still waits.

    Raises:
        DeadlineExceeded: it does not.
    """
    left = seconds_left(task, request)
    if left is not None and left <= 0:
        raise _exceeded(task)


def raise_if_at_deadline(task: Any, error: Exception) -> None:
    """Raise DeadlineExceeded in place of the soft time limit that stopped a handler at its deadline.

    Args:
        task: the handler, an AgentTask.
        error: what ended it.

    Raises:
        DeadlineExceeded: it was stopped at its deadline.
    """
    if isinstance(error, SoftTimeLimitExceeded):
        left = seconds_left(task, task.request)
        if left is not None and left <= _CLOCK_MARGIN:
            raise _exceeded(task) from error


def _exceeded(task: Any) -> DeadlineExceeded:
    return DeadlineExceeded(f"{task.name} was stopped: the caller of the request no longer waits")


def allow_soft_limit() -> None:
    """Let the soft time limit interrupt the task that begins in this process of a pool."""
    if _is_pool_process():
        signal.signal(SIG_SOFT_TIMEOUT, soft_timeout_sighandler)


def ignore_soft_limit(request: Context) -> None:
    """Keep the soft time limit from interrupting what follows a handler, such as the record of its outcome.

    Args:
        request: Celery's request. Another handler may call the handler as a function, and goes on afterwards.
    """
    if _is_pool_process() and not (request.called_directly or request.is_eager):
        try:
            signal.signal(SIG_SOFT_TIMEOUT, signal.SIG_IGN)
        # Python calls the handler of a signal that has just arrived, before this takes effect.
        except SoftTimeLimitExceeded:
            signal.signal(SIG_SOFT_TIMEOUT, signal.SIG_IGN)


def _is_pool_process() -> bool:
    return bool(current_process().name != "MainProcess")
