"""The formats: encode values as JSON, MessagePack or Protobuf, and decode them within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu import serialization
from kombu.serialization import registry  # type: ignore[attr-defined]  # missing from its stubs

from waooaw_celery.errors import ConfigurationError, DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import mapping, tagged
from waooaw_celery.wire import messagepack
from waooaw_celery.wire.caps import Caps, active_caps, check_json_nodes, check_shape, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An encoding of values.

    Attributes:
        name: The name by which you choose it: Kombu's ``serializer``.
        content_type: Its value in the header ``content_type``.
        content_encoding: ``utf-8`` for text, ``binary`` for bytes.
        encode: Encodes a value. Any exception means that it cannot.
        decode: Decodes a body. Any exception means that it cannot, or that the body exceeds the caps.
        count_containers: Returns an upper bound of the number of lists and mappings in an encoded body. The body
            cannot be nested deeper than that.
    """

    name: str
    content_type: str
    content_encoding: str
    encode: Callable[[Any], str | bytes]
    decode: Callable[[bytes, Caps], Any]
    count_containers: Callable[[Any], int] = len


_formats: dict[str, Format] = {}


def register_format(format_: Format) -> None:
    """Register a format here and with Kombu. It replaces one with the same content type."""
    _add(format_)
    _register_with_kombu(format_)


def install_formats() -> None:
    """Make Kombu use this package's formats in this process.

    Each application calls it. The import does not: the ``celery`` command imports the package in processes that do
    not use it.
    """
    for format_ in (JSON_FORMAT, MSGPACK_FORMAT, PROTOBUF_FORMAT):
        if _formats[format_.content_type] is format_:
            _register_with_kombu(format_)


def _add(format_: Format) -> None:
    _formats.update(dict.fromkeys((format_.name, format_.content_type), format_))


def _register_with_kombu(format_: Format) -> None:
    registry.register(
        format_.name,
        format_.encode,
        partial(_decode_for_kombu, format_.content_type),
        content_type=format_.content_type,
        content_encoding=format_.content_encoding,
    )


def format_names() -> list[str]:
    """Return the names of the formats that decode within bounds, sorted."""
    return sorted({format_.name for format_ in _formats.values()})


def find_format(name: str) -> Format:
    """Return the format with this name or content type, from this registry or from Kombu's.

    Raises:
        ConfigurationError: There is none.
    """
    return _formats.get(name) or _kombu_format(name)


def encode(value: Any, format_: Format) -> str | bytes:
    """Encode a value.

    Raises:
        EncodingFailed: The format cannot encode it.
    """
    try:
        return format_.encode(value)
    except Exception as error:  # a registered encoder may raise anything
        raise EncodingFailed(f"it cannot be encoded as {format_.name}: {error!r:.200}") from error


def decode(body: bytes | str | memoryview, content_type: str, encoding: str | None, caps: Caps) -> Any:
    """Decode a body, within bounds.

    Args:
        body: The body after decompression.
        content_type: Its format.
        encoding: Its content encoding, for formats that only Kombu knows.
        caps: The limits.

    Raises:
        DecodingFailed: The format is not accepted, the body is invalid, or it exceeds a cap.
    """
    if caps.content_types is not None and content_type not in caps.content_types:
        raise DecodingFailed(f"its content type is {content_type!r:.80}, which is not accepted")
    raw = body.encode() if isinstance(body, str) else bytes(body)
    check_size(raw, caps)
    format_ = _formats.get(content_type)
    try:
        if format_ is None:
            value = serialization.loads(raw, content_type, encoding or "utf-8", accept=caps.content_types)
        else:
            value = format_.decode(raw, caps)
        if format_ is None or format_.count_containers(raw) > caps.max_depth:
            check_shape(value, caps)
    except DecodingFailed:
        raise
    except Exception as error:  # a tagged value or a registered decoder may raise anything
        raise DecodingFailed(f"its body cannot be decoded: {error!r:.200}") from error
    return value


def _decode_for_kombu(content_type: str, body: Any) -> Any:
    """Decode a body for Kombu, which knows no application and no caps."""
    return decode(body, content_type, None, active_caps.caps)


def _kombu_format(name: str) -> Format:
    name = registry.type_to_name.get(name, name)
    if name not in registry._encoders:
        raise ConfigurationError(f"there is no format {name!r:.80}: choose one of {', '.join(format_names())}")
    encoder = registry._encoders[name]

    def decode_with_kombu(body: bytes, caps: Caps) -> Any:
        return serialization.loads(
            body, encoder.content_type, encoder.content_encoding, accept={encoder.content_type}
        )

    return Format(
        name=name,
        content_type=encoder.content_type,
        content_encoding=encoder.content_encoding,
        encode=encoder.encoder,
        decode=decode_with_kombu,
    )


# --- JSON

# Made once: ``json.dumps`` would make an encoder for each body. A circular value raises RecursionError.
_encode_json = json.JSONEncoder(default=tagged, check_circular=False, allow_nan=False).encode


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")


_parse_json = json.JSONDecoder(object_pairs_hook=mapping, parse_constant=_refuse_constant).decode


def _decode_json(body: bytes, caps: Caps) -> Any:
    check_json_nodes(body, caps)
    return _parse_json(body.decode())


def _count_json_containers(encoded: Any) -> int:
    list_start, mapping_start = ("[", "{") if isinstance(encoded, str) else (b"[", b"{")
    count: int = encoded.count(list_start) + encoded.count(mapping_start)
    return count


# --- Protobuf, which is an optional dependency


def _encode_protobuf(value: Any) -> bytes:
    from waooaw_celery.wire import protobuf

    return protobuf.encode(value)


def _decode_protobuf(body: bytes, caps: Caps) -> Any:
    from waooaw_celery.wire import protobuf

    return protobuf.decode(body, caps)


JSON_FORMAT = Format(
    name="json",
    content_type="application/json",
    content_encoding="utf-8",
    encode=_encode_json,
    decode=_decode_json,
    count_containers=_count_json_containers,
)
MSGPACK_FORMAT = Format(
    name="msgpack",
    content_type="application/x-msgpack",
    content_encoding="binary",
    encode=messagepack.encode,
    decode=messagepack.decode,
    count_containers=messagepack.count_containers,
)
PROTOBUF_FORMAT = Format(
    name="protobuf",
    content_type="application/x-protobuf",
    content_encoding="binary",
    encode=_encode_protobuf,
    decode=_decode_protobuf,
)
for _format in (JSON_FORMAT, MSGPACK_FORMAT, PROTOBUF_FORMAT):
    _add(_format)
