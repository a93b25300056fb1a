"""Decides whether a caller sends a request again, and when: within its timeout, at one place of a chain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from waooaw_celery.agents.requests.response import Response
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import (
    RETRIED_OUT,
    BackendUnavailable,
    BlockingCall,
    BrokerUnavailable,
    Cancelled,
    CircularRequest,
    ConfigurationError,
    Expired,
    InvalidMessage,
    RequestTimeout,
    SenderPaused,
    StoreUnavailable,
    UnknownAgent,
    UnknownSender,
)
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.retries.retried_out import is_retried_out
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

logger = get_logger(__name__)

#: What ``retry=`` takes.
Retry = RetryPolicy | int | None
#: The errors for which ``retry=3`` sends a request again: no answer arrived, or it could not be sent.
NO_ANSWER = (RequestTimeout, Expired, BrokerUnavailable, StoreUnavailable, BackendUnavailable)
#: The errors for which no request is sent again, whatever the policy says: they would come again, or are wanted.
LASTING = (
    InvalidMessage,
    ConfigurationError,
    UnknownAgent,
    UnknownSender,
    CircularRequest,
    BlockingCall,
    SenderPaused,
    Cancelled,
)


class Pause(NamedTuple):
    """A pause before a request is sent again.

    Attributes:
        seconds: how long it is.
        sleep: blocks the calling thread for a number of seconds.
    """

    seconds: float
    sleep: Callable[[float], None]


def retry_policy(retry: Retry) -> RetryPolicy | None:
    """Return the policy for the value of ``retry=``; None: the request is sent once.

    Args:
        retry: a policy, or how often the request is sent again when no answer arrives.

    Raises:
        ConfigurationError: it is neither.
    """
    if retry is None or isinstance(retry, RetryPolicy):
        return retry
    return replace(RetryPolicy.of(retry), on=NO_ANSWER)


class RequestRetries:
    """The attempts of one request.

    Args:
        app: the application that sends it.
        policy: how often, how soon and for which errors it is sent again.
        timeout: seconds for all attempts together.
    """

    def __init__(self, app: AgentApp, policy: RetryPolicy, timeout: float) -> None:
        self._app, self._policy = app, policy
        self._began = time.monotonic()
        self._timeout = min(timeout, _left_to_caller(app, timeout))
        self._attempts = 0
        self._first_id = app.result_collector.new_id()
        app.retry_budget.deposit()

    def next_timeout(self) -> float:
        """Begin the next attempt, and return its timeout in seconds: an equal share of the time that is left."""
        left = self._left / (self._policy.attempts - self._attempts)
        self._attempts += 1
        return max(left, 0.001)

    @property
    def ids(self) -> dict[str, Any]:
        """The ids of the message of this attempt: each has its own, and all have those of the first as well."""
        if self._attempts <= 1:
            return {"message_id": self._first_id}
        shared: dict[str, Any] = {"correlation_id": self._first_id}
        if current_task() is None:  # else they belong to the conversation of the message that is handled
            shared["conversation_id"] = self._first_id
        return shared

    def pause_after(self, error: Exception) -> Pause | None:
        """Return the pause before the next attempt, or None if there is none; then the error is marked.

        An error that is marked is retried out: no handler above in the chain of requests is tried again because of
        it.

        Args:
            error: why the last attempt has no result.
        """
        if self._is_worth_repeating(error):
            spent = time.monotonic() - self._began
            if self._policy.may_retry(self._attempts, error, spent):
                pause = self._policy.delay(self._attempts - 1)
                if pause < self._left:
                    if self._app.retry_budget.withdraw():
                        return Pause(pause, self._app.components.sleep)
                    logger.warning(
                        "a request is not sent again: this process has retried too many of its requests",
                        extra={"action": "retry_budget_spent"},
                    )
                    error.add_note(f"{RETRIED_OUT}the retry budget of its caller is spent")
                    return None
        if self._attempts > 1:
            error.add_note(f"{RETRIED_OUT}the request was sent {self._attempts} times")
        return None

    def _is_worth_repeating(self, error: Exception) -> bool:
        """Return whether another attempt may have a result, if the policy allows one."""
        return not isinstance(error, LASTING) and not is_retried_out(error)

    def whole(self, response: Response) -> Response:
        """Return the last response with the seconds of all attempts."""
        return replace(response, seconds=time.monotonic() - self._began)

    @property
    def _left(self) -> float:
        return self._began + self._timeout - time.monotonic()


def _left_to_caller(app: AgentApp, timeout: float) -> float:
    """Return the seconds for which the caller of the running handler still waits."""
    task = current_task()
    until = task.caller_deadline() if task is not None else None
    if until is None:
        return timeout
    left: float = (until - app.reference_clock.now()).total_seconds()
    return left
