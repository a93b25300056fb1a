"""The outcomes of messages that were published together, in every form in which RabbitMQ confirms them."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from amqp.exceptions import ChannelError, IrrecoverableConnectionError, RecoverableConnectionError

from waooaw_celery.broker.amqp.confirms import Confirms, Publishing

MESSAGES = [(f"m{number}", b"frames") for number in range(1, 6)]


class Channel:
    """A channel and its connection; the server's answers are a list of calls."""

    def __init__(self) -> None:
        self.events: Any = defaultdict(set)
        self.connection: Any = self
        self.read_timeout, self.frame_max, self.channel_id = 0.2, 4096, 1
        self.answers: list[Callable[[], None]] = []
        self.written = b""
        self.is_collected = False
        self.transport: Any = Transport(self)

    def confirm_select(self) -> None:
        """Do nothing."""

    def drain_events(self, timeout: float) -> None:
        """Give the next answer."""
        if not self.answers:
            raise TimeoutError("nothing arrived")
        self.answers.pop(0)()

    def collect(self) -> None:
        self.is_collected, self.connection = True, None

    def answer(self, event: str, *args: Any) -> None:
        """Append an answer."""
        self.answers.append(lambda: [handler(*args) for handler in self.events[event]] and None)


class Transport:
    """Keeps what is written; nothing is readable before the sender waits."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._read_buffer = channel, b""
        self.sock, self.far = socket.socketpair()

    @contextmanager
    def having_timeout(self, timeout: float) -> Iterator[None]:
        """Need no time."""
        yield

    def write(self, s: bytes) -> None:
        """Keep it."""
        self._channel.written += s


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.transport.sock.close()
    channel.transport.far.close()


def returned(id_: str) -> Any:
    """Return a message as RabbitMQ returns it."""
    return type("Returned", (), {"properties": {"correlation_id": id_}})()


def test_confirms_of_several_messages_at_once(channel: Channel) -> None:
    """``multiple`` confirms all up to its tag; single ones arrive in any order."""
    confirms, publishing = Confirms(channel), Publishing()
    for tag, multiple in ((2, True), (5, False), (4, True)):
        channel.answer("basic_ack", tag, multiple)
    confirms.publish(publishing, MESSAGES)
    assert channel.written == b"frames" * 5
    assert publishing.confirmed == ["m1", "m2", "m5", "m3", "m4"]
    assert not publishing.refused


def test_refused_and_returned_messages_are_known(channel: Channel) -> None:
    """The confirm that follows a return is no confirm."""
    confirms, publishing = Confirms(channel), Publishing()
    reason = ChannelError("NO_ROUTE")
    channel.answer("basic_return", reason, "", "q", returned("m4"))
    channel.answer("basic_nack", 1, False)
    channel.answer("basic_ack", 5, True)
    confirms.publish(publishing, MESSAGES)
    assert publishing.confirmed == ["m2", "m3", "m5"]
    assert set(publishing.refused) == {"m1", "m4"}
    assert publishing.refused["m4"] is reason


def test_tags_go_on_from_publish_to_publish(channel: Channel) -> None:
    """RabbitMQ counts the publishes of a channel."""
    confirms = Confirms(channel)
    for first in (1, 6):
        publishing = Publishing()
        channel.answer("basic_ack", first + 4, True)
        confirms.publish(publishing, MESSAGES)
        assert len(publishing.confirmed) == 5


def test_silence_closes_the_connection(channel: Channel) -> None:
    """What was confirmed before stays known; nothing is published again by Kombu."""
    confirms, publishing = Confirms(channel), Publishing()
    channel.answer("basic_ack", 2, True)
    with pytest.raises(IrrecoverableConnectionError, match="did not confirm the publish in time"):
        confirms.publish(publishing, MESSAGES)
    assert publishing.confirmed == ["m1", "m2"]
    assert publishing.waiting == {"m3", "m4", "m5"}
    assert channel.is_collected


def test_a_lost_connection_leaves_the_rest_unknown(channel: Channel) -> None:
    """Kombu may repeat it where that is safe."""
    confirms, publishing = Confirms(channel), Publishing()
    channel.answer("basic_ack", 1, False)

    def lose() -> None:
        raise ConnectionResetError("reset")

    channel.answers.append(lose)
    with pytest.raises(RecoverableConnectionError, match="lost during a publish"):
        confirms.publish(publishing, MESSAGES)
    assert publishing.confirmed == ["m1"]
    assert not publishing.refused
    with pytest.raises(RecoverableConnectionError, match="closed"):
        confirms.publish(Publishing(), MESSAGES)


def test_a_time_limit_in_the_middle_closes_the_connection(channel: Channel) -> None:
    """A frame may be written in part: no other message may follow it."""
    confirms = Confirms(channel)

    def interrupt() -> None:
        raise KeyboardInterrupt

    channel.answers.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        confirms.publish(Publishing(), MESSAGES)
    assert channel.is_collected


def test_the_same_message_twice_waits_for_the_first(channel: Channel) -> None:
    """A return could not say which of the two it means."""
    confirms, publishing = Confirms(channel), Publishing()
    channel.answer("basic_ack", 1, False)
    channel.answer("basic_ack", 2, False)
    confirms.publish(publishing, [MESSAGES[0], MESSAGES[0]])
    assert publishing.confirmed == ["m1", "m1"]
