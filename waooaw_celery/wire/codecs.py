"""The codecs: what packs a body and unpacks it within bounds, one registry for ours, Kombu's and yours."""

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
from waooaw_celery.wire.caps import Caps, active_caps

#: The choice of no codec.
NONE = "none"
#: The choice of a codec by the package.
AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One way to pack a body.

    Attributes:
        name: by which it is chosen.
        content_type: what the header ``compression`` calls it.
        compress: packs a body.
        expand: unpacks a body to at most so many bytes, and raises ``DecodingFailed`` when there are more.
        aliases: other names of it.
        always: whether it packs small bodies too, and such as do not become smaller: encryption.
    """

    name: str
    content_type: str
    compress: Callable[[bytes], bytes]
    expand: Callable[[bytes, int], bytes]
    aliases: tuple[str, ...] = ()
    always: bool = False


_codecs: dict[str, Codec] = {}


def register_codec(codec: Codec) -> None:
    """Make a codec known here and to Kombu, in place of one of the same content type.

    Args:
        codec: the codec; its ``expand`` must stop at the bound that it is given.
    """
    _know(codec)
    _tell_kombu(codec)


def install_codecs() -> None:
    """Have Kombu pack and unpack with this package's codecs, within bounds, in this process."""
    for codec in dict.fromkeys(_codecs.values()):
        _tell_kombu(codec)


def _know(codec: Codec) -> None:
    _codecs.update(dict.fromkeys((codec.name, codec.content_type, *codec.aliases), codec))


def _tell_kombu(codec: Codec) -> None:
    compression.register(
        codec.compress, partial(_bounded, codec), codec.content_type, aliases=[codec.name, *codec.aliases]
    )


def find_codec(name: str) -> Codec:
    """Return the codec of a name, an alias or a content type.

    Raises:
        ConfigurationError: there is none; the sentence gives those that there are, or what to install.
    """
    if name in _codecs:
        return _codecs[name]
    extra = {"zstd": "zstd", "aes-gcm": "crypto"}.get(name)
    hint = f"install waooaw-celery[{extra}]" if extra == "zstd" else "choose one of " + ", ".join(codec_names())
    if extra == "crypto":
        hint = "it needs waooaw-celery[crypto] and the setting waooaw_encryption_keys"
    raise ConfigurationError(f"there is no codec {name!r:.80}: {hint}")


def has_codec(name: str) -> bool:
    """Whether there is a codec of this name."""
    return name in _codecs


def codec_names() -> list[str]:
    """Return the names of the codecs."""
    return sorted({codec.name for codec in _codecs.values()})


def expand(body: bytes | None, codec: str, caps: Caps) -> bytes:
    """Unpack a body, and stop as soon as it is too large.

    Args:
        body: what was packed.
        codec: what the header ``compression`` calls its codec.
        caps: how large it may become, and which codecs are accepted.

    Raises:
        DecodingFailed: the codec is not accepted, what it packed is damaged or ends too early, or is larger.
    """
    found = _codecs.get(codec)
    if found is None or (caps.codecs is not None and found.content_type not in caps.codecs):
        raise DecodingFailed(f"it is packed with {codec!r:.80}, which is not accepted")
    try:
        return found.expand(body or b"", caps.max_expanded_bytes)
    except DecodingFailed:
        raise
    except Exception as error:  # a codec of the user's may raise anything
        raise DecodingFailed(f"what {codec} packed is damaged: {error!r:.200}") from error


def _bounded(codec: Codec, body: bytes) -> bytes:
    """Unpack what Kombu hands over."""
    return expand(body, codec.content_type, Caps(max_expanded_bytes=active_caps.caps.max_expanded_bytes))


def expand_with(opened: Callable[[], Any], codec: str, body: bytes, limit: int) -> bytes:
    """Unpack a body with a decompressor of the standard library's kind.

    Args:
        opened: makes one; it has ``decompress(data, max_length)`` and ``eof``.
        codec: its name, for an error's sentence.
        body: what was packed.
        limit: most bytes to unpack.

    Raises:
        DecodingFailed: it is damaged, ends too early or is larger.
    """
    try:
        decompressor = opened()
        expanded = decompressor.decompress(body, limit + 1)
        whole: bool = decompressor.eof
    except _ERRORS as error:
        raise DecodingFailed(f"what {codec} packed is damaged: {error}") from error
    if len(expanded) > limit:
        raise DecodingFailed(f"it unpacks to more than {limit} bytes")
    if not whole:
        raise DecodingFailed(f"what {codec} packed ends too early")
    return bytes(expanded)


class _Zlib:
    """zlib's decompressor, with the interface of the others.

    Args:
        wbits: 15: zlib's own format; 31: gzip's; 47: either.
    """

    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits=wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(data, max_length)

    @property
    def eof(self) -> bool:
        return self._object.eof


def _zstd() -> Any:
    """Return the standard library's module for zstd or the one that stands in for it, as Kombu does, or None."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return None
    return zstd


_ZSTD = _zstd()
_ERRORS: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)
if _ZSTD is not None:
    _ERRORS += (_ZSTD.ZstdError,)


def _register(name: str, content_type: str, compress: Any, opened: Any, *aliases: str) -> None:
    _know(
        Codec(
            name=name,
            content_type=content_type,
            compress=compress,
            expand=partial(expand_with, opened, content_type),
            aliases=aliases,
        )
    )


# Kombu's gzip is zlib's format; who reads it gets on with real gzip, too.
_register("zlib", "application/x-gzip", zlib.compress, partial(_Zlib, 47), "gzip")
_register("real-gzip", "application/gzip", partial(gzip.compress, mtime=0), partial(_Zlib, 31))
_register("bzip2", "application/x-bz2", bz2.compress, bz2.BZ2Decompressor, "application/x-bzip2", "bzip")
_register("lzma", "application/x-lzma", lzma.compress, lzma.LZMADecompressor, "xz")
if _ZSTD is not None:
    _register("zstd", "application/zstd", _ZSTD.compress, _ZSTD.ZstdDecompressor, "zstandard")
