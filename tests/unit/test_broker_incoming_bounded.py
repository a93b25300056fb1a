"""Messages of Kombu's own transports, unpacked and decoded within the caps of their connection."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.transport import memory, pyamqp

from waooaw_celery.broker.incoming.bounded import bounded_transport, without_compression
from waooaw_celery.broker.redis.transport import Transport
from waooaw_celery.errors import DecodingFailed

LIMIT = 1000


@pytest.fixture
def channel() -> Iterator[Any]:
    """A channel of Kombu's transport in memory, whose messages may have a thousand bytes."""
    bounded = bounded_transport(memory.Transport)
    options = {"max_expanded_bytes": LIMIT}
    with Connection(transport=bounded, transport_options=options) as connection:
        yield connection.default_channel


def arrived(channel: Any, body: Any, **headers: Any) -> Any:
    """Return a message as the channel delivers it."""
    payload = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {"delivery_tag": "1", "body_encoding": "base64", "delivery_info": {"exchange": ""}},
    }
    return channel.message_to_python(payload)


def packed(data: bytes) -> str:
    """Return bytes as they travel."""
    return base64.b64encode(data).decode()


def test_a_body_is_unpacked_and_decoded(channel: Any) -> None:
    """Its header says no more that it is compressed."""
    message = arrived(channel, packed(zlib.compress(b'{"n": 1}')), compression="zlib", id="7")
    assert not message.errors
    assert message.decode() == {"n": 1}
    assert message.headers == {"id": "7"}


def test_a_body_that_is_not_compressed_is_decoded(channel: Any) -> None:
    """Its headers stay."""
    message = arrived(channel, packed(b"[1]"), id="7")
    assert (message.decode(), message.headers) == ([1], {"id": "7"})


def test_an_empty_body_is_none_of_base64(channel: Any) -> None:
    """Kombu sends None for it."""
    message = arrived(channel, None)
    assert (message.body, message.errors) == (None, [])


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (packed(zlib.compress(b" " * (LIMIT + 1))), {"compression": "zlib"}),
        (packed(b"no zlib"), {"compression": "zlib"}),
        ("abcde", {}),
    ],
    ids=["it grows too large", "it is damaged", "it is not base64"],
)
def test_a_body_that_cannot_be_unpacked_keeps_its_error(channel: Any, body: str, headers: dict[str, Any]) -> None:
    """Kombu's consumer then calls ``on_decode_error``, and the message keeps its header."""
    message = arrived(channel, body, **headers)
    assert len(message.errors) == 1
    assert message.headers == headers


def test_a_body_beyond_the_limit_is_not_decoded(channel: Any) -> None:
    """Also when it came uncompressed."""
    message = arrived(channel, packed(b'"' + b"x" * LIMIT + b'"'))
    with pytest.raises(DecodingFailed, match=str(LIMIT)):
        message.decode()


def test_the_limits_are_read_once(channel: Any) -> None:
    """They belong to the connection."""
    assert channel.caps is channel.caps
    assert channel.caps.max_expanded_bytes == LIMIT


def test_messages_travel_through_the_bounded_transport(channel: Any) -> None:
    """Kombu's own producer and ``get`` use the same class of messages."""
    queue = Queue("bounded", channel=channel)
    queue.declare()
    channel.basic_publish(channel.prepare_message("[2]", content_type="application/json"), "", "bounded")
    found = queue.get(no_ack=True)
    assert found is not None
    assert found.decode() == [2]


@pytest.mark.parametrize("transport", [pyamqp.Transport, Transport])
def test_a_transport_with_messages_of_its_own_stays_as_it_is(transport: Any) -> None:
    """RabbitMQ's is not virtual, and the one of this package checks already."""
    assert bounded_transport(transport) is transport


def test_a_transport_is_bounded_once() -> None:
    """Two connections share the class."""
    assert bounded_transport(memory.Transport) is bounded_transport(memory.Transport)
    assert bounded_transport(memory.Transport) is not memory.Transport


def test_headers_without_compression_are_the_same_object() -> None:
    """No message is copied for nothing."""
    headers = {"id": "1"}
    assert without_compression(headers) is headers
    assert without_compression({"id": "1", "compression": "zlib"}) == headers
