"""The circuit breaker: if the broker does not answer, one sender at a time tries it."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable

import pytest
from amqp.exceptions import MessageNacked, NotFound
from kombu.exceptions import BatchPublishError, OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError
from support import until

from waooaw_celery.broker.circuit_breaker import CircuitBreaker
from waooaw_celery.errors import AuditUnavailable, BrokerUnavailable

PAUSE = 0.1


def with_cause(error: Exception, cause: Exception) -> Exception:
    """Return an error with a cause."""
    error.__cause__ = cause
    return error


def fail(breaker: CircuitBreaker, error: Exception) -> None:
    """Let a publish fail."""
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
    """A circuit breaker with short pauses."""
    return CircuitBreaker(PAUSE, 100 * PAUSE)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        with_cause(OperationalError("x"), RedisConnectionError("gone")),
        with_cause(BatchPublishError("x"), with_cause(OSError(), OSError())),
        OSError(errno.EHOSTUNREACH, "no route"),
        socket.gaierror(socket.EAI_NONAME, "no such name"),
        OSError("Server unexpectedly closed connection"),  # py-amqp's own
        with_cause(OperationalError("x"), ReadOnlyError("x")),
        ReadOnlyError("x"),
        with_cause(OperationalError("x"), ResponseError("MISCONF Redis is configured to save RDB snapshots")),
    ],
    ids=repr,
)
def test_opens_if_the_broker_does_not_answer(breaker: CircuitBreaker, error: Exception) -> None:
    """After such a failure every sender is refused at once, with ``uncertain`` False."""
    assert not is_open(breaker)
    fail(breaker, error)
    with pytest.raises(BrokerUnavailable, match="nothing was published") as refused:
        breaker.check()
    assert not refused.value.uncertain


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("x"),
        with_cause(OperationalError("x"), OutOfMemoryError("x")),
        with_cause(OperationalError("x"), MessageNacked()),
        NotFound("no queue"),
        with_cause(OperationalError("x"), NoPermissionError("x")),
        OSError(errno.ENOSPC, "the disk is full"),
        OSError(errno.EROFS, "read-only"),
        FileNotFoundError(errno.ENOENT, "no such folder"),
        with_cause(OperationalError("x"), PermissionError(errno.EACCES, "not yours")),
        ValueError(),
    ],
    ids=repr,
)
def test_stays_closed_if_the_broker_refuses_a_message(breaker: CircuitBreaker, error: Exception) -> None:
    """A refusal shows that the broker answers."""
    fail(breaker, error)
    assert not is_open(breaker)


def test_reason_of_a_refusal_is_said(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers need not be checked for whether it runs."""
    for _ in range(2):
        fail(breaker, ReadOnlyError("x"))
    with pytest.raises(BrokerUnavailable, match="takes no writes") as refused:
        breaker.check()
    assert "Check that it runs" not in str(refused.value)
    assert [record.__dict__["action"] for record in caplog.records] == ["broker_refuses"]


def test_question_before_the_attempt_leaves_the_attempt_to_the_sender(breaker: CircuitBreaker) -> None:
    """A sender that asks twice is not refused the second time."""
    fail(breaker, TimeoutError())
    until(lambda: not is_paused(breaker), "the end of the pause", 5)
    breaker.check(tries=False)
    breaker.check()
    assert is_open(breaker)


def is_paused(breaker: CircuitBreaker) -> bool:
    """Whether a sender would be refused."""
    try:
        breaker.check(tries=False)
    except BrokerUnavailable:
        return True
    return False


def test_one_sender_tries_after_the_pause(breaker: CircuitBreaker) -> None:
    """After the pause exactly one sender may try. If it succeeds, all may."""
    fail(breaker, TimeoutError())
    until(lambda: not is_open(breaker), "the end of the pause", 5)
    assert is_open(breaker)
    with breaker.watching():
        pass
    assert not is_open(breaker)
    assert not is_open(breaker)


def test_each_further_failure_doubles_the_pause(breaker: CircuitBreaker) -> None:
    """The pause doubles up to the maximum. After a success it starts with the first pause again."""

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


def test_failure_of_the_ledger_does_not_close_it(breaker: CircuitBreaker) -> None:
    """A failure of the ledger does not show whether the broker answers again."""
    fail(breaker, TimeoutError())
    fail(breaker, AuditUnavailable())
    assert is_open(breaker)


def test_one_log_line_for_an_outage_and_one_for_its_end(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    """However many attempts there were."""
    actions: Callable[[], list[str]] = lambda: [record.__dict__["action"] for record in caplog.records]  # noqa: E731
    with caplog.at_level(logging.WARNING, logger="waooaw_celery.broker.circuit_breaker"):
        for _ in range(3):
            fail(breaker, TimeoutError())
        for _ in range(3):
            with breaker.watching():
                pass
    assert actions() == ["broker_away", "broker_back"]
