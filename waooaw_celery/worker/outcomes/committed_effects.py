"""Whether a message of a handler with ``once=True`` has had its effect: the note in the inbox decides its end."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.task import Context

from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.inbox import has_effect
from waooaw_celery.messages.publish_options import RECOVERED_HEADER

logger = logging.getLogger(__name__)

#: Headers of a message that may have come before: it was handed out again, or recovered.
_AGAIN = (DELIVERY_COUNT, RECOVERED_HEADER)


def is_committed(task: Any, message_id: str) -> bool:
    """Whether the effect of a message is committed, although its handler did not tell so.

    Call it when no process works on the message any more, and before its end is written down.

    Args:
        task: the handler, an AgentTask.
        message_id: of which message.

    Returns:
        False too when the handler has no note (``once=False``), and when the database does not answer: the ledger
        itself decides then, when it takes the end.
    """
    if not task.once:
        return False
    try:
        return has_effect(task.app.database, message_id, task.handler)
    except AuditUnavailable as error:
        logger.warning(
            "whether the effect of %s is committed is not known: %s",
            message_id,
            error,
            extra={"action": "effect_not_known", "message_id": message_id},
        )
        return False


def was_committed_before(task: Any, request: Context) -> bool:
    """Whether an earlier attempt at a message has committed its effect, where there may have been one.

    Such a message is not dropped, whatever was said of it since: its handler returns what that attempt returned.
    """
    again = request.retries or is_redelivered(request)
    return bool(again) and is_committed(task, str(request.id))


def is_redelivered(request: Context) -> bool:
    """Whether something says that the message may have come before."""
    headers = request.headers or {}
    return is_marked_redelivered(request) or any(headers.get(name) for name in _AGAIN)


def is_marked_redelivered(request: Context) -> bool:
    """Whether the broker says that it handed the message out before."""
    return bool((request.delivery_info or {}).get("redelivered"))
