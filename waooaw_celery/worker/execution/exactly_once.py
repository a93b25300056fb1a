"""Runs handlers with ``once=True``: their effect, and the note that it happened, are one transaction."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry
from sqlalchemy.orm import Session

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.inbox import HandlerDisconnected, InboxEntry, InboxUnavailable, handle_once
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import json_copy

logger = get_logger(__name__)

#: The longest pause before another attempt at a message whose transaction failed, in seconds; pauses double.
MAX_PAUSE_SECONDS = 60
#: Attempts at such a message: its expiry limits them.
UNLIMITED_ATTEMPTS = 1_000_000_000
#: The session of the handler that runs.
_session: ContextVar[Session | None] = ContextVar("waooaw_session", default=None)


def run_once(task: Any, call: Callable[[], Any]) -> Any:
    """Run a handler in a transaction and return its result; or return the result that is committed already.

    Args:
        task: the handler, an AgentTask.
        call: calls it.

    Raises:
        Retry: the database does not answer or has no free connection, or another worker handles the message. It is
            tried again later.
    """
    request, limits = task.request, task.request.timelimit or (None, None)
    timeout = limits[0] or task.time_limit or task.app.conf.task_time_limit or 3600
    entry: InboxEntry | None = None
    try:
        with handle_once(task.app.database, str(request.id), task.handler, float(timeout)) as entry:
            if not entry.is_done:
                token = _session.set(entry.session)
                try:
                    entry.result = json_copy(call(), "the result")
                finally:
                    _session.reset(token)
                task.app.outbox.settle(entry.session)
        task.app.outbox.relay(entry.session)
    except HandlerDisconnected as error:
        if isinstance(error.raised, (Ignore, Reject, Retry)):  # the handler has decided what comes next
            raise error.raised from None
        raise _retry_with_backoff(task, error) from error
    except InboxUnavailable as error:
        raise _retry_with_backoff(task, error) from error
    except Exception as error:
        if entry is None or not entry.is_committed:
            raise
        logger.warning(
            "message %s is HANDLED, but a step after its commit failed: %r; the ledger's recovery publishes the "
            "messages that it committed",
            request.id,
            error,
            exc_info=error,
            extra={"action": "failed_after_commit", "message_id": str(request.id)},
        )
    return entry.result


def _retry_with_backoff(task: Task[Any, Any], error: Exception) -> Exception:
    return retry_later(task, error, min(2 ** min(task.request.retries, 10), MAX_PAUSE_SECONDS))


def retry_later(task: Task[Any, Any], error: Exception, pause: float) -> Exception:
    """Publish another attempt, and return the ``Retry`` that ends this one.

    Args:
        task: the handler.
        error: why this attempt ends.
        pause: seconds until the next attempt.
    """
    retry: Exception = task.retry(exc=error, countdown=pause, max_retries=UNLIMITED_ATTEMPTS, throw=False)
    return retry


def current_session() -> Session:
    """Return the session of the handler that runs. What you do with it is committed when the handler returns.

    Raises:
        ConfigurationError: no handler with ``once=True`` runs in this thread.
    """
    session = _session.get()
    if session is None:
        raise ConfigurationError(
            "there is no session here: use it only in a handler that is registered with once=True, and in the "
            "handler's own thread"
        )
    return session
