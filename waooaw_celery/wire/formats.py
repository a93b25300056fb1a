"""The formats: encode values as JSON, MessagePack or Protobuf, and decode them within bounds.

The applications of this package use them directly. Kombu keeps its own JSON and MessagePack: other applications of
the process read what they read without this package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from kombu import serialization
from kombu.serialization import registry  # type: ignore[attr-defined]  # missing from its stubs

from waooaw_celery.errors import ConfigurationError, DecodingFailed, EncodingFailed
from waooaw_celery.messages.references.reference import REFERENCE_CONTENT_TYPE, REFERENCE_SERIALIZER, Reference
from waooaw_celery.messages.validation import mapping, tagged
from waooaw_celery.wire import messagepack
from waooaw_celery.wire.caps import Caps, check_json_nodes, check_shape, check_size


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
_kombu_loads: Callable[..., Any] = serialization.loads


def register_format(format_: Format) -> None:
    """Add a format here and register it with Kombu, for every application of this process.

    It replaces one with the same content type. Kombu has no limits for what it decodes.
    """
    _add(format_)
    registry.register(
        format_.name,
        format_.encode,
        lambda body: format_.decode(_as_bytes(body), Caps()),
        content_type=format_.content_type,
        content_encoding=format_.content_encoding,
    )


def _add(format_: Format) -> None:
    _formats.update(dict.fromkeys((format_.name, format_.content_type), format_))


def format_names() -> list[str]:
    """Return the names of the formats that decode within bounds, sorted."""
    return sorted({format_.name for format_ in _formats.values()} - {REFERENCE_SERIALIZER})


def has_format(name: str | None) -> bool:
    """Whether this package has a format with this name or content type."""
    return name in _formats


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
    is_accepted = caps.content_types is None or content_type in caps.content_types
    # A reference has no values of a handler: those have their own format, which is checked when they are loaded.
    if not is_accepted and content_type != REFERENCE_CONTENT_TYPE:
        raise DecodingFailed(f"its content type is {content_type!r:.80}, which is not accepted")
    raw = _as_bytes(body)
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


def decode_again(body: bytes | str | memoryview, content_type: str, encoding: str | None, caps: Caps) -> Any:
    """Decode a body that ``decode`` has accepted, such as in the process of the pool that runs its handler.

    The arguments, the value and the errors are those of ``decode``. A large JSON body takes a third of the time.
    """
    raw = _as_bytes(body)
    # In an escape, the key of a tagged value may hide.
    if _formats.get(content_type) is not JSON_FORMAT or b"__type__" in raw or b"\\u" in raw:
        return decode(raw, content_type, encoding, caps)
    return json.loads(raw)


def _as_bytes(body: bytes | str | memoryview) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)


def decode_accepted(
    body: Any, content_type: str | None, encoding: str | None, accept: Collection[str] | None, caps: Caps
) -> Any:
    """Decode a body as Kombu's ``loads`` does, with this package's formats and within bounds.

    Args:
        body: The body after decompression. An empty one is returned as it is.
        content_type: Its format. Kombu itself decodes formats that only Kombu knows.
        encoding: Its content encoding, for those formats.
        accept: The formats that the consumer accepts; None: all that Kombu has enabled.
        caps: The limits. Their formats are not used.

    Raises:
        ContentDisallowed: The consumer does not accept the format.
        DecodeError: The body is invalid, or it exceeds a cap.
    """
    if content_type == REFERENCE_CONTENT_TYPE and body:
        return decode(body, content_type, encoding, caps)
    if content_type not in _formats:
        return _kombu_loads(body, content_type, encoding, accept=accept)
    _kombu_loads(b"", content_type, encoding, accept=accept)  # only checks that the format is accepted
    return decode(body, content_type, encoding, replace(caps, content_types=None)) if body else body


def is_known(content_type: str) -> bool:
    """Whether this package or Kombu has a format with this content type."""
    return content_type in _formats or content_type in registry.type_to_name


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


# --- References to payloads that are kept in a store


def _encode_reference(body: Any) -> str:
    [reference], _, embed = body
    return _encode_json(([reference.to_dict()], {}, embed))


def _decode_reference(body: bytes, caps: Caps) -> Any:
    args, kwargs, embed = _decode_json(body, caps)
    [form] = args
    if kwargs:
        raise ValueError("a reference has no arguments beside it")
    return [Reference.of_form(form)], {}, embed


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
REFERENCE_FORMAT = Format(
    name=REFERENCE_SERIALIZER,
    content_type=REFERENCE_CONTENT_TYPE,
    content_encoding="utf-8",
    encode=_encode_reference,
    decode=_decode_reference,
    count_containers=_count_json_containers,
)
for _format in (JSON_FORMAT, MSGPACK_FORMAT, PROTOBUF_FORMAT, REFERENCE_FORMAT):
    _add(_format)
