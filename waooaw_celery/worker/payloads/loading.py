"""Loads the large payload of a message after it was admitted and before its handler is called.

It is not loaded when the handler first reads it. That read would block the event loop of an ``async def`` handler,
would spend the handler's time, and would meet a missing payload in the middle of the handler, after half of its
effect. A message that has expired, was cancelled or has ended before is not admitted, and its payload is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from waooaw_celery.errors import ReferenceStoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.references.reference import reference_in
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.retries.requeue import PAUSES

logger = get_logger(__name__)

#: The header that counts how often a message has waited for the store of large payloads.
WAITED_HEADER = "waooaw_waited_for_payload"
#: How often a message waits for the store before it fails: about an hour and a half, unless it expires before.
MAX_WAITS = 90


def arguments_of(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments of a message, and load them if it carries a reference to them. They are loaded once.

    Args:
        task: the handler, an AgentTask.
        args, kwargs: the arguments that have arrived.

    Raises:
        PayloadMissing, PayloadAltered, DecodingFailed: they cannot be had; the message becomes a dead letter.
        ReferenceStoreUnavailable: the store does not answer.
    """
    return loaded_arguments(task, task.request, args, kwargs)


def loaded_arguments(
    task: Any, request: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments of the message of a request. See ``arguments_of``."""
    reference = reference_in(args)
    if reference is None:
        return args, kwargs
    attempt = attempt_of(request)
    if attempt.loaded is None:
        attempt.loaded = task.app.components.large_payloads.load(reference)
        attempt.message = None  # decoded so far without its payload
    return attempt.loaded


def wait_for_store(task: Any, error: ReferenceStoreUnavailable) -> Exception:
    """Publish the next attempt of a message whose payload cannot be loaded now, and return what ends this attempt.

    Args:
        task: the handler, an AgentTask.
        error: why it cannot be loaded.

    Returns:
        The ``Retry`` of the next attempt; or the error itself, when the message has waited too often.

    Raises:
        ReferenceStoreUnavailable: the message expires before its next attempt.
        ReturnedToQueue: the broker does not answer.
    """
    request = task.request
    headers = request.headers or {}
    waits = headers.get(WAITED_HEADER)
    count = (waits if type(waits) is int and waits > 0 else 0) + 1
    if count > MAX_WAITS:
        return error
    logger.warning(
        "message %s waits for its payload: %s",
        request.id,
        error,
        extra={"action": "payload_awaited", "message_id": request.id},
    )
    retry: Exception = task.retry(
        exc=error,
        throw=False,
        countdown=PAUSES.delay(count - 1),
        max_retries=request.retries + 1,
        headers={**headers, WAITED_HEADER: count},
    )
    return retry
