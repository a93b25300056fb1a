"""The frames of a message that is published to RabbitMQ.

py-amqp writes each message with one system call, and its encoder of header tables takes more processor time than
all else in a publish. This one writes the same bytes for the types that headers of tasks have, and leaves all
others to py-amqp's.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Any

from amqp import spec
from amqp.serialization import dumps

#: The largest and the smallest integer that py-amqp writes with 4 bytes.
_MAX_INT32, _MIN_INT32 = 2147483647, -2147483647

_pack_method = Struct(">BHIHH").pack
_pack_header = Struct(">BHIHHQ").pack
_pack_frame = Struct(">BHI").pack
_pack_length = Struct(">I").pack
_pack_text = Struct(">cI").pack
_pack_int = Struct(">ci").pack
_pack_float = Struct(">cd").pack
_pack_flags = Struct(">H").pack

_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _FRAME_END = 1, 2, 3, b"\xce"
#: Bytes of a frame beside its payload.
_FRAME_OVERHEAD = 8
_BASIC = spec.Basic.Publish[0]

#: The properties of a message in the order in which they travel, each with the bit that says that it is there.
_TEXTS_BEFORE = (("content_type", 0x8000), ("content_encoding", 0x4000))
_OCTETS = (("delivery_mode", 0x1000), ("priority", 0x0800))
_TEXTS_AFTER = (("correlation_id", 0x0400), ("reply_to", 0x0200), ("expiration", 0x0100), ("message_id", 0x0080))
_HEADERS_BIT = 0x2000
_KNOWN = frozenset(
    ["application_headers", *(name for name, _ in (*_TEXTS_BEFORE, *_OCTETS, *_TEXTS_AFTER))],
)


def publish_frames(
    channel_id: int, message: Any, exchange: str, routing_key: str, mandatory: bool, max_frame: int
) -> bytes:
    """Return the frames of a publish.

    Args:
        channel_id: the number of the channel.
        message: py-amqp's message.
        exchange: name of the exchange; empty for the default exchange.
        routing_key: the routing key.
        mandatory: whether RabbitMQ returns the message when no queue takes it.
        max_frame: the longest frame that RabbitMQ accepts, in bytes.

    Raises:
        FrameSyntaxError: a header has a type that AMQP cannot express.
        ValueError: the properties exceed one frame.
    """
    body = message.body
    if isinstance(body, str):
        encoding = message.properties.get("content_encoding") or "utf-8"
        message.properties["content_encoding"] = encoding
        body = body.encode(encoding)
    method = _publish_arguments(exchange, routing_key, mandatory)
    properties = encode_properties(message)
    if len(properties) + 12 + _FRAME_OVERHEAD > max_frame:
        raise ValueError(
            f"the headers have {len(properties)} bytes, and RabbitMQ takes at most {max_frame} in a frame: "
            "put large values in the payload"
        )
    parts = [
        _pack_method(_METHOD_FRAME, channel_id, 4 + len(method), *spec.Basic.Publish),
        method,
        _FRAME_END,
        _pack_header(_HEADER_FRAME, channel_id, 12 + len(properties), _BASIC, 0, len(body)),
        properties,
        _FRAME_END,
    ]
    size = max_frame - _FRAME_OVERHEAD
    for start in range(0, len(body), size):
        part = body if len(body) <= size else body[start : start + size]
        parts += (_pack_frame(_BODY_FRAME, channel_id, len(part)), part, _FRAME_END)
    return b"".join(parts)


def encode_properties(message: Any) -> bytes:
    """Return the properties of a message, with its headers, as they travel.

    Args:
        message: py-amqp's message.

    Raises:
        FrameSyntaxError: a header has a type that AMQP cannot express.
    """
    properties: dict[str, Any] = message.properties
    if not properties.keys() <= _KNOWN:
        encoded: bytes = message._serialize_properties()
        return encoded
    flags, parts = 0, [b""]
    for name, bit in _TEXTS_BEFORE:
        value = properties.get(name)
        if value is not None:
            flags |= bit
            parts.append(_short_text(value))
    headers = properties.get("application_headers")
    if headers is not None:
        flags |= _HEADERS_BIT
        parts.append(encode_table(headers))
    for name, bit in _OCTETS:
        value = properties.get(name)
        if value is not None:
            flags |= bit
            parts.append(bytes((value,)))
    for name, bit in _TEXTS_AFTER:
        value = properties.get(name)
        if value is not None:
            flags |= bit
            parts.append(_short_text(value))
    parts[0] = _pack_flags(flags)
    return b"".join(parts)


def encode_table(table: dict[str, Any]) -> bytes:
    """Return a table, such as a message's headers, as it travels.

    Raises:
        FrameSyntaxError: a value has a type that AMQP cannot express.
    """
    parts: list[bytes] = []
    _add_table(table, parts)
    data = b"".join(parts)
    return _pack_length(len(data)) + data


def _add_table(table: dict[str, Any], parts: list[bytes]) -> None:
    for name, value in table.items():
        kind = type(value)
        parts.append(_name(name) if type(name) is str else dumps("s", (name,)))
        if kind is str:
            data = value.encode("utf-8", "surrogatepass")
            parts += (_pack_text(b"S", len(data)), data)
        elif value is None:
            parts.append(b"V")
        elif kind is bool:
            parts.append(b"t\1" if value else b"t\0")
        elif kind is int and _MIN_INT32 <= value <= _MAX_INT32:
            parts.append(_pack_int(b"I", value))
        elif kind is float:
            parts.append(_pack_float(b"d", value))
        elif kind is dict:
            parts += (b"F", encode_table(value))
        else:
            # A table of this value alone, without its length and its name of one character.
            parts.append(dumps("F", ({"x": value},))[6:])


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return dumps("s", (name,))


@lru_cache(maxsize=1024)
def _publish_arguments(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return dumps("Bssbb", (0, exchange, routing_key, mandatory, False))


def _short_text(value: Any) -> bytes:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return bytes((len(data),)) + data
