"""The formats: values as JSON, MessagePack or Protobuf and back, within bounds; one registry, also for yours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgpack
from kombu import serialization
from kombu.serialization import registry  # type: ignore[attr-defined]  # its stubs are old

from waooaw_celery.errors import ConfigurationError, Unreadable, Unwritable
from waooaw_celery.values import tagged, untagged
from waooaw_celery.wire.caps import Caps, check_json_nodes, check_shape, check_size, in_force

#: The first bytes with which MessagePack writes a list or a mapping; they are in other things, too.
_OPENERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_ALL_BYTES = bytes(range(256))
_NO_OPENERS = bytes(byte for byte in _ALL_BYTES if byte not in _OPENERS)


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
        Unwritable: the format cannot carry it.
    """
    try:
        return format_.encode(value)
    except Exception as error:  # also a user's encoder
        raise Unwritable(f"it cannot be written as {format_.name}: {error!r:.200}") from error


def decode(body: bytes | str | memoryview, content_type: str, encoding: str | None, caps: Caps) -> Any:
    """Read a body, within bounds.

    Args:
        body: the unpacked body.
        content_type: its format.
        encoding: its content encoding, for formats that only Kombu knows.
        caps: what is accepted.

    Raises:
        Unreadable: the format is not accepted, or the body cannot be read or breaks a cap.
    """
    if caps.content_types is not None and content_type not in caps.content_types:
        raise Unreadable(f"its content type is {content_type!r:.80}, which is not accepted")
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
    except Unreadable:
        raise
    except Exception as error:  # a tag may stand for anything, and a user's decoder raise anything
        raise Unreadable(f"its body cannot be decoded: {error!r:.200}") from error
    return value


def _decode_in_force(content_type: str, body: Any) -> Any:
    """Read what Kombu hands over, which knows no application."""
    return decode(body, content_type, None, in_force.caps)


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


def _mapping(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a mapping has a key twice")
    return untagged(found) if len(found) == 2 else found  # as many as a tag has


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_from_json = json.JSONDecoder(object_pairs_hook=_mapping, parse_constant=_no_number).decode


def _decode_json(body: bytes, caps: Caps) -> Any:
    check_json_nodes(body, caps)
    return _from_json(body.decode())


def _json_containers(written: Any) -> int:
    lists, mappings = ("[", "{") if isinstance(written, str) else (b"[", b"{")
    found: int = written.count(lists) + written.count(mappings)
    return found


# --- MessagePack


def _encode_msgpack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=tagged, use_bin_type=True)
    return packed


def _mapping_of_texts(pairs: list[tuple[Any, Any]]) -> Any:
    "".join(key for key, _ in pairs)  # raises TypeError for a key that is bytes
    return _mapping(pairs)


def _decode_msgpack(body: bytes, caps: Caps) -> Any:
    # A list says how long it is, and is made as long before its items are read: first see that they are there.
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise ValueError("there is more than one value")
    if len(body) > caps.max_nodes:
        check_msgpack_nodes(body, caps)
    has_bytes = any(head in body for head in (b"\xc4", b"\xc5", b"\xc6"))
    return msgpack.unpackb(body, raw=False, object_pairs_hook=_mapping_of_texts if has_bytes else _mapping)


def _msgpack_containers(written: bytes) -> int:
    return len(written.translate(None, _NO_OPENERS))


def check_msgpack_nodes(body: bytes, caps: Caps) -> None:
    """Check how many values MessagePack's bytes hold, without building any of them: slow, for large bodies only.

    Args:
        body: one whole value.
        caps: what is accepted.

    Raises:
        Unreadable: more than what is accepted.
    """
    position, nodes, end = 0, 0, len(body)
    while position < end:
        nodes += 1
        if nodes > caps.max_nodes:
            raise Unreadable(f"it holds more than {caps.max_nodes} values")
        head, length_bytes, fixed = body[position], *_MSGPACK_SIZES[body[position]]
        length = int.from_bytes(body[position + 1 : position + 1 + length_bytes], "big") if length_bytes else 0
        if 0x80 <= head <= 0x8F or 0xDE <= head <= 0xDF:  # the keys of a mapping do not count
            nodes -= length if head >= 0xDE else head & 0x0F
        position += 1 + length_bytes + fixed + (0 if 0xDC <= head <= 0xDF else length)


def _msgpack_sizes() -> list[tuple[int, int]]:
    """Return, by a value's first byte, how many bytes its length takes, and how many more follow in any case."""
    sizes = [(0, 0)] * 256  # small numbers, small lists and mappings, nil, false, true
    for head in range(0xA0, 0xC0):  # short texts
        sizes[head] = 0, head - 0xA0
    for head, length_bytes in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):
        sizes[head] = length_bytes, 0  # bytes and texts
    for head, length_bytes in ((0xC7, 1), (0xC8, 2), (0xC9, 4)):
        sizes[head] = length_bytes, 1  # extensions, of which one byte is the type
    for head, fixed in ((0xCA, 4), (0xCB, 8), (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
        sizes[head] = 0, fixed  # floats, and integers without sign
    for head, fixed in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
        sizes[head] = 0, fixed  # integers
    for head, fixed in ((0xD4, 2), (0xD5, 3), (0xD6, 5), (0xD7, 9), (0xD8, 17)):
        sizes[head] = 0, fixed  # extensions of fixed length
    for head, length_bytes in ((0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4)):
        sizes[head] = length_bytes, 0  # lists and mappings, whose length counts values and not bytes
    return sizes


_MSGPACK_SIZES = _msgpack_sizes()


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
    encode=_encode_msgpack,
    decode=_decode_msgpack,
    containers=_msgpack_containers,
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
