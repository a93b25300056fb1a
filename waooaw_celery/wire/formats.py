"""The formats: values as JSON, MessagePack or Protobuf and back, within bounds; one registry, also for yours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kombu import serialization
from kombu.serialization import registry  # type: ignore[attr-defined]  # its stubs are old

from waooaw_celery.errors import ConfigurationError, DecodingFailed, EncodingFailed
from waooaw_celery.messages.validation import mapping, tagged
from waooaw_celery.wire import messagepack
from waooaw_celery.wire.caps import Caps, active_caps, check_json_nodes, check_shape, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write values.

    Attributes:
        name: by which it is chosen: Kombu's ``serializer``.
        content_type: what the header calls it.
        content_encoding: ``utf-8`` for text, ``binary`` for bytes.
        encode: writes a value; raises anything when it cannot.
        decode: reads a value; raises anything when it cannot, or when there are more values than caps allow.
        containers: no fewer than there are lists and mappings in what was written: so deep it may be nested.
    """

    name: str
    content_type: str
    content_encoding: str
    encode: Callable[[Any], str | bytes]
    decode: Callable[[bytes, Caps], Any]
    containers: Callable[[Any], int] = len


_formats: dict[str, Format] = {}


def register_format(format_: Format) -> None:
    """Make a format known here and to Kombu, in place of one of the same content type."""
    _know(format_)
    _tell_kombu(format_)


def install_formats() -> None:
    """Have Kombu write and read this package's formats with it, in this process.

    Called for each application, and not when this is imported: the ``celery`` command imports the package in
    processes that have nothing else to do with it.
    """
    for format_ in (JSON_FORMAT, MSGPACK_FORMAT, PROTOBUF_FORMAT):
        if _formats[format_.content_type] is format_:
            _tell_kombu(format_)


def _know(format_: Format) -> None:
    _formats.update(dict.fromkeys((format_.name, format_.content_type), format_))


def _tell_kombu(format_: Format) -> None:
    registry.register(
        format_.name,
        format_.encode,
        partial(_decode_in_force, format_.content_type),
        content_type=format_.content_type,
        content_encoding=format_.content_encoding,
    )


def format_names() -> list[str]:
    """Return the names of the formats that are bounded."""
    return sorted({format_.name for format_ in _formats.values()})


def find_format(name: str) -> Format:
    """Return the format of a name or a content type: ours, or whichever Kombu knows.

    Raises:
        ConfigurationError: there is none.
    """
    return _formats.get(name) or _foreign(name)


def encode(value: Any, format_: Format) -> str | bytes:
    """Write a value.

    Raises:
        EncodingFailed: the format cannot carry it.
    """
    try:
        return format_.encode(value)
    except Exception as error:  # also a user's encoder
        raise EncodingFailed(f"it cannot be written as {format_.name}: {error!r:.200}") from error


def decode(body: bytes | str | memoryview, content_type: str, encoding: str | None, caps: Caps) -> Any:
    """Read a body, within bounds.

    Args:
        body: the unpacked body.
        content_type: its format.
        encoding: its content encoding, for formats that only Kombu knows.
        caps: what is accepted.

    Raises:
        DecodingFailed: the format is not accepted, or the body cannot be read or breaks a cap.
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
        if format_ is None or format_.containers(raw) > caps.max_depth:
            check_shape(value, caps)
    except DecodingFailed:
        raise
    except Exception as error:  # a tag may stand for anything, and a user's decoder raise anything
        raise DecodingFailed(f"its body cannot be decoded: {error!r:.200}") from error
    return value


def _decode_in_force(content_type: str, body: Any) -> Any:
    """Read what Kombu hands over, which knows no application."""
    return decode(body, content_type, None, active_caps.caps)


def _foreign(name: str) -> Format:
    name = registry.type_to_name.get(name, name)
    if name not in registry._encoders:
        raise ConfigurationError(f"there is no format {name!r:.80}: choose one of {', '.join(format_names())}")
    codec = registry._encoders[name]

    def read(body: bytes, caps: Caps) -> Any:
        return serialization.loads(body, codec.content_type, codec.content_encoding, accept={codec.content_type})

    return Format(
        name=name,
        content_type=codec.content_type,
        content_encoding=codec.content_encoding,
        encode=codec.encoder,
        decode=read,
    )


# --- JSON

# Made once: ``json.dumps`` would make an encoder for each body. What contains itself ends in a RecursionError.
_to_json = json.JSONEncoder(default=tagged, check_circular=False, allow_nan=False).encode


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_from_json = json.JSONDecoder(object_pairs_hook=mapping, parse_constant=_no_number).decode


def _decode_json(body: bytes, caps: Caps) -> Any:
    check_json_nodes(body, caps)
    return _from_json(body.decode())


def _json_containers(written: Any) -> int:
    lists, mappings = ("[", "{") if isinstance(written, str) else (b"[", b"{")
    found: int = written.count(lists) + written.count(mappings)
    return found


# --- Protobuf, which is not installed everywhere


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
    encode=_to_json,
    decode=_decode_json,
    containers=_json_containers,
)
MSGPACK_FORMAT = Format(
    name="msgpack",
    content_type="application/x-msgpack",
    content_encoding="binary",
    encode=messagepack.encode,
    decode=messagepack.decode,
    containers=messagepack.containers,
)
PROTOBUF_FORMAT = Format(
    name="protobuf",
    content_type="application/x-protobuf",
    content_encoding="binary",
    encode=_encode_protobuf,
    decode=_decode_protobuf,
)
for _format in (JSON_FORMAT, MSGPACK_FORMAT, PROTOBUF_FORMAT):
    _know(_format)
