"""Tells whether the effect of a handler with ``once=True`` is committed, as the inbox has it."""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.publish_options import RECOVERED_HEADER

logger = get_logger(__name__)

#: Headers of a message that was redelivered, or published again by the ledger's recovery.
_REDELIVERY_HEADERS = (DELIVERY_COUNT, RECOVERED_HEADER)


def is_committed(task: Any, message_id: str) -> bool:
    """Return whether the effect of a message is committed, although its handler did not report that.

    Call it when no process works on the message any more, and before its outcome is recorded.

    Args:
        task: the handler, an AgentTask.
        message_id: the message.

    Returns:
        False too for a handler without ``once=True``, and when the database does not answer. The ledger then
        decides when it accepts the outcome.
    """
    if not task.once:
        return False
    from waooaw_celery.ledger.inbox import is_effect_committed

    try:
        return is_effect_committed(task.app.database, message_id, task.handler)
    except AuditUnavailable as error:
        logger.warning(
            "cannot read whether the effect of %s is committed; the ledger checks it with the outcome: %s",
            message_id,
            error,
            extra={"action": "effect_not_known", "message_id": message_id},
        )
        return False


def was_committed_before(task: Any, request: Context) -> bool:
    """Return whether an earlier attempt at a message has committed its effect.

    Such a message is neither expired nor cancelled: its handler returns what that attempt returned.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
    """
    may_have_run = request.retries or is_redelivered(request)
    return bool(may_have_run) and is_committed(task, str(request.id))


def is_redelivered(request: Context) -> bool:
    """Return whether a message may have been delivered before, by the broker's mark or by its headers."""
    headers = request.headers or {}
    return is_marked_redelivered(request) or any(headers.get(name) for name in _REDELIVERY_HEADERS)


def is_marked_redelivered(request: Context) -> bool:
    """Return whether the broker marks a message as redelivered."""
    return bool((request.delivery_info or {}).get("redelivered"))
