"""The packer: encodes a body and compresses it when that saves space, within the caps of an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from waooaw_celery.errors import DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import MAX_DEPTH
from waooaw_celery.wire.caps import Caps, check_shape, header_bytes
from waooaw_celery.wire.codecs import AUTO, LARGE_BYTES, NONE, Codec, cannot_fail, find_codec
from waooaw_celery.wire.formats import JSON_FORMAT, Format, encode, find_format

#: The codec that the package chooses: every program that uses Kombu can decompress it.
AUTOMATIC_CODEC = "zlib"
#: Levels of nesting that Celery adds around the payload of a message.
ENVELOPE_DEPTH = 3
#: A compressed body is used only if it is at most this share of the plain one, as both travel.
MAX_COMPRESSED_RATIO = 0.9
#: The size of bytes, as a share of their size in base64.
BASE64_RATIO = 3 / 4
#: How many parts of a large body are compressed to find out whether it can be compressed, and their size in bytes.
SAMPLES, SAMPLE_BYTES = 8, 8 * 1024


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


class Encoding(NamedTuple):
    """How bodies are encoded.

    Attributes:
        format: Their format.
        codec: The codec; None: they are not compressed.
        most: The largest size of what travels, in bytes.
        may_fail: Whether the codec may raise: then bodies are compressed before anything is recorded.
    """

    format: Format
    codec: Codec | None
    most: int
    may_fail: bool


class EncodedBody:
    """A body that was encoded and checked. It is compressed when ``packed`` is first read.

    Args:
        text: The encoded body, text or bytes.
        encoding: How it is encoded.
        pack: Returns the body as it travels.
        payload: Where the payload of its message is in the text, if it is JSON.
    """

    __slots__ = ("_encoding", "_pack", "_packed", "_payload", "text")

    def __init__(
        self,
        text: str | bytes,
        encoding: Encoding,
        pack: Callable[[str | bytes, Encoding], PackedBody],
        payload: slice | None = None,
    ) -> None:
        self.text = text
        self._encoding, self._pack, self._payload = encoding, pack, payload
        self._packed: PackedBody | None = None

    @property
    def packed(self) -> PackedBody:
        """The body as it travels."""
        if self._packed is None:
            self._packed = self._pack(self.text, self._encoding)
        return self._packed

    @property
    def payload_text(self) -> str | None:
        """The payload of its message as JSON; None: it is not known where that is."""
        return self.text[self._payload] if isinstance(self.text, str) and self._payload is not None else None


class TaskOptions(NamedTuple):
    """The third part of a task's body: Celery's callbacks, or that there are none.

    Attributes:
        value: A mapping.
        text: The same as JSON.
    """

    value: Any
    text: str

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return the options of a mapping."""
        return cls(value, str(encode(value, JSON_FORMAT)))


class EncodedTask(tuple[Any, ...]):
    """A task's arguments, keyword arguments and options, as Celery publishes them, with the encoded body.

    The producer then encodes them no second time.

    Attributes:
        encoded: The body.
    """

    encoded: EncodedBody

    @classmethod
    def of(cls, body: tuple[Any, ...], encoded: EncodedBody) -> Self:
        """Return a body of Celery's with what it was encoded to."""
        task = cls(body)
        task.encoded = encoded
        return task


class Packer:
    """Encodes the bodies of one application.

    Args:
        caps: The limits.
        compress_above: Bodies of more bytes than this are compressed if that makes them at least a tenth smaller.
        bytes_become_base64: Whether bytes travel as base64, a third larger, and text as it is: on Redis.
    """

    def __init__(self, caps: Caps, compress_above: int = 1024, *, bytes_become_base64: bool = False) -> None:
        self.caps, self.compress_above = caps, compress_above
        self._max_text_ratio = MAX_COMPRESSED_RATIO * (BASE64_RATIO if bytes_become_base64 else 1)
        #: A body of no more characters exceeds no cap.
        self._small = min(caps.max_expanded_bytes, caps.max_body_bytes, caps.max_nodes)
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
        return self.encode(body, serializer, compression, of_message=of_message).packed

    def encode(
        self,
        body: Any,
        serializer: str | None,
        compression: str | None,
        *,
        of_message: bool = False,
        may_be_stored: bool = False,
    ) -> EncodedBody:
        """Encode and check a body; compress it when it is needed, which takes longest, if that cannot fail.

        The arguments and errors are those of ``pack``.

        Args:
            may_be_stored: Whether a body that is too large to travel is kept in a store: then only the limit of a
                decompressed body applies.
        """
        encoding = self.encoding(serializer, compression, may_be_stored=may_be_stored)
        return self._checked(encode(body, encoding.format), body, encoding, of_message)

    def encoding(
        self, serializer: str | None, compression: str | None, *, may_be_stored: bool = False
    ) -> Encoding:
        """Return how bodies are encoded. The arguments and errors are those of ``encode``."""
        codec = find_codec_choice(compression)
        most = self.caps.max_expanded_bytes if may_be_stored else self.caps.max_body_bytes
        may_fail = codec is not None and not cannot_fail(codec)
        return Encoding(find_format(serializer or "json"), codec, most, may_fail)

    def encode_task(
        self, args: tuple[Any, ...], kwargs: Any, options: TaskOptions, encoding: Encoding
    ) -> EncodedBody:
        """Encode the body of a message's task, as ``encode`` does. As JSON, only its payload is encoded.

        Args:
            args: The positional arguments: the payload alone, or nothing.
            kwargs: The keyword arguments: nothing, or the payload.
            options: Celery's options.
            encoding: How.

        Raises:
            EncodingFailed: As in ``pack``.
        """
        body = args, kwargs, options.value
        if encoding.format is not JSON_FORMAT:
            return self._checked(encode(body, encoding.format), body, encoding, True)
        payload = str(encode(args[0] if args else kwargs, JSON_FORMAT))
        start, end = ("[[", "], {}, ") if args else ("[[], ", ", ")
        place = slice(len(start), len(start) + len(payload))
        return self._checked(f"{start}{payload}{end}{options.text}]", body, encoding, True, place)

    def _checked(
        self, encoded: str | bytes, body: Any, encoding: Encoding, of_message: bool, payload: slice | None = None
    ) -> EncodedBody:
        """Return a body that was encoded, if it can travel.

        Raises:
            EncodingFailed: It exceeds a cap.
        """
        result = EncodedBody(encoded, encoding, self._pack, payload)
        is_small = len(encoded) <= self._small
        if not (is_small and of_message and self._allows_any_payload_depth):
            self._check(encoded, body, encoding.format, of_message)
        if encoding.may_fail or len(encoded) > self.caps.max_body_bytes:
            _ = result.packed
        return result

    def _pack(self, encoded: str | bytes, encoding: Encoding) -> PackedBody:
        format_, codec, most, _ = encoding
        if codec is not None and (codec.always or not self._is_short(encoded)):
            # A body that is too large may be sent if it is compressed at all.
            is_text = isinstance(encoded, str) and len(encoded) <= self.caps.max_body_bytes
            ratio = self._max_text_ratio if is_text else MAX_COMPRESSED_RATIO
            compressed = self.compress(encoded.encode() if isinstance(encoded, str) else encoded, codec, ratio)
            if compressed is not None:
                self._check_size(compressed, most)
                return PackedBody(compressed, format_.content_type, format_.content_encoding, codec.content_type)
        self._check_size(encoded, most)
        return PackedBody(encoded, format_.content_type, format_.content_encoding, None)

    def _is_short(self, encoded: str | bytes) -> bool:
        """Return whether a body is too short to be compressed, as far as its characters say that."""
        return len(encoded) <= self.compress_above and encoded.isascii()

    def compress(self, body: bytes, codec: Codec, max_ratio: float = MAX_COMPRESSED_RATIO) -> bytes | None:
        """Return the compressed body, or None if compressing it does not save enough.

        Args:
            body: The body.
            codec: The codec.
            max_ratio: The largest share of the body that the compressed one may have.
        """
        if codec.always:
            return codec.compress(body)
        if len(body) <= self.compress_above:
            return None
        is_large = LARGE_BYTES < len(body) <= self.caps.max_body_bytes
        if is_large and len(codec.compress(sample := _sample(body))) > max_ratio * len(sample):
            return None  # to find that out with the whole body would take a third of a second for 10 MB
        compressed = codec.compress(body)
        return compressed if len(compressed) <= max_ratio * len(body) else None

    def check(self, body: Any, serializer: str | None, compression: str | None) -> None:
        """Check that the body of a message can travel, before anything is recorded.

        Raises:
            EncodingFailed, ConfigurationError: As in ``pack``.
        """
        format_ = self.encoding(serializer, compression).format
        encoded = encode(body, format_)
        self._check(encoded, body, format_, True)
        if len(encoded) > self.caps.max_body_bytes:
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

    def _check(self, encoded: str | bytes, body: Any, format_: Format, of_message: bool) -> None:
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
                raise EncodingFailed(f"{error}: the receiver would refuse it") from error

    def _check_size(self, body: str | bytes, most: int) -> None:
        if len(body) > most:
            travels = most == self.caps.max_body_bytes
            setting = "waooaw_max_body_bytes" if travels else "waooaw_max_expanded_bytes"
            raise EncodingFailed(_too_large(len(body), setting, most))


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


def _sample(body: bytes) -> bytes:
    """Return parts of a large body, at equal distances."""
    step = len(body) // SAMPLES
    view = memoryview(body)
    return b"".join(view[start : start + SAMPLE_BYTES] for start in range(0, step * SAMPLES, step))


def _too_large(size: int, setting: str, cap: int) -> str:
    return (
        f"it has {size} bytes, more than {setting} = {cap}: send a reference to the data "
        "(waooaw_reference_above), split it into several messages, or raise the setting for sender and receiver"
    )
