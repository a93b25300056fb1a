"""The codecs: decompression within bounds."""

from __future__ import annotations

import gzip
import zlib

import pytest

from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.wire import codecs
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import (
    Codec,
    codec_names,
    decompress_with,
    expand,
    find_codec,
    has_codec,
)


def test_a_codec_that_is_not_accepted_is_not_used() -> None:
    """A codec outside ``codecs`` is refused, and so is an unknown one."""
    packed = zlib.compress(b"x")
    assert expand(packed, "gzip", Caps(codecs=("application/x-gzip",))) == b"x"
    for codec, caps in (("application/x-gzip", Caps(codecs=())), ("application/x-br", Caps())):
        with pytest.raises(DecodingFailed, match="not accepted"):
            expand(packed, codec, caps)


def test_a_decompressed_body_may_have_exactly_the_largest_size() -> None:
    """One byte more, a missing end, and damaged data are refused, each with its own error."""
    for name in codec_names():
        codec = find_codec(name)
        if codec.always or not codec.content_type.startswith("application/"):
            continue
        data = codec.compress(b"x" * 100)
        assert codec.decompress(data, 100) == b"x" * 100
        with pytest.raises(DecodingFailed, match=r"^it decompresses to more than 99 bytes$"):
            codec.decompress(data, 99)
        with pytest.raises(DecodingFailed, match=f"^its {codec.content_type} data (is truncated|is damaged)"):
            codec.decompress(data[:-5], 100)
        with pytest.raises(DecodingFailed, match=f"^its {codec.content_type} data is damaged"):
            codec.decompress(b"damaged" + data, 100)
    assert find_codec("real-gzip").compress(b"x") == gzip.compress(b"x", mtime=0)
    for name in ("zlib", "gzip"):
        assert find_codec(name).decompress(gzip.compress(b"x"), 1) == b"x"
        assert find_codec(name).decompress(zlib.compress(b"x"), 1) == b"x"
    with pytest.raises(DecodingFailed):
        find_codec("real-gzip").decompress(zlib.compress(b"x"), 1)


def test_a_decompressor_that_raises_or_stops_early_is_damage() -> None:
    """The error names the codec."""

    class Decompressor:
        eof = False

        def decompress(self, data: bytes, max_length: int) -> bytes:
            assert max_length == 11
            return data

    with pytest.raises(DecodingFailed, match=r"^its x data is truncated$"):
        decompress_with(Decompressor, "x", b"0123456789", 10)
    with pytest.raises(DecodingFailed, match=r"^it decompresses to more than 10 bytes$"):
        decompress_with(Decompressor, "x", b"0123456789a", 10)


def test_a_codec_that_raises_anything_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered codec may raise any exception; an empty body is passed on as bytes."""

    def fail(body: bytes, max_bytes: int) -> bytes:
        raise KeyError((body, max_bytes))

    monkeypatch.setitem(
        codecs._codecs, "x-fail", Codec(name="fail", content_type="x-fail", compress=bytes, decompress=fail)
    )
    with pytest.raises(DecodingFailed, match=r"its x-fail data is damaged: KeyError\(\(b'', 7\)\)"):
        expand(None, "x-fail", Caps(max_expanded_bytes=7))


def test_a_missing_codec_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """zstd and encryption are optional; other names are listed."""
    for name, hint in (
        ("zstd", r"there is no codec 'zstd': install waooaw-celery\[zstd\]"),
        ("aes-gcm", r"there is no codec 'aes-gcm': install waooaw-celery\[crypto\] and set"),
    ):
        monkeypatch.delitem(codecs._codecs, name, raising=False)
        assert not has_codec(name)
        with pytest.raises(ConfigurationError, match=hint):
            find_codec(name)
    with pytest.raises(ConfigurationError, match=r"there is no codec 'gzap': choose one of .*bzip2, lzma, .*zlib"):
        find_codec("gzap")
    assert find_codec("xz") is find_codec("application/x-lzma") is find_codec("lzma")
