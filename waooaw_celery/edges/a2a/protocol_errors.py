"""Our errors as those of A2A, with their own codes and our sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from a2a.utils.errors import (
    A2AError,
    InternalError,
    InvalidParamsError,
    MethodNotFoundError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from waooaw_celery.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    CircuitOpen,
    InvalidMessage,
    NotPermitted,
    NotStoppable,
    NoWorker,
    QueueFull,
    RateLimitExceeded,
    SenderPaused,
    StoreUnavailable,
    TooManyInFlight,
    UnknownAgent,
    UnknownMessage,
    UnknownMethod,
    UnknownWorkflow,
    WaooawError,
    WorkflowEnded,
)
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Servers that do not answer. What their errors say of the inside is for the log.
_AWAY = (BrokerUnavailable, StoreUnavailable, BackendUnavailable)
#: The protocol's error for each of ours; the first one that matches counts.
_ERRORS: tuple[tuple[tuple[type[WaooawError], ...], type[A2AError]], ...] = (
    ((UnknownMessage, UnknownWorkflow), TaskNotFoundError),
    ((NotStoppable,), TaskNotCancelableError),
    ((WorkflowEnded, NotPermitted, SenderPaused), UnsupportedOperationError),
    ((UnknownMethod, InvalidMessage), InvalidParamsError),
    ((UnknownAgent,), MethodNotFoundError),
    # The protocol has no code for "later": the data says when.
    ((RateLimitExceeded, QueueFull, CircuitOpen, TooManyInFlight, NoWorker), InternalError),
)


def protocol_error(error: WaooawError) -> A2AError:
    """Return one of our errors as the protocol's.

    Args:
        error: the error. Its class stands in the data as ``error``, and the seconds after which the client may try
            again as ``retryAfter``, if they are known.
    """
    if isinstance(error, _AWAY):
        logger.error("an A2A request failed: %s", error, extra={"action": "edge_server_away"})
        sentence = "this edge cannot answer now, because one of its servers does not: try again in a moment"
        return InternalError(sentence, data={"error": type(error).__name__, "retryAfter": "1"})
    data = {"error": type(error).__name__}
    retry_after = getattr(error, "retry_after", None)
    if isinstance(retry_after, int | float) and math.isfinite(retry_after):
        data["retryAfter"] = f"{retry_after:.3f}"
    kind = next((theirs for ours, theirs in _ERRORS if isinstance(error, ours)), None)
    if kind is None:
        logger.error("an A2A request failed: %s", error, exc_info=error, extra={"action": "edge_failed"})
        kind = InternalError
    return kind(str(error), data=data)


@contextmanager
def protocol_errors() -> Iterator[None]:
    """Raise our errors as those of the protocol.

    Raises:
        A2AError: one of our errors was raised in the block.
    """
    try:
        yield
    except WaooawError as error:
        raise protocol_error(error) from error
