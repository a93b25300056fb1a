"""Handlers whose effect happens once: in one transaction with the note that it has happened."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry
from sqlalchemy.orm import Session

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.inbox import HandlerDisconnected, InboxEntry, InboxUnavailable, handle_once
from waooaw_celery.messages.validation import json_copy

logger = logging.getLogger(__name__)

#: Seconds until a message is tried again that could not be begun or committed, at most: each attempt doubles them.
MAX_PAUSE_SECONDS = 60
#: Attempts until it is given up: none; what bounds it is its expiry.
UNLIMITED_ATTEMPTS = 1_000_000_000
#: The session of the handler that runs.
_session: ContextVar[Session | None] = ContextVar("waooaw_session", default=None)


def run_once(task: Any, handle: Callable[[], Any]) -> Any:
    """Run a handler in a transaction, unless its effect is there already, and return what it returned then.

    When the database does not answer, has no connection for it, or somebody else is at the same message, it is
    tried again later.

    Args:
        task: the handler, an AgentTask.
        handle: calls it.
    """
    request, limits = task.request, task.request.timelimit or (None, None)
    patience = limits[0] or task.time_limit or task.app.conf.task_time_limit or 3600
    mine: InboxEntry | None = None
    try:
        with handle_once(task.app.database, str(request.id), task.handler, float(patience)) as mine:
            if not mine.is_done:
                token = _session.set(mine.session)
                try:
                    mine.result = json_copy(handle(), "the result")
                finally:
                    _session.reset(token)
                task.app.outbox.settle(mine.session)
        task.app.outbox.relay(mine.session)
    except HandlerDisconnected as error:
        if isinstance(error.raised, (Ignore, Reject, Retry)):  # the handler has said what comes next
            raise error.raised from None
        raise _come_again(task, error) from error
    except InboxUnavailable as error:
        raise _come_again(task, error) from error
    except Exception as error:
        if mine is None or not mine.is_committed:
            raise
        logger.warning(
            "the effect of message %s is committed, and what came after it failed: %r; committed messages are "
            "published by the ledger's recovery",
            request.id,
            error,
            exc_info=error,
            extra={"action": "failed_after_commit", "message_id": str(request.id)},
        )
    return mine.result


def _come_again(task: Task[Any, Any], error: Exception) -> Exception:
    return retry_later(task, error, min(2 ** min(task.request.retries, 10), MAX_PAUSE_SECONDS))


def retry_later(task: Task[Any, Any], error: Exception, pause: float) -> Exception:
    """Publish another attempt, and return what ends this one."""
    retry: Exception = task.retry(exc=error, countdown=pause, max_retries=UNLIMITED_ATTEMPTS, throw=False)
    return retry


def current_session() -> Session:
    """Return the session of the handler that runs: what is done with it is committed when the handler returns.

    Raises:
        ConfigurationError: no handler with ``once=True`` runs here.
    """
    session = _session.get()
    if session is None:
        raise ConfigurationError(
            "there is no session here: it is there while a handler runs that was registered with once=True, "
            "in the handler's own thread"
        )
    return session
