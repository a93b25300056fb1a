"""MessageSerializer encodes values as bytes that name their format and codec, and compares formats."""

from __future__ import annotations

import math
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression, serialization
from wire_values import nested_list, values

from waooaw_celery import Message
from waooaw_celery.errors import ConfigurationError, DecodingFailed, EncodingFailed, InvalidMessage
from waooaw_celery.wire import formats
from waooaw_celery.wire import serializer as serializer_module
from waooaw_celery.wire.caps import (
    MIB,
    Caps,
)
from waooaw_celery.wire.codecs import find_codec
from waooaw_celery.wire.formats import decode, find_format
from waooaw_celery.wire.serializer import MessageSerializer

PAYLOAD = {
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "records": [{"name": "ann", "n": number} for number in range(200)],
}


@pytest.fixture(autouse=True)
def _time_each_codec_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serializer_module, "_TIMING_SECONDS", 0.0)


@given(
    value=values, format_=st.sampled_from(["json", "msgpack", "protobuf"]), codec=st.sampled_from([None, "zstd"])
)
def test_serialized_data_names_its_format_and_codec(value: Any, format_: str, codec: str | None) -> None:
    """``deserialize`` needs no other argument to restore the value."""
    serializer = MessageSerializer()
    assert serializer.deserialize(serializer.serialize(value, format_, codec)) == value


def test_the_format_and_codec_of_a_message_apply_to_its_payload() -> None:
    """Arguments of the call win over the message's choice, and that over the serializer's defaults."""
    serializer = MessageSerializer()
    message = Message(from_agent="a", to_agent="b", payload=PAYLOAD, serializer="msgpack", compression="none")
    data = serializer.serialize_message_payload(message)
    assert b"application/x-msgpack\0\0" in data
    assert serializer.deserialize_message_payload(data) == PAYLOAD
    assert b"application/json\0application/zstd\0" in serializer.serialize_message_payload(message, "json", "zstd")
    assert b"application/x-gzip" in serializer.serialize(PAYLOAD)
    assert b"application/x-gzip" not in MessageSerializer(compression="none").serialize(PAYLOAD)
    assert b"application/x-gzip" not in MessageSerializer(compress_above=10**6).serialize(PAYLOAD)


def test_plain_json_is_deserialized() -> None:
    """JSON from another program needs no magic bytes."""
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
def test_invalid_data_is_refused(data: Any) -> None:
    """All invalid input raises one error."""
    with pytest.raises(DecodingFailed):
        MessageSerializer().deserialize(data)


def test_the_caps_apply_at_both_ends() -> None:
    """A value that is too large is neither serialized nor deserialized."""
    small = MessageSerializer(caps=Caps(max_expanded_bytes=1000))
    with pytest.raises(InvalidMessage, match="more than waooaw_max_expanded_bytes"):
        small.serialize("x" * 1000)
    with pytest.raises(DecodingFailed, match="more than 1000 bytes"):
        small.deserialize(MessageSerializer().serialize("x" * 5000))


@pytest.mark.parametrize(("format_", "codec"), [("jason", None), ("json", "gzap")])
def test_unknown_names_are_refused(format_: str, codec: str | None) -> None:
    """The error lists the names to choose from."""
    with pytest.raises(ConfigurationError, match="choose one of"):
        MessageSerializer().serialize(1, format_, codec)


def test_a_custom_format_is_registered_with_kombu() -> None:
    """Celery can then use it as a serializer, within the caps."""
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


def test_a_custom_codec_is_registered_with_kombu() -> None:
    """Its name can then be used wherever a codec is chosen."""
    serializer = MessageSerializer()
    zlib = find_codec("zlib")
    serializer.register_codec(
        "marked",
        lambda body: b"Z" + zlib.compress(body),
        lambda body, max_bytes: zlib.decompress(body[1:], max_bytes),
        "x-marked",
    )
    data = serializer.serialize("x" * 2000, compression="marked")
    assert data.startswith(b"\0waooaw\0application/json\0x-marked\0Z")
    assert serializer.deserialize(data) == "x" * 2000
    assert compression.decompress(data.partition(b"x-marked\0")[2], "marked") == b'"' + b"x" * 2000 + b'"'
    assert "marked" in {one.codec for one in serializer.stats("x")}


def test_statistics_compare_every_format_and_codec() -> None:
    """Each has a size, a ratio to plain JSON, and times."""
    stats = {(one.format, one.codec): one for one in MessageSerializer().stats(PAYLOAD)}
    assert {"json", "msgpack", "protobuf"} <= {format_ for format_, _ in stats}
    assert {"none", "zlib", "real-gzip", "zstd", "bzip2", "lzma"} <= {codec for _, codec in stats}
    assert stats["json", "none"].ratio == 1.0
    assert stats["msgpack", "none"].ratio < 0.8
    assert stats["json", "zlib"].ratio < 0.3
    assert all(one.encode_us > 0 and one.decode_us > 0 for one in stats.values())
    with pytest.raises(InvalidMessage, match="which cannot be sent"):
        MessageSerializer().stats({1, 2})


def test_a_custom_format_is_always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how deep its bodies are, so that the decoded value is checked, and the encoded one too."""
    serializer = MessageSerializer(caps=Caps(max_depth=3))
    monkeypatch.setattr(formats, "_formats", dict(formats._formats))
    serializer.register(
        "deep", lambda value: str(len(value)).encode(), lambda body: nested_list(int(body)), "x-deep"
    )
    try:
        assert find_format("deep").content_encoding == "binary"
        assert decode(b"3", "x-deep", None, Caps(max_depth=3)) == nested_list(3)
        with pytest.raises(DecodingFailed, match="deeper than 3"):
            decode(b"4", "x-deep", None, Caps(max_depth=3))
        with pytest.raises(EncodingFailed, match="deeper than 3"):
            serializer.serialize(nested_list(4), "deep")
    finally:
        serialization.unregister("deep")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("text", "serialized data must be bytes, not str"),
        (b"\0waooaw\0application/json\0", "is truncated"),
        (b"\0waooaw\0x-none\0\0[]", "'x-none', which is not registered"),
        (b"\0waooaw\0application/json\0x-none\0[]", "'x-none', which is not accepted"),
    ],
)
def test_invalid_serialized_data_names_its_problem(data: Any, reason: str) -> None:
    """The error says what is missing or unknown."""
    with pytest.raises(DecodingFailed, match=reason):
        MessageSerializer().deserialize(data)


def test_serialized_data_is_read_from_any_bytes() -> None:
    """The body may contain zero bytes, and may be a bytearray or a memoryview."""
    data = MessageSerializer("msgpack", "none").serialize([0, 0, "\0"])
    assert data == b"\0waooaw\0application/x-msgpack\0\0" + b"\x93\x00\x00\xa1\x00"
    for each in (data, bytearray(data), memoryview(data)):
        assert MessageSerializer().deserialize(each) == [0, 0, "\0"]


def test_the_best_of_several_runs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a run is measured in microseconds, for as long as is set."""
    from waooaw_celery.wire import serializer

    ticks = iter([0.0, 1.0, 4.0, 5.0, 7.0, 8.0, 11.0])
    monkeypatch.setattr(serializer.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(serializer, "_TIMING_SECONDS", 10.0)
    assert serializer._best_time_us(lambda: None) == 2_000_000
    assert list(ticks) == []


def test_sizes_are_compared_with_plain_json() -> None:
    """A ratio is the size divided by that of JSON without compression."""
    found = {(one.format, one.codec): one for one in MessageSerializer().stats(["ü" * 100])}
    assert found["json", "none"].size == 604
    assert found["msgpack", "none"].size == 203
    assert found["msgpack", "none"].ratio == 203 / 604
    assert found["json", "zlib"].size < 50
    assert not math.isinf(found["json", "none"].encode_us)
    assert MIB == 1_048_576
