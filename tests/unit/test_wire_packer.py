"""The packer and the producer: what is compressed, and what is not sent."""

from __future__ import annotations

import random
import zlib
from base64 import b64encode
from itertools import product
from typing import Any

import pytest
from kombu import serialization
from wire_values import CODECS, FORMATS, nested_list

from waooaw_celery.errors import ConfigurationError, EncodingFailed
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.wire import codecs
from waooaw_celery.wire.caps import (
    Caps,
)
from waooaw_celery.wire.codecs import LARGE_BYTES, Codec, add_codec, find_codec
from waooaw_celery.wire.packer import SAMPLE_BYTES, SAMPLES, Packer, find_codec_choice
from waooaw_celery.wire.producer import PackingProducer, producer_class


@pytest.mark.parametrize(
    ("value", "name", "reason"),
    [
        (float("nan"), "json", "cannot be encoded as json"),
        ({1, 2}, "msgpack", "cannot be encoded as msgpack"),
        (object(), "protobuf", "cannot be encoded as protobuf"),
        ("\ud800", "msgpack", "cannot be encoded as msgpack.*surrogates"),
        ("\ud800", "protobuf", "cannot be encoded as protobuf"),
        ([[[]]], "json", "nested deeper than 2 levels"),
        (list(range(50)), "msgpack", "more than 40 values"),
        ("x" * 200, "json", r"202 bytes, more than waooaw_max_expanded_bytes = 150"),
    ],
)
def test_a_body_that_a_receiver_would_refuse_is_not_sent(value: Any, name: str, reason: str) -> None:
    """The error names the reason, before anything is published."""
    packer = Packer(Caps(max_depth=2, max_nodes=40, max_expanded_bytes=150))
    for refuse in (packer.pack, packer.check):
        with pytest.raises(EncodingFailed, match=reason):
            refuse(value, name, None)


def test_a_compressed_body_may_exceed_max_body_bytes_before_compression() -> None:
    """A body is sent if its compressed size is within the cap; uncompressed it is refused."""
    packer = Packer(Caps(max_body_bytes=2000))
    packer.check("x" * 10_000, "json", None)
    assert len(packer.pack("x" * 10_000, "json", None).body) < 100
    with pytest.raises(EncodingFailed, match="more than waooaw_max_body_bytes = 2000"):
        packer.check("x" * 10_000, "json", "none")


def test_a_body_is_compressed_only_if_that_saves_space() -> None:
    """It must be larger than the threshold and become at least a tenth smaller."""

    packer = Packer(Caps(), compress_above=1024)
    assert packer.pack("x" * 1022, "json", None).codec is None
    assert packer.pack("x" * 1023, "json", None).codec == "application/x-gzip"
    noise = random.Random(1).randbytes(3000)  # noqa: S311 - data to compress, not a secret
    assert packer.pack(noise, "msgpack", "zstd").codec is None
    assert packer.pack("x" * 5000, "json", "none").codec is None


@pytest.mark.parametrize(("name", "codec"), list(product(FORMATS, CODECS)))
def test_a_message_chooses_its_format_and_codec(name: str, codec: str) -> None:
    """The packed body has the content types of the chosen format and codec."""
    packed = Packer(Caps()).pack("again and " * 500, name, codec)
    assert serialization.registry.type_to_name[packed.content_type] == name
    assert packed.codec == (None if codec == "none" else find_codec(codec).content_type)


@pytest.mark.parametrize(("serializer", "codec"), [("jsn", None), ("json", "gzap"), ("pickle5", "none")])
def test_an_unknown_choice_is_refused(serializer: str, codec: str | None) -> None:
    """The error lists the names to choose from."""
    with pytest.raises(ConfigurationError, match="choose one of"):
        Packer(Caps()).check("x", serializer, codec)


def test_a_body_is_compressed_if_it_becomes_a_tenth_smaller() -> None:
    """The threshold and the saving are exact."""

    def shrinking_to(size: int) -> Codec:
        return Codec(
            name="x", content_type="x", compress=lambda body: b"c" * size, decompress=lambda body, _: body
        )

    packer = Packer(Caps(), compress_above=99)
    assert packer.compress(b"x" * 100, shrinking_to(90)) == b"c" * 90
    assert packer.compress(b"x" * 100, shrinking_to(91)) is None
    assert packer.compress(b"x" * 99, shrinking_to(1)) is None
    assert Packer(Caps()).compress(b"x" * 1024, shrinking_to(1)) is None
    assert Packer(Caps()).compress(b"x" * 1025, shrinking_to(1)) == b"c"
    always = Codec(
        name="x", content_type="x", compress=lambda body: body * 2, decompress=lambda *_: b"", always=True
    )
    assert packer.compress(b"x", always) == b"xx"


def test_a_large_body_is_compressed_only_if_its_parts_can_be() -> None:
    """Eight parts of 8 KiB decide: what they do not save, nobody tries with the whole body."""
    sizes: list[int] = []

    def compress(body: bytes) -> bytes:
        sizes.append(len(body))
        return zlib.compress(body)

    codec = Codec(name="x", content_type="x", compress=compress, decompress=lambda body, _: body)
    noise = random.Random(1).randbytes(LARGE_BYTES)  # noqa: S311 - data to compress, not a secret
    assert Packer(Caps()).compress(noise + b"x", codec) is None
    assert sizes == [SAMPLES * SAMPLE_BYTES]
    assert Packer(Caps()).compress(b"x" * LARGE_BYTES + b"x", codec) is not None
    assert sizes[1:] == [SAMPLES * SAMPLE_BYTES, LARGE_BYTES + 1]
    assert Packer(Caps()).compress(noise, codec) is None
    assert sizes[3:] == [LARGE_BYTES]


def test_a_large_text_at_the_end_of_noise_is_found() -> None:
    """The parts are from everywhere in the body."""
    noise = random.Random(1).randbytes(LARGE_BYTES)  # noqa: S311 - data to compress, not a secret
    assert Packer(Caps()).compress(noise + b"x" * LARGE_BYTES, find_codec("zlib")) is not None


def test_compressed_text_counts_as_base64_where_it_becomes_that() -> None:
    """Base64 of noise shrinks by a quarter, and grows by a third when bytes become base64: that saves nothing."""
    text = b64encode(random.Random(1).randbytes(3000)).decode()  # noqa: S311 - data to compress, not a secret
    on_redis = Packer(Caps(), bytes_become_base64=True)
    assert Packer(Caps()).pack(text, "json", None).codec is not None
    assert on_redis.pack(text, "json", None).codec is None
    assert on_redis.pack(text, "msgpack", None).codec is not None  # uncompressed, it would become base64 too
    assert on_redis.pack("x" * 3000, "json", None).codec is not None
    too_large = Packer(Caps(max_body_bytes=len(text) - 1), bytes_become_base64=True)
    assert too_large.pack(text, "json", None).codec is not None


def test_only_a_codec_that_cannot_fail_compresses_later() -> None:
    """What may raise does so before a message is recorded; zlib takes its time while the ledger writes."""

    def fail(body: bytes) -> bytes:
        raise PermissionError("no key")

    add_codec(
        Codec(name="failing", content_type="application/x-failing", compress=fail, decompress=lambda b, _: b)
    )
    try:
        with pytest.raises(PermissionError):
            Packer(Caps()).encode("x" * 2000, "json", "failing")
    finally:
        for name in ("failing", "application/x-failing"):
            del codecs._codecs[name]
    later = Packer(Caps()).encode("x" * 2000, "json", "zlib")
    assert later._packed is None
    assert later.packed is later.packed
    assert later.packed.codec == "application/x-gzip"


@pytest.mark.parametrize("compression", ["none", "zlib", None, "auto"])
def test_the_size_of_a_body_is_checked_exactly(compression: str | None) -> None:
    """Before compression against one cap, as it travels against the other."""
    body = "x" * 98
    assert len(Packer(Caps(max_body_bytes=100, max_expanded_bytes=100)).pack(body, None, compression).body) == 100
    with pytest.raises(
        EncodingFailed, match="100 bytes, more than waooaw_max_expanded_bytes = 99: send a reference"
    ):
        Packer(Caps(max_expanded_bytes=99)).pack(body, None, compression)
    with pytest.raises(EncodingFailed, match="it has 100 bytes, more than waooaw_max_body_bytes = 99"):
        Packer(Caps(max_body_bytes=99)).pack(body, None, compression)
    with pytest.raises(EncodingFailed, match=r"it has 2[0-9] bytes, more than waooaw_max_body_bytes = 9"):
        Packer(Caps(max_body_bytes=9), 0).pack("x" * 2000, None, "zlib")


def test_values_and_depth_are_checked_before_sending() -> None:
    """The receiver would refuse the body; a message's own depth is already checked if the cap allows for it."""
    Packer(Caps(max_nodes=10)).pack([1] * 9, None, None)
    with pytest.raises(EncodingFailed, match=r"^it contains more than 10 values: the receiver would refuse it$"):
        Packer(Caps(max_nodes=10)).pack([1] * 10, None, None)
    Packer(Caps(max_depth=5)).pack(nested_list(5), None, None)
    with pytest.raises(EncodingFailed, match=r"^it is nested deeper than 5 levels: the receiver would refuse it$"):
        Packer(Caps(max_depth=5)).pack(nested_list(6), None, None)
    with pytest.raises(EncodingFailed, match="deeper than 66"):
        Packer(Caps(max_depth=66)).pack(nested_list(67), None, None, of_message=True)
    Packer(Caps(max_depth=67)).pack(nested_list(68), None, None, of_message=True)
    with pytest.raises(EncodingFailed, match="deeper than 67"):
        Packer(Caps(max_depth=67)).pack(nested_list(68), None, None)


def test_check_compresses_only_a_body_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of the largest size needs no compression; a larger one must fit after it."""
    packer = Packer(Caps(max_body_bytes=100))
    packed = []
    monkeypatch.setattr(packer, "pack", lambda *arguments, **options: packed.append((arguments, options)))
    packer.check("x" * 98, None, None)
    assert packed == []
    packer.check("x" * 99, None, "zlib")
    assert packed == [(("x" * 99, None, "zlib"), {"of_message": True})]
    with pytest.raises(ConfigurationError):
        packer.check("x", None, "gzap")
    packer = Packer(Caps(max_depth=67))
    packer.check(nested_list(68), None, None)


def test_headers_may_have_exactly_the_largest_size() -> None:
    """The size is an estimate, and the error says so."""
    packer = Packer(Caps(max_header_bytes=12))
    packer.check_headers({"id": "abcd"})
    with pytest.raises(EncodingFailed, match="have about 13 bytes, more than waooaw_max_header_bytes = 12"):
        packer.check_headers({"id": "abcde"})


def test_a_codec_is_chosen_by_its_name() -> None:
    """None and ``auto`` are zlib, ``none`` is no codec."""
    assert find_codec_choice("none") is None
    assert find_codec_choice(None) is find_codec_choice("auto") is find_codec("zlib")
    assert find_codec_choice("bzip2") is find_codec("bzip2")


def test_the_producer_packs_tasks_and_nothing_else() -> None:
    """Without a header ``task``, or with a content type, Kombu prepares the body and chooses no codec itself."""
    packer = Packer(Caps(max_depth=67), compress_above=10)
    producer = producer_class(packer)(None)
    assert isinstance(producer, PackingProducer)
    headers: dict[str, Any] = {"task": "a.b"}
    body, content_type, encoding = producer._prepare(["x" * 100], None, None, None, None, headers)
    assert (content_type, encoding, headers["compression"]) == ("application/json", "utf-8", "application/x-gzip")
    assert zlib.decompress(body) == b'["' + b"x" * 100 + b'"]'
    headers = {"task": "a.b"}
    assert producer._prepare(["x"], "msgpack", None, None, None, headers)[1] == "application/x-msgpack"
    assert "compression" not in headers
    for content_type, headers in (("text/plain", {"task": "a.b"}), (None, {"id": "x"})):
        for compression in ("auto", "none", None):
            producer._prepare("y" * 100, None, content_type, "utf-8", compression, headers)
            assert "compression" not in headers
        producer._prepare("y" * 100, None, content_type, "utf-8", "gzip", headers)
        assert headers["compression"] == "application/x-gzip"
    with pytest.raises(EncodingFailed, match="deeper than 67"):
        producer._prepare(nested_list(68), None, None, None, None, {"task": "a.b"})
    producer._prepare(nested_list(68), None, None, None, None, {"task": "a.b", ENVELOPE_HEADER: {}})
    with pytest.raises(EncodingFailed, match="headers"):
        producer._prepare("x", None, None, None, None, {"task": "x" * 70_000})
