"""Which error of a publish proves that Redis has none of its messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # its stubs are old
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from waooaw_celery.broker.redis.batch import BatchRefused, push
from waooaw_celery.store.redis_refusals import RedisRefuses, refusal_in


def raised(
    error: BaseException, *, cause: BaseException | None = None, context: BaseException | None = None
) -> BaseException:
    """Return an error as if it was raised from a cause, and while another was handled."""
    error.__context__ = context
    if cause is not None:
        error.__cause__ = cause
    return error


def test_a_refused_publish_is_a_refusal_also_in_kombus_error() -> None:
    """The server has answered that it executed nothing."""
    refused = OutOfMemoryError("command not allowed")
    assert refusal_in(refused) is refused
    assert refusal_in(raised(OperationalError("x"), cause=refused, context=refused)) is refused


def test_a_refusal_after_a_lost_answer_proves_nothing() -> None:
    """The first attempt may have reached the server: it stands in the context of the second."""
    lost = RedisConnectionError("connection lost")
    refuses = raised(RedisRefuses("it is a replica"), cause=ReadOnlyError("READONLY"), context=lost)
    assert refusal_in(refuses) is None


class Connection:
    """A connection of redis-py with fixed replies."""

    is_connected = True

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies

    def can_read(self) -> bool:
        return False

    def pack_commands(self, commands: Any) -> list[bytes]:
        return []

    def send_packed_command(self, packed: list[bytes]) -> None: ...

    def read_response(self) -> Any:
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def push_replied(*replies: Any) -> None:
    """Publish one message to each of some lists; the server gives these replies to the pushes."""
    each = [reply for pushed in replies for reply in (pushed, None)]  # a push, then its doorbell
    channel = SimpleNamespace(scripts_client=SimpleNamespace(connection=Connection(each)))
    push(channel, {(f"list-{number}", "bell"): ["text"] for number in range(len(replies))})


def test_a_batch_that_is_refused_as_a_whole_is_a_refusal() -> None:
    """Redis has none of its messages."""
    refused = OutOfMemoryError("command not allowed")
    with pytest.raises(BatchRefused) as caught:
        push_replied(refused, refused)
    assert refusal_in(caught.value) is not None


def test_a_batch_that_is_refused_in_part_proves_nothing() -> None:
    """A caller that sends the whole batch again would double what Redis has taken."""
    with pytest.raises(BatchPublishError, match="may have the others") as caught:
        push_replied(1, OutOfMemoryError("command not allowed"))
    assert not isinstance(caught.value, BatchRefused)
    assert refusal_in(caught.value) is None
