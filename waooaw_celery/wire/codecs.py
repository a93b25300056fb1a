"""The codecs: compress a body and decompress it within bounds. One registry holds this package's and yours.

Kombu keeps its own codecs: other applications of the process decompress as without this package.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu import compression

from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.wire.caps import Caps

#: Choice of a codec: do not compress.
NONE = "none"
#: Choice of a codec: let the package choose.
AUTO = "auto"
#: Bodies of more bytes than this are large: a fast compression is worth more than a small result.
LARGE_BYTES = 256 * 1024
#: zlib's level for large bodies. It takes a third of the time of the default, and saves nearly as much.
_LARGE_LEVEL = 4
#: A number of bytes that no body has.
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A compression or encryption of bodies.

    Attributes:
        name: The name by which you choose it.
        content_type: Its value in the header ``compression``.
        compress: Compresses a body.
        decompress: Decompresses a body to at most the given number of bytes, and raises ``DecodingFailed`` if
            there are more.
        aliases: Other names.
        always: Apply it to every body, however small and even if the result is larger; for encryption.
    """

    name: str
    content_type: str
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]
    aliases: tuple[str, ...] = ()
    always: bool = False


_codecs: dict[str, Codec] = {}


def add_codec(codec: Codec) -> None:
    """Add a codec for the applications of this package. It replaces one with the same content type.

    Args:
        codec: The codec. Its ``decompress`` must stop at the given number of bytes.
    """
    _codecs.update(dict.fromkeys((codec.name, codec.content_type, *codec.aliases), codec))


def register_codec(codec: Codec) -> None:
    """Add a codec here and register it with Kombu, for every application of this process.

    Kombu then decompresses it without a limit.

    Args:
        codec: The codec. Its ``decompress`` must stop at the given number of bytes.
    """
    add_codec(codec)
    compression.register(
        codec.compress,
        lambda body: codec.decompress(body, _NO_LIMIT),
        codec.content_type,
        aliases=[codec.name, *codec.aliases],
    )


def find_codec(name: str) -> Codec:
    """Return the codec with this name, alias or content type.

    Raises:
        ConfigurationError: There is none. The error lists the codecs, or what to install.
    """
    if name in _codecs:
        return _codecs[name]
    hint = {
        "zstd": "install waooaw-celery[zstd]",
        "aes-gcm": "install waooaw-celery[crypto] and set waooaw_encryption_keys",
    }.get(name, "choose one of " + ", ".join(codec_names()))
    raise ConfigurationError(f"there is no codec {name!r:.80}: {hint}")


def has_codec(name: str) -> bool:
    """Whether a codec with this name exists."""
    return name in _codecs


def cannot_fail(codec: Codec) -> bool:
    """Whether a codec compresses every body. One that somebody else registered may raise anything."""
    return codec.compress is _compress_with_zlib


def codec_names() -> list[str]:
    """Return the names of the codecs, sorted."""
    return sorted({codec.name for codec in _codecs.values()})


def expand(body: bytes | None, codec: str, caps: Caps) -> bytes:
    """Decompress a body, and stop as soon as it is too large.

    Args:
        body: The compressed body.
        codec: Content type or name of the codec, as in the header ``compression``.
        caps: The accepted size and codecs.

    Raises:
        DecodingFailed: The codec is not accepted, or the data is damaged, incomplete or too large.
    """
    found = _codecs.get(codec)
    if found is None or (caps.codecs is not None and found.content_type not in caps.codecs):
        raise DecodingFailed(f"its compression is {codec!r:.80}, which is not accepted")
    try:
        return found.decompress(body or b"", caps.max_expanded_bytes)
    except DecodingFailed:
        raise
    except Exception as error:  # a registered codec may raise anything
        raise DecodingFailed(f"its {codec} data is damaged: {error!r:.200}") from error


def decompress_with(decompressor_class: Callable[[], Any], codec: str, body: bytes, max_bytes: int) -> bytes:
    """Decompress a body with a decompressor of the standard library.

    Args:
        decompressor_class: Makes an object with ``decompress(data, max_length)`` and ``eof``.
        codec: Name of the codec for error messages.
        body: The compressed body.
        max_bytes: Largest number of bytes to return.

    Raises:
        DecodingFailed: The data is damaged, incomplete or too large.
    """
    try:
        decompressor = decompressor_class()
        result = decompressor.decompress(body, max_bytes + 1)
        complete: bool = decompressor.eof
    except _ERRORS as error:
        raise DecodingFailed(f"its {codec} data is damaged: {error}") from error
    if len(result) > max_bytes:
        raise DecodingFailed(f"it decompresses to more than {max_bytes} bytes")
    if not complete:
        raise DecodingFailed(f"its {codec} data is truncated")
    return bytes(result)


class _ZlibDecompressor:
    """zlib's decompressor, with the interface of the others.

    Args:
        wbits: 15: zlib's format; 31: gzip's; 47: either.
    """

    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits=wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(data, max_length)

    @property
    def eof(self) -> bool:
        return self._object.eof


def _import_zstd() -> Any:
    """Return the standard library's zstd module or its backport, whichever Kombu uses; None: not installed."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return None
    return zstd


_ZSTD = _import_zstd()
_ERRORS: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)
if _ZSTD is not None:
    _ERRORS += (_ZSTD.ZstdError,)


def _add_standard(name: str, content_type: str, compress: Any, decompressor_class: Any, *aliases: str) -> None:
    add_codec(
        Codec(
            name=name,
            content_type=content_type,
            compress=compress,
            decompress=partial(decompress_with, decompressor_class, content_type),
            aliases=aliases,
        )
    )


def _compress_with_zlib(body: bytes) -> bytes:
    return zlib.compress(body, _LARGE_LEVEL if len(body) > LARGE_BYTES else zlib.Z_DEFAULT_COMPRESSION)


# What Kombu calls gzip is zlib's format. This codec reads real gzip under that name, too.
_add_standard("zlib", "application/x-gzip", _compress_with_zlib, partial(_ZlibDecompressor, 47), "gzip")
_add_standard("real-gzip", "application/gzip", partial(gzip.compress, mtime=0), partial(_ZlibDecompressor, 31))
_add_standard("bzip2", "application/x-bz2", bz2.compress, bz2.BZ2Decompressor, "application/x-bzip2", "bzip")
_add_standard("lzma", "application/x-lzma", lzma.compress, lzma.LZMADecompressor, "xz")
if _ZSTD is not None:
    _add_standard("zstd", "application/zstd", _ZSTD.compress, _ZSTD.ZstdDecompressor, "zstandard")
