"""The packer: a body in its format, packed when that pays, within the caps of an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import MAX_DEPTH
from waooaw_celery.wire.caps import Caps, check_shape, header_bytes
from waooaw_celery.wire.codecs import AUTO, NONE, Codec, find_codec
from waooaw_celery.wire.formats import Format, encode, find_format

#: What is packed automatically is packed with this one, which every program that uses Kombu can unpack.
AUTOMATIC_CODEC = "zlib"
#: Levels of Celery's own, around the payload of a message.
ENVELOPE_BYTES = 3
#: A packed body must not be larger than this part of the body.
MIN_SAVING = 0.9


class PackedBody(NamedTuple):
    """A body as it travels.

    Attributes:
        body: text or bytes.
        content_type: its format.
        content_encoding: ``utf-8`` or ``binary``.
        codec: content type of the codec that packed it, for the header ``compression``; None: it is not packed.
    """

    body: str | bytes
    content_type: str
    content_encoding: str
    codec: str | None


class Packer:
    """Writes bodies for one application.

    Args:
        caps: what is accepted.
        compress_above: bodies of more bytes than this are packed when that makes them a tenth smaller.
    """

    def __init__(self, caps: Caps, compress_above: int = 1024) -> None:
        self.caps, self.compress_above = caps, compress_above
        self._deep_enough = caps.max_depth >= MAX_DEPTH + ENVELOPE_BYTES

    def pack(
        self, body: Any, serializer: str | None, compression: str | None, *, of_message: bool = False
    ) -> PackedBody:
        """Write a body.

        Args:
            body: a value.
            serializer: name of the format; None: JSON.
            compression: name of a codec, ``none``, or None or ``auto`` for this package's choice.
            of_message: whether it is around a message's payload, whose nesting was checked when that was made.

        Raises:
            EncodingFailed: the format cannot carry it, or it breaks a cap; the sentence says which.
            ConfigurationError: there is no such format or codec.
        """
        format_ = find_format(serializer or "json")
        codec = find_codec_choice(compression)
        written = self._write(body, format_, of_message)
        if codec is not None:
            packed = self.compress(written.encode() if isinstance(written, str) else written, codec)
            if packed is not None:
                self._check_body(packed)
                return PackedBody(packed, format_.content_type, format_.content_encoding, codec.content_type)
        self._check_body(written)
        return PackedBody(written, format_.content_type, format_.content_encoding, None)

    def compress(self, body: bytes, codec: Codec) -> bytes | None:
        """Return a body packed, or None when that does not pay."""
        if codec.always:
            return codec.compress(body)
        if len(body) <= self.compress_above:
            return None
        packed = codec.compress(body)
        return packed if len(packed) <= MIN_SAVING * len(body) else None

    def check(self, body: Any, serializer: str | None, compression: str | None) -> None:
        """Check that the body of a message can be sent, before anything is done about it.

        Raises:
            EncodingFailed, ConfigurationError: as ``pack``.
        """
        find_codec_choice(compression)
        if len(self._write(body, find_format(serializer or "json"), True)) > self.caps.max_body_bytes:
            self.pack(body, serializer, compression, of_message=True)

    def check_headers(self, headers: Mapping[str, Any]) -> None:
        """Check how large headers are.

        Raises:
            EncodingFailed: larger than what is accepted.
        """
        size = header_bytes(headers)
        if size > self.caps.max_header_bytes:
            raise EncodingFailed(
                f"the headers have about {size} bytes, more than waooaw_max_header_bytes = "
                f"{self.caps.max_header_bytes}: put what they carry into the payload"
            )

    def _write(self, body: Any, format_: Format, of_message: bool) -> str | bytes:
        written = encode(body, format_)
        if len(written) > self.caps.max_expanded_bytes:
            raise EncodingFailed(
                _too_large(len(written), "waooaw_max_expanded_bytes", self.caps.max_expanded_bytes)
            )
        # A value takes a byte at least: most bodies need no look.
        deep = not (of_message and self._deep_enough) and format_.containers(written) > self.caps.max_depth
        if deep or len(written) > self.caps.max_nodes:
            try:
                check_shape(body, self.caps)
            except DecodingFailed as error:
                raise EncodingFailed(f"{error}: who receives it would refuse it") from error
        return written

    def _check_body(self, body: str | bytes) -> None:
        if len(body) > self.caps.max_body_bytes:
            raise EncodingFailed(_too_large(len(body), "waooaw_max_body_bytes", self.caps.max_body_bytes))


def find_codec_choice(compression: str | None) -> Codec | None:
    """Return the codec that a choice stands for, or None for no codec.

    Args:
        compression: name of a codec, ``none``, or None or ``auto`` for this package's choice.

    Raises:
        ConfigurationError: there is no such codec.
    """
    if compression == NONE:
        return None
    return find_codec(AUTOMATIC_CODEC if compression in (None, AUTO) else str(compression))


def _too_large(size: int, setting: str, cap: int) -> str:
    return (
        f"it has {size} bytes, more than {setting} = {cap}: send where it can be fetched, in several messages, "
        "or raise the setting at both ends"
    )
