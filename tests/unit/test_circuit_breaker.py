"""The circuit breaker: a broker that does not answer is tried by one sender at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from amqp.exceptions import MessageNacked, NotFound
from kombu.exceptions import BatchPublishError, OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from support import until

from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.errors import AuditUnavailable, BrokerUnavailable

PAUSE = 0.1


def caused(error: Exception, cause: Exception) -> Exception:
    """Return an error that was raised from another."""
    error.__cause__ = cause
    return error


def fail(breaker: CircuitBreaker, error: Exception) -> None:
    """Have a publish fail."""
    with pytest.raises(type(error)), breaker.watching():
        raise error


def is_open(breaker: CircuitBreaker) -> bool:
    """Whether a sender is refused."""
    try:
        breaker.check()
    except BrokerUnavailable:
        return True
    return False


@pytest.fixture
def breaker() -> CircuitBreaker:
    """A breaker with short pauses."""
    return CircuitBreaker(PAUSE, 100 * PAUSE)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        caused(OperationalError("x"), RedisConnectionError("gone")),
        caused(BatchPublishError("x"), caused(OSError(), OSError())),
    ],
    ids=repr,
)
def test_it_opens_when_the_broker_does_not_answer(breaker: CircuitBreaker, error: Exception) -> None:
    """After a failure that says so every sender is refused at once, and told that nothing was published."""
    assert not is_open(breaker)
    fail(breaker, error)
    with pytest.raises(BrokerUnavailable, match="nothing was published") as refused:
        breaker.check()
    assert not refused.value.uncertain


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("x"),
        caused(OperationalError("x"), OutOfMemoryError("x")),
        caused(OperationalError("x"), MessageNacked()),
        NotFound("no queue"),
        ValueError(),
    ],
    ids=repr,
)
def test_it_stays_closed_when_the_broker_says_no(breaker: CircuitBreaker, error: Exception) -> None:
    """What a broker that lives does not want says nothing about the next message."""
    fail(breaker, error)
    assert not is_open(breaker)


def test_one_sender_tries_and_the_others_wait_for_what_comes_of_it(breaker: CircuitBreaker) -> None:
    """When the pause is over exactly one is let through; when that goes well, all are."""
    fail(breaker, TimeoutError())
    until(lambda: not is_open(breaker), "the end of the pause", 5)
    assert is_open(breaker)
    with breaker.watching():
        pass
    assert not is_open(breaker)
    assert not is_open(breaker)


def test_each_further_failure_doubles_the_pause(breaker: CircuitBreaker) -> None:
    """Up to the longest; and after a success it begins with the first again."""

    def pause() -> float:
        began = time.monotonic()
        fail(breaker, TimeoutError())
        until(lambda: not is_open(breaker), "the end of the pause", 5)
        return time.monotonic() - began

    assert [pause() >= PAUSE * 2**number for number in range(3)] == [True] * 3
    with breaker.watching():
        pass
    fail(breaker, TimeoutError())
    with pytest.raises(BrokerUnavailable, match=r"tried again in 0\.[01] s"):
        breaker.check()


def test_what_says_nothing_of_the_broker_does_not_close_it(breaker: CircuitBreaker) -> None:
    """The ledger may fail on the way: then it is still not known whether the broker is back."""
    fail(breaker, TimeoutError())
    fail(breaker, AuditUnavailable())
    assert is_open(breaker)


def test_the_log_has_one_line_when_it_goes_and_one_when_it_is_back(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it was tried meanwhile."""
    told: Callable[[], list[str]] = lambda: [record.__dict__["action"] for record in caplog.records]  # noqa: E731
    with caplog.at_level(logging.WARNING, logger="waooaw_celery.broker.circuit_breaker"):
        for _ in range(3):
            fail(breaker, TimeoutError())
        for _ in range(3):
            with breaker.watching():
                pass
    assert told() == ["broker_away", "broker_back"]
