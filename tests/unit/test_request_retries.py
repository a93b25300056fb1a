"""When a caller sends a request again, without any server."""

from __future__ import annotations

import time

import pytest

from waooaw_celery import AgentApp, RemoteError, RequestTimeout, RetryPolicy, create_app
from waooaw_celery.agents.requests.request_retries import LASTING, NO_ANSWER, RequestRetries, retry_policy
from waooaw_celery.errors import (
    RETRIED_OUT,
    BrokerUnavailable,
    ConfigurationError,
    InvalidArguments,
    SenderPaused,
    UnknownMethod,
)
from waooaw_celery.worker.retries.retried_out import is_retried_out

AT_ONCE = RetryPolicy(attempts=3, first_delay=0.0, jitter=False)


@pytest.fixture
def app() -> AgentApp:
    """An application that never connects."""
    url = "redis://localhost:1"
    return create_app("retries", broker_url=url, result_backend=url, waooaw_sender="tests")


def retries(app: AgentApp, policy: RetryPolicy, timeout: float = 30.0) -> RequestRetries:
    """Return the retries of a request whose first attempt was made."""
    made = RequestRetries(app, policy, timeout)
    made.next_timeout()
    return made


def test_a_number_stands_for_requests_without_an_answer(app: AgentApp) -> None:
    """``retry=2`` sends again after a timeout and an outage, not after the method has failed."""
    policy = retry_policy(2)
    assert policy is not None
    assert (policy.attempts, policy.on) == (3, NO_ANSWER)
    assert retry_policy(None) is None
    assert retries(app, policy).pause_after(RequestTimeout("late")) is not None
    assert retries(app, policy).pause_after(BrokerUnavailable("away")) is not None
    assert retries(app, policy).pause_after(RemoteError("other", "ValueError", "no")) is None
    for wrong in (-1, True, "2", 1.5):
        with pytest.raises(ConfigurationError):
            retry_policy(wrong)  # type: ignore[arg-type]


def test_a_policy_says_which_errors_are_tried_again(app: AgentApp) -> None:
    """A policy for all errors also sends again after the method has failed, unless its agent has retried it."""
    assert retries(app, AT_ONCE).pause_after(RemoteError("other", "ValueError", "no")) is not None
    tried = RemoteError("other", "ValueError", "no", f"Traceback\n{RETRIED_OUT}other.method was tried 3 times")
    assert retries(app, AT_ONCE).pause_after(tried) is None


@pytest.mark.parametrize("error", [InvalidArguments("x"), UnknownMethod("x"), ConfigurationError("x")])
def test_errors_that_would_come_again_are_not_tried_again(app: AgentApp, error: Exception) -> None:
    """Whatever the policy says, and they are not marked as retried out."""
    assert isinstance(error, LASTING)
    assert issubclass(SenderPaused, LASTING)
    assert retries(app, AT_ONCE).pause_after(error) is None
    assert not is_retried_out(error)


def test_each_attempt_waits_for_an_equal_share_of_the_time_that_is_left(app: AgentApp) -> None:
    """An attempt that fails soon leaves its time to the next ones."""
    made = RequestRetries(app, AT_ONCE, 30.0)
    assert made.next_timeout() == pytest.approx(10.0, abs=0.5)
    assert made.next_timeout() == pytest.approx(15.0, abs=0.5)
    assert made.next_timeout() == pytest.approx(30.0, abs=0.5)


def test_the_attempts_share_the_ids_of_the_first(app: AgentApp) -> None:
    """Each is a message of its own, in the conversation of the first."""
    made = retries(app, AT_ONCE)
    first = made.ids["message_id"]
    made.next_timeout()
    assert made.ids == {"correlation_id": first, "conversation_id": first}


def test_the_last_error_is_marked_as_retried_out(app: AgentApp) -> None:
    """So no handler above is tried again because of it. An error before the last attempt is not marked."""
    made = retries(app, AT_ONCE)
    error = RequestTimeout("late")
    pause = made.pause_after(error)
    assert pause is not None
    assert pause.seconds == 0.0
    made.next_timeout()
    made.next_timeout()
    assert not is_retried_out(error)
    assert made.pause_after(error) is None
    assert is_retried_out(error)
    remote = RemoteError("other", "ValueError", "no")
    assert made.pause_after(remote) is None
    assert remote.retried_out


def test_no_attempt_begins_after_the_timeout(app: AgentApp) -> None:
    """A pause that is longer than the time that is left ends the request at once."""
    began = time.monotonic()
    made = retries(app, RetryPolicy(attempts=3, first_delay=5.0, jitter=False), timeout=2.0)
    assert made.pause_after(RequestTimeout("late")) is None
    assert time.monotonic() - began < 1.0


def test_the_retry_budget_bounds_the_attempts_of_a_process(app: AgentApp) -> None:
    """When it is spent, the error is raised at once and counts as retried out."""
    pauses = [retries(app, AT_ONCE).pause_after(RequestTimeout("late")) for _ in range(200)]
    sent_again = sum(pause is not None for pause in pauses)
    assert 100 <= sent_again <= 100 + 0.2 * 200
    error = RequestTimeout("late")
    assert retries(app, AT_ONCE).pause_after(error) is None
    assert is_retried_out(error)
