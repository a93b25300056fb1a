"""The deadline of a request: what it is, and which time limit a handler has because of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.app.task import Context

from waooaw_celery import Agent, create_app
from waooaw_celery.agents.requests.response import outcome_of
from waooaw_celery.errors import ConfigurationError, DeadlineExceeded, InvalidMessage, RemoteError, RequestTimeout
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.results.pending import ResultMessage
from waooaw_celery.worker.execution.deadline import deadline_of, pool_options, soft_limit_within

EXPIRY = datetime(2026, 1, 1, tzinfo=UTC)
LATER = EXPIRY + timedelta(seconds=5)


def handler(**options: Any) -> Any:
    """Return a handler with these options."""
    agent = Agent("worker-1", create_app("tests", broker_url="memory://", waooaw_allow_unordered=True))

    @agent.method(**options)
    def method() -> None:
        """Do nothing."""

    return method


def request(reply_to: ReplyTo | None) -> Context:
    """Return Celery's request with this reply-to header."""
    headers = {} if reply_to is None else {REPLY_TO_HEADER: reply_to.to_header()}
    return Context(id="1", expires=EXPIRY.isoformat(), headers=headers)


@pytest.mark.parametrize(
    ("reply_to", "expected"),
    [
        (ReplyTo(), EXPIRY),
        (ReplyTo(stream=True), None),
        (ReplyTo(stream=True, deadline=LATER), LATER),
        (ReplyTo(on_reply="worker-2.came"), None),
        (None, None),
    ],
)
def test_the_deadline_is_when_the_caller_stops_waiting(
    reply_to: ReplyTo | None, expected: datetime | None
) -> None:
    """It is the expiry of a request, what the header of a stream says, and unknown for all else."""
    assert deadline_of(handler(), request(reply_to)) == expected
    assert deadline_of(handler(deadline="ignore"), request(reply_to)) is None


@pytest.mark.parametrize("value", [7, "soon", "2026-01-01T00:00:00", []])
def test_a_damaged_deadline_is_refused(value: object) -> None:
    """A time needs a zone."""
    with pytest.raises(InvalidMessage, match="is damaged"):
        ReplyTo.from_header({**ReplyTo(stream=True).to_header(), "deadline": value})


def test_a_reply_to_survives_its_header() -> None:
    """With and without a deadline; older versions send none."""
    for reply_to in (ReplyTo(waiting=("a",), stream=True, deadline=LATER), ReplyTo()):
        assert ReplyTo.from_header(reply_to.to_header()) == reply_to
    assert "deadline" not in ReplyTo().to_header()


@pytest.mark.parametrize("value", ["stop", True, 5])
def test_the_only_option_is_ignore(value: object) -> None:
    """The error says what to write."""
    with pytest.raises(ConfigurationError, match='use deadline="ignore"'):
        handler(deadline=value)


@pytest.mark.parametrize(
    ("left", "soft", "hard", "expected"),
    [
        (None, None, 300.0, None),
        (None, 60.0, 300.0, 60.0),
        (10.0, None, 300.0, 10.0),
        (10.0, 60.0, 300.0, 10.0),
        (100.0, 60.0, 300.0, 60.0),
        (10.0, None, None, 10.0),
        (400.0, None, 300.0, None),
        (400.0, 350.0, 300.0, 350.0),
        (-1.0, None, 300.0, 0.01),
    ],
)
def test_the_earliest_limit_holds(
    left: float | None, soft: float | None, hard: float | None, expected: float | None
) -> None:
    """The deadline never postpones a time limit of the handler."""
    assert soft_limit_within(left, soft, hard) == expected


class PoolRequest:
    """Celery's request in the worker, as a pool gets it."""

    def __init__(self, task: Any, expires: datetime, reply_to: object) -> None:
        self.task = task
        self.request_dict = {"id": "1", "expires": expires.isoformat(), REPLY_TO_HEADER: reply_to}


def test_the_limits_of_the_worker_hold_too() -> None:
    """They come from its command line, and Celery gives them to the pool only."""
    soon = datetime.now(UTC) + timedelta(seconds=100)
    asked = PoolRequest(handler(time_limit=300), soon, ReplyTo().to_header())
    assert 90 < pool_options(asked, {"timeout": 300}, {})["soft_timeout"] <= 101
    assert pool_options(asked, {}, {"timeout": 50})["soft_timeout"] is None
    assert pool_options(asked, {}, {"soft_timeout": 30})["soft_timeout"] == 30
    for reply_to in (None, 7):
        assert pool_options(PoolRequest(handler(), soon, reply_to), {"timeout": 5}, {}) == {"timeout": 5}


def test_a_caller_that_hears_of_its_deadline_has_a_timeout() -> None:
    """The handler may be stopped a moment before the caller's timeout. Another class of this name is none."""
    stopped = outcome_of("worker-1", "1", ResultMessage("FAILURE", DeadlineExceeded("stopped"), "traceback"))
    assert isinstance(stopped[1], RequestTimeout)
    own = type("DeadlineExceeded", (Exception,), {})("of a client")
    assert isinstance(outcome_of("worker-1", "1", ResultMessage("FAILURE", own, "traceback"))[1], RemoteError)
