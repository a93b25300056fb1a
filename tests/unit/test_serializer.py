"""MessageSerializer writes values and messages as bytes that say what wrote them, and compares formats."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression, serialization
from wire_values import values

from waooaw_celery import Message
from waooaw_celery.errors import ConfigurationError, DecodingFailed, InvalidMessage
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import find_codec
from waooaw_celery.wire.serializer import MessageSerializer

PAYLOAD = {
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "records": [{"name": "ann", "n": number} for number in range(200)],
}


@given(
    value=values, format_=st.sampled_from(["json", "msgpack", "protobuf"]), codec=st.sampled_from([None, "zstd"])
)
def test_what_was_serialized_is_deserialized(value: Any, format_: str, codec: str | None) -> None:
    """Without being told in which format and with which codec."""
    serializer = MessageSerializer()
    assert serializer.deserialize(serializer.serialize(value, format_, codec)) == value


def test_the_payload_of_a_message_is_serialized_as_the_message_says() -> None:
    """Format and codec are the message's, or else the call's, or else the serializer's."""
    serializer = MessageSerializer()
    message = Message(from_agent="a", to_agent="b", payload=PAYLOAD, serializer="msgpack", compression="none")
    data = serializer.serialize_message_payload(message)
    assert b"application/x-msgpack\0\0" in data
    assert serializer.deserialize_message_payload(data) == PAYLOAD
    assert b"application/json\0application/zstd\0" in serializer.serialize_message_payload(message, "json", "zstd")
    assert b"application/x-gzip" in serializer.serialize(PAYLOAD)
    assert b"application/x-gzip" not in MessageSerializer(compression="none").serialize(PAYLOAD)
    assert b"application/x-gzip" not in MessageSerializer(compress_above=10**6).serialize(PAYLOAD)


def test_plain_json_is_read_too() -> None:
    """What another program wrote as JSON needs no mark."""
    assert MessageSerializer().deserialize(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\0waooaw\0",
        b"\0waooaw\0application/json\0",
        b"\0waooaw\0application/x-nonsense\0\0[]",
        b"\0waooaw\0application/x-python-serialize\0\0" + pickle.dumps([]),
        b"\0waooaw\0application/data\0\0[]",
        b"\0waooaw\0application/json\0application/x-gzip\0[]",
        b"\0waooaw\0application/json\0\xff\0[]",
        "text",
        None,
    ],
)
def test_what_nobody_wrote_is_refused(data: Any) -> None:
    """Anything else is one error."""
    with pytest.raises(DecodingFailed):
        MessageSerializer().deserialize(data)


def test_caps_hold_at_both_ends() -> None:
    """What is too large is neither written nor read."""
    small = MessageSerializer(caps=Caps(max_expanded_bytes=1000))
    with pytest.raises(InvalidMessage, match="more than waooaw_max_expanded_bytes"):
        small.serialize("x" * 1000)
    with pytest.raises(DecodingFailed, match="more than 1000 bytes"):
        small.deserialize(MessageSerializer().serialize("x" * 5000))


@pytest.mark.parametrize(("format_", "codec"), [("jason", None), ("json", "gzap")])
def test_unknown_names_are_told(format_: str, codec: str | None) -> None:
    """The sentence names those that there are."""
    with pytest.raises(ConfigurationError, match="choose one of"):
        MessageSerializer().serialize(1, format_, codec)


def test_a_format_of_ones_own_is_registered_with_kombu() -> None:
    """It is a serializer of Celery's from then on, and bounded afterwards."""
    serializer = MessageSerializer()
    serializer.register(
        "shout", lambda value: repr(value).upper(), lambda body: body.decode().lower(), "text/x-shout", "utf-8"
    )
    try:
        assert serializer.deserialize(serializer.serialize("Hi", "shout")) == "'hi'"
        assert serialization.dumps("Hi", "shout") == ("text/x-shout", "utf-8", "'HI'")
        assert serialization.loads("'HI'", "text/x-shout", "utf-8", accept={"text/x-shout"}) == "'hi'"
        assert "shout" in {one.format for one in serializer.stats("x")}
    finally:
        serialization.unregister("shout")


def test_a_codec_of_ones_own_is_registered_with_kombu() -> None:
    """Its name may be given wherever a codec is chosen."""
    serializer = MessageSerializer()
    zlib = find_codec("zlib")
    serializer.register_codec(
        "marked",
        lambda body: b"Z" + zlib.compress(body),
        lambda body, most: zlib.expand(body[1:], most),
        "x-marked",
    )
    data = serializer.serialize("x" * 2000, compression="marked")
    assert data.startswith(b"\0waooaw\0application/json\0x-marked\0Z")
    assert serializer.deserialize(data) == "x" * 2000
    assert compression.decompress(data.partition(b"x-marked\0")[2], "marked") == b'"' + b"x" * 2000 + b'"'
    assert "marked" in {one.codec for one in serializer.stats("x")}


def test_statistics_compare_every_format_and_codec() -> None:
    """Size, ratio and time of each, the plain JSON being 1."""
    found = {(one.format, one.codec): one for one in MessageSerializer().stats(PAYLOAD)}
    assert {"json", "msgpack", "protobuf"} <= {format_ for format_, _ in found}
    assert {"none", "zlib", "real-gzip", "zstd", "bzip2", "lzma"} <= {codec for _, codec in found}
    assert found["json", "none"].ratio == 1.0
    assert found["msgpack", "none"].ratio < 0.8
    assert found["json", "zlib"].ratio < 0.3
    assert all(one.encode_us > 0 and one.decode_us > 0 for one in found.values())
    with pytest.raises(InvalidMessage, match="which cannot be sent"):
        MessageSerializer().stats({1, 2})
