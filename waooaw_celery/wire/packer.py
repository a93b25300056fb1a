"""The packer: encodes a body and compresses it when that saves space, within the caps of an application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import MAX_DEPTH
from waooaw_celery.wire.caps import Caps, check_shape, header_bytes
from waooaw_celery.wire.codecs import AUTO, NONE, Codec, find_codec
from waooaw_celery.wire.formats import Format, encode, find_format

#: The codec that the package chooses: every program that uses Kombu can decompress it.
AUTOMATIC_CODEC = "zlib"
#: Levels of nesting that Celery adds around the payload of a message.
ENVELOPE_DEPTH = 3
#: A compressed body is used only if it is at most this share of the plain one.
MAX_COMPRESSED_RATIO = 0.9


class PackedBody(NamedTuple):
    """A body as it travels.

    Attributes:
        body: Text or bytes.
        content_type: Its format.
        content_encoding: ``utf-8`` or ``binary``.
        codec: Content type of the codec, for the header ``compression``; None: it is not compressed.
    """

    body: str | bytes
    content_type: str
    content_encoding: str
    codec: str | None


class Packer:
    """Encodes the bodies of one application.

    Args:
        caps: The limits.
        compress_above: Bodies of more bytes than this are compressed if that makes them at least a tenth smaller.
    """

    def __init__(self, caps: Caps, compress_above: int = 1024) -> None:
        self.caps, self.compress_above = caps, compress_above
        self._allows_any_payload_depth = caps.max_depth >= MAX_DEPTH + ENVELOPE_DEPTH

    def pack(
        self, body: Any, serializer: str | None, compression: str | None, *, of_message: bool = False
    ) -> PackedBody:
        """Encode a body.

        Args:
            body: A value.
            serializer: Name of the format; None: JSON.
            compression: Name of a codec, or ``none``; ``auto`` or None: the package chooses.
            of_message: Whether the body contains the payload of a ``Message``, whose depth is already checked.

        Raises:
            EncodingFailed: The format cannot encode the value, or the body exceeds a cap.
            ConfigurationError: There is no such format or codec.
        """
        format_ = find_format(serializer or "json")
        codec = find_codec_choice(compression)
        encoded = self._encode(body, format_, of_message)
        if codec is not None:
            compressed = self.compress(encoded.encode() if isinstance(encoded, str) else encoded, codec)
            if compressed is not None:
                self._check_size(compressed)
                return PackedBody(compressed, format_.content_type, format_.content_encoding, codec.content_type)
        self._check_size(encoded)
        return PackedBody(encoded, format_.content_type, format_.content_encoding, None)

    def compress(self, body: bytes, codec: Codec) -> bytes | None:
        """Return the compressed body, or None if compressing it does not save enough."""
        if codec.always:
            return codec.compress(body)
        if len(body) <= self.compress_above:
            return None
        compressed = codec.compress(body)
        return compressed if len(compressed) <= MAX_COMPRESSED_RATIO * len(body) else None

    def check(self, body: Any, serializer: str | None, compression: str | None) -> None:
        """Check that the body of a message can be sent, before anything is recorded.

        Raises:
            EncodingFailed, ConfigurationError: As in ``pack``.
        """
        find_codec_choice(compression)
        if len(self._encode(body, find_format(serializer or "json"), True)) > self.caps.max_body_bytes:
            self.pack(body, serializer, compression, of_message=True)

    def check_headers(self, headers: Mapping[str, Any]) -> None:
        """Check the size of headers.

        Raises:
            EncodingFailed: They are larger than ``max_header_bytes``.
        """
        size = header_bytes(headers)
        if size > self.caps.max_header_bytes:
            raise EncodingFailed(
                f"the headers have about {size} bytes, more than waooaw_max_header_bytes = "
                f"{self.caps.max_header_bytes}: move the data into the payload"
            )

    def _encode(self, body: Any, format_: Format, of_message: bool) -> str | bytes:
        encoded = encode(body, format_)
        if len(encoded) > self.caps.max_expanded_bytes:
            raise EncodingFailed(
                _too_large(len(encoded), "waooaw_max_expanded_bytes", self.caps.max_expanded_bytes)
            )
        # Every value takes at least one byte, so that most bodies need no check.
        may_be_too_deep = (
            not (of_message and self._allows_any_payload_depth)
            and format_.count_containers(encoded) > self.caps.max_depth
        )
        if may_be_too_deep or len(encoded) > self.caps.max_nodes:
            try:
                check_shape(body, self.caps)
            except DecodingFailed as error:
                raise EncodingFailed(f"{error}: its receiver would refuse it") from error
        return encoded

    def _check_size(self, body: str | bytes) -> None:
        if len(body) > self.caps.max_body_bytes:
            raise EncodingFailed(_too_large(len(body), "waooaw_max_body_bytes", self.caps.max_body_bytes))


def find_codec_choice(compression: str | None) -> Codec | None:
    """Return the codec that a choice means, or None for no codec.

    Args:
        compression: Name of a codec, or ``none``; ``auto`` or None: the package chooses.

    Raises:
        ConfigurationError: There is no such codec.
    """
    if compression == NONE:
        return None
    return find_codec(AUTOMATIC_CODEC if compression in (None, AUTO) else str(compression))


def _too_large(size: int, setting: str, cap: int) -> str:
    return (
        f"it has {size} bytes, more than {setting} = {cap}: send a reference to the data, split it into several "
        "messages, or raise the setting for sender and receiver"
    )
