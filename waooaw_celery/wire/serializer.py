"""The serializer: values and messages as bytes and back, in every format and codec there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import SerializerNotInstalled
from kombu.serialization import registry  # type: ignore[attr-defined]  # its stubs are old

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import NONE, Codec, codec_names, expand, find_codec, register_codec
from waooaw_celery.wire.formats import Format, decode, encode, find_format, format_names, register_format
from waooaw_celery.wire.packer import Packer

#: How what was serialized begins: what wrote it, so that it can be read without being told.
_MARK = b"\0waooaw\0"
#: Seconds for which one format or codec is measured.
_MEASURED = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatStats:
    """What a payload becomes in one format with one codec.

    Attributes:
        format: name of the format.
        codec: name of the codec, or ``none``.
        size: bytes.
        ratio: size as a part of the JSON that is not packed.
        encode_us: microseconds to write it, and pack it.
        decode_us: microseconds to unpack it, and read it.
    """

    format: str
    codec: str
    size: int
    ratio: float
    encode_us: float
    decode_us: float


class MessageSerializer:
    """Writes values and messages as bytes and reads them back, as they travel.

    What it writes says in its first bytes what wrote it. On the wire, Celery's headers say that: messages are
    serialized by themselves when they are sent.

    Args:
        format: name of the format when a call does not say: ``json``, ``msgpack``, ``protobuf``, or one of yours.
        compression: name of the codec then; None or ``auto``: packed above the threshold when that makes it
            a tenth smaller; ``none``: never.
        compress_above: the threshold in bytes.
        caps: what is accepted.

    Example:
        >>> serializer = MessageSerializer()
        >>> serializer.deserialize(serializer.serialize({"n": 1}, format="msgpack"))
        {'n': 1}
    """

    def __init__(
        self,
        format: str = "json",  # noqa: A002 - the word of its users
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
        """Write a value.

        Args:
            value: anything that can be a payload.
            format: name of the format; None: the serializer's own.
            compression: name of the codec, ``auto`` or ``none``; None: the serializer's own.

        Raises:
            InvalidMessage: it is no such value, or is larger, deeper or has more parts than is accepted.
            ConfigurationError: there is no such format or codec.
        """
        copied = json_copy(value, "the value")
        packed = self._packer.pack(copied, format or self.format, compression or self.compression)
        body = packed.body.encode() if isinstance(packed.body, str) else packed.body
        named = (packed.content_type, packed.codec or "")
        return b"".join([_MARK, *(name.encode() + b"\0" for name in named), body])

    def deserialize(self, data: bytes) -> Any:
        """Read a value that ``serialize`` wrote, or plain JSON.

        Raises:
            DecodingFailed: it cannot be read, or is larger, deeper or has more parts than is accepted.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise DecodingFailed(f"what was serialized is bytes, not a {type(data).__name__}")
        body, content_type, codec = bytes(data), "application/json", b""
        if body.startswith(_MARK):
            names = body[len(_MARK) :].split(b"\0", 2)
            if len(names) != 3:
                raise DecodingFailed("it ends too early")
            content_type, codec, body = names[0].decode("ascii", "replace"), names[1], names[2]
        if content_type not in registry.type_to_name:
            raise DecodingFailed(f"its content type is {content_type!r:.80}, which nobody registered")
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
        """Write the payload of a message as the message says, or else as ``serialize`` does."""
        return self.serialize(message.payload, format or message.serializer, compression or message.compression)

    def deserialize_message_payload(self, data: bytes) -> JSON:
        """Read the payload of a message.

        Raises:
            DecodingFailed: as ``deserialize``.
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
        """Make a format known, here and to Kombu: ``serializer=name`` chooses it then, and workers read it.

        (A package that is installed brings its formats by the entry points ``kombu.serializers``.)

        Args:
            name: by which it is chosen.
            encode: writes a value.
            decode: reads it; what it makes is checked against the caps afterwards.
            content_type: what headers call it; for Celery's workers a name in ``accept_content`` too.
            content_encoding: ``utf-8`` when ``encode`` returns text.
        """
        register_format(
            Format(
                name=name,
                content_type=content_type,
                content_encoding=content_encoding,
                encode=encode,
                decode=lambda body, caps: decode(body),
                containers=_any_number,
            )
        )

    def register_codec(
        self,
        name: str,
        compress: Callable[[bytes], bytes],
        expand: Callable[[bytes, int], bytes],
        content_type: str,
    ) -> None:
        """Make a codec known, here and to Kombu: ``compression=name`` chooses it then, and workers read it.

        Args:
            name: by which it is chosen.
            compress: packs bytes.
            expand: unpacks bytes to at most so many, and raises ``DecodingFailed`` when there are more.
            content_type: what the header ``compression`` calls it.
        """
        register_codec(Codec(name=name, content_type=content_type, compress=compress, expand=expand))

    def stats(self, value: Any) -> list[FormatStats]:
        """Compare all formats and codecs on a value: each format as it is and packed with each codec.

        Raises:
            InvalidMessage: it is no value that can travel.
        """
        copied = json_copy(value, "the value")
        plain = len(find_format("json").encode(copied))
        found = []
        for name in format_names():
            try:
                format_ = find_format(name)
                format_.encode(copied)
            except (SerializerNotInstalled, ValueError, TypeError):  # not installed, or not for this
                continue
            found += [_measured(copied, format_, codec, plain, self._packer.caps) for codec in _codecs()]
        return found


def _codecs() -> list[Codec | None]:
    return [None, *(find_codec(name) for name in codec_names())]


def _measured(value: Any, format_: Format, codec: Codec | None, plain: int, caps: Caps) -> FormatStats:
    def write() -> bytes:
        written = encode(value, format_)
        raw = written.encode() if isinstance(written, str) else written
        return raw if codec is None else codec.compress(raw)

    packed = write()

    def read() -> Any:
        body = packed if codec is None else expand(packed, codec.content_type, caps)
        return decode(body, format_.content_type, None, caps)

    return FormatStats(
        format=format_.name,
        codec=NONE if codec is None else codec.name,
        size=len(packed),
        ratio=len(packed) / plain,
        encode_us=_microseconds(write),
        decode_us=_microseconds(read),
    )


def _microseconds(work: Callable[[], object]) -> float:
    """Return how long a piece of work takes: the best of some turns, since others use the computer too."""
    ends_at = time.perf_counter() + _MEASURED
    best = float("inf")
    while True:
        began = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > ends_at:
            return best * 1e6


def _any_number(written: object) -> int:
    """Say nothing of how many containers there are: the value is looked at."""
    return 1 << 62
