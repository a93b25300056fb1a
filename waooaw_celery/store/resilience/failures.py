"""Which errors of a request say that the requested agent does not work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.utils.imports import symbol_by_name

from waooaw_celery.errors import (
    BackendUnavailable,
    ConfigurationError,
    Expired,
    InvalidArguments,
    RemoteError,
    RequestTimeout,
    StreamBroken,
    UnknownMethod,
)
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: The errors for which no answer came, or with which the agent's worker refused the request.
_FAILURES = (RequestTimeout, Expired, BackendUnavailable, StreamBroken, UnknownMethod)
#: The classes of a handler's errors that mean the death of its process, or a time limit.
_DEADLY = frozenset({"WorkerLostError", "DeliveryLimitExceeded", "TimeLimitExceeded", "SoftTimeLimitExceeded"})


def is_target_failure(error: BaseException) -> bool:
    """Return whether an error of a request counts as a failure of the requested agent.

    An error that the agent's handler raised is an answer, and does not count, unless its process died or was
    stopped at a time limit. An error of the caller does not count either.

    Args:
        error: the error of the request.

    Example:
        >>> is_target_failure(RequestTimeout("no answer")), is_target_failure(RemoteError("a", "ValueError", "no"))
        (True, False)
    """
    if isinstance(error, RemoteError):
        return error.type in _DEADLY
    return isinstance(error, _FAILURES)


def failure_rule(setting: Any) -> Callable[[BaseException], bool]:
    """Return the function that tells whether an error of a request counts as a failure of its agent.

    An error that the application's own function raises is logged, and ``is_target_failure`` decides then.

    Args:
        setting: a function of an error, its path such as ``my_agents.rules:is_failure``, or None.

    Raises:
        ConfigurationError: the path leads to no function.
    """
    if setting is None:
        return is_target_failure
    rule = setting
    if isinstance(setting, str):
        try:
            rule = symbol_by_name(setting)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"waooaw_breaker_is_failure: {setting!r} cannot be imported: {error}"
            ) from error
        if not callable(rule):
            raise ConfigurationError(f"waooaw_breaker_is_failure: {setting!r} is no function, but {rule!r:.80}")

    def is_failure(error: BaseException) -> bool:
        try:
            return bool(rule(error))
        except Exception:
            logger.exception(
                "waooaw_breaker_is_failure failed, so %s counts as it does by default",
                type(error).__name__,
                extra={"action": "breaker_rule_failed"},
            )
            return is_target_failure(error)

    return is_failure


def works(error: BaseException | None, is_failure: Callable[[BaseException], bool]) -> bool | None:
    """Return whether the outcome of a request shows that the requested agent works; None: it does not show it.

    Args:
        error: the error of the request; None: it has a result.
        is_failure: tells which errors are failures of the agent.
    """
    if error is None:
        return True
    if is_failure(error):
        return False
    # The handler, or the worker, has answered. All other errors are the caller's.
    return True if isinstance(error, RemoteError | InvalidArguments) else None
