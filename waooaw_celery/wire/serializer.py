"""The message serializer: encodes and decodes values by hand, in every format and codec."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import SerializerNotInstalled

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import NONE, Codec, codec_names, expand, find_codec, register_codec
from waooaw_celery.wire.formats import (
    Format,
    decode,
    encode,
    find_format,
    format_names,
    is_known,
    register_format,
)
from waooaw_celery.wire.packer import Packer

#: The first bytes of serialized data; its format and codec follow.
_MAGIC = b"\0waooaw\0"
#: Seconds for which one format or codec is timed.
_TIMING_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatStats:
    """Size and speed of a payload in one format with one codec.

    Attributes:
        format: Name of the format.
        codec: Name of the codec, or ``none``.
        size: Bytes.
        ratio: Size divided by that of uncompressed JSON.
        encode_us: Microseconds to encode and compress.
        decode_us: Microseconds to decompress and decode.
    """

    format: str
    codec: str
    size: int
    ratio: float
    encode_us: float
    decode_us: float


class MessageSerializer:
    """Encodes values as bytes and decodes them, with the formats and codecs of messages.

    You need it only for data that you store or send yourself: the publisher encodes messages. The first bytes of
    the data name its format and codec; on the wire, Celery's headers do.

    Args:
        format: Name of the default format: ``json``, ``msgpack``, ``protobuf``, or one that you registered.
        compression: Name of the default codec. ``auto`` or None: compress data above the threshold if that makes
            it at least a tenth smaller. ``none``: never compress.
        compress_above: The threshold in bytes.
        caps: The limits; None: the defaults.

    Example:
        >>> serializer = MessageSerializer()
        >>> serializer.deserialize(serializer.serialize({"n": 1}, format="msgpack"))
        {'n': 1}
    """

    def __init__(
        self,
        format: str = "json",  # noqa: A002 - the name that users expect
        compression: str | None = None,
        *,
        compress_above: int = 1024,
        caps: Caps | None = None,
    ) -> None:
        self.format, self.compression = format, compression
        self._packer = Packer(caps or Caps(), compress_above)

    def serialize(
        self,
        value: Any,
        format: str | None = None,  # noqa: A002
        compression: str | None = None,
    ) -> bytes:
        """Encode a value.

        Args:
            value: Any value that a payload can have.
            format: Name of the format; None: the default of this serializer.
            compression: Name of the codec, ``auto`` or ``none``; None: the default of this serializer.

        Raises:
            InvalidMessage: The value cannot be a payload, or exceeds a cap.
            ConfigurationError: There is no such format or codec.
        """
        copied = json_copy(value, "the value")
        packed = self._packer.pack(copied, format or self.format, compression or self.compression)
        body = packed.body.encode() if isinstance(packed.body, str) else packed.body
        names = (packed.content_type, packed.codec or "")
        return b"".join([_MAGIC, *(name.encode() + b"\0" for name in names), body])

    def deserialize(self, data: bytes) -> Any:
        """Decode data from ``serialize``, or plain JSON.

        Raises:
            DecodingFailed: The data is invalid, or exceeds a cap.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise DecodingFailed(f"serialized data must be bytes, not {type(data).__name__}")
        body, content_type, codec = bytes(data), "application/json", b""
        if body.startswith(_MAGIC):
            names = body[len(_MAGIC) :].split(b"\0", 2)
            if len(names) != 3:
                raise DecodingFailed("it is truncated")
            content_type, codec, body = names[0].decode("ascii", "replace"), names[1], names[2]
        if not is_known(content_type):
            raise DecodingFailed(f"its content type is {content_type!r:.80}, which is not registered")
        caps = self._packer.caps
        if codec:
            body = expand(body, codec.decode("ascii", "replace"), caps)
        return decode(body, content_type, None, caps)

    def serialize_message_payload(
        self,
        message: Message,
        format: str | None = None,  # noqa: A002
        compression: str | None = None,
    ) -> bytes:
        """Encode the payload of a message. Without arguments, the message's own format and codec apply."""
        return self.serialize(message.payload, format or message.serializer, compression or message.compression)

    def deserialize_message_payload(self, data: bytes) -> JSON:
        """Decode the payload of a message.

        Raises:
            DecodingFailed: As in ``deserialize``.
        """
        return self.deserialize(data)

    def register(
        self,
        name: str,
        encode: Callable[[Any], str | bytes],
        decode: Callable[[bytes], Any],
        content_type: str,
        content_encoding: str = "binary",
    ) -> None:
        """Register a format here and with Kombu. Messages then choose it with ``serializer=name``.

        Call it before the first application of the process is made. Installed packages register formats with the
        entry point ``kombu.serializers`` instead.

        Args:
            name: The name by which you choose it. Add it to ``accept_content`` of the workers.
            encode: Encodes a value.
            decode: Decodes a body. The result is then checked against the caps.
            content_type: Its value in the header ``content_type``.
            content_encoding: ``utf-8`` if ``encode`` returns text.
        """
        register_format(
            Format(
                name=name,
                content_type=content_type,
                content_encoding=content_encoding,
                encode=encode,
                decode=lambda body, caps: decode(body),
                count_containers=_unbounded,
            )
        )

    def register_codec(
        self,
        name: str,
        compress: Callable[[bytes], bytes],
        decompress: Callable[[bytes, int], bytes],
        content_type: str,
    ) -> None:
        """Register a codec here and with Kombu. Messages then choose it with ``compression=name``.

        Args:
            name: The name by which you choose it. Add it to ``waooaw_accept_codecs`` of the workers.
            compress: Compresses bytes.
            decompress: Decompresses to at most the given number of bytes, and raises ``DecodingFailed`` if there
                are more.
            content_type: Its value in the header ``compression``.
        """
        register_codec(Codec(name=name, content_type=content_type, compress=compress, decompress=decompress))

    def stats(self, value: Any) -> list[FormatStats]:
        """Measure a value in every format, uncompressed and with every codec.

        Raises:
            InvalidMessage: The value cannot be a payload.
        """
        copied = json_copy(value, "the value")
        json_size = len(find_format("json").encode(copied))
        stats = []
        for name in format_names():
            try:
                format_ = find_format(name)
                format_.encode(copied)
            except (SerializerNotInstalled, ValueError, TypeError):  # not installed, or not for this value
                continue
            stats += [_measure(copied, format_, codec, json_size, self._packer.caps) for codec in _codecs()]
        return stats


def _codecs() -> list[Codec | None]:
    return [None, *(find_codec(name) for name in codec_names())]


def _measure(value: Any, format_: Format, codec: Codec | None, json_size: int, caps: Caps) -> FormatStats:
    def write() -> bytes:
        encoded = encode(value, format_)
        raw = encoded.encode() if isinstance(encoded, str) else encoded
        return raw if codec is None else codec.compress(raw)

    data = write()

    def read() -> Any:
        body = data if codec is None else expand(data, codec.content_type, caps)
        return decode(body, format_.content_type, None, caps)

    return FormatStats(
        format=format_.name,
        codec=NONE if codec is None else codec.name,
        size=len(data),
        ratio=len(data) / json_size,
        encode_us=_best_time_us(write),
        decode_us=_best_time_us(read),
    )


def _best_time_us(work: Callable[[], object]) -> float:
    """Return the shortest of several run times, which other processes disturb least."""
    ends_at = time.perf_counter() + _TIMING_SECONDS
    best = float("inf")
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > ends_at:
            return best * 1e6


def _unbounded(encoded: object) -> int:
    """Give no useful bound of the number of containers, so that the decoded value is checked."""
    return 1 << 62
