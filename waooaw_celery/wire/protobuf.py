"""Protobuf: encodes a value as one ``Value`` of ``value.proto``. The schema is built here, without a compiler."""

from __future__ import annotations

from typing import Any

from kombu.exceptions import SerializerNotInstalled

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.validation import tagged, untagged
from waooaw_celery.wire.caps import Caps

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as error:
    raise SerializerNotInstalled("for protobuf install waooaw-celery[protobuf]") from error

KINDS = ("NULL", "FALSE", "TRUE", "INTEGER", "NUMBER", "TEXT", "BYTES", "LIST", "MAPPING")
_NULL, _FALSE, _TRUE, _INTEGER, _NUMBER, _TEXT, _BYTES, _LIST, _MAPPING = range(len(KINDS))
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1
#: The tags before a mapping's keys and a container's values. The same bytes also occur within other values.
_KEYS_TAG, _VALUES_TAG = 0x32, 0x3A
#: Size in bytes of fields of fixed size, by wire type.
_FIXED_SIZES = {1: 8, 5: 4}
_VARINT, _LENGTH = 0, 2


def _value_class() -> Any:
    """Return the message class of ``value.proto``."""
    field = descriptor_pb2.FieldDescriptorProto
    optional, repeated = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name="waooaw/value.proto", package="waooaw", syntax="proto3")
    message = file.message_type.add(name="Value")
    kinds = message.enum_type.add(name="Kind")
    for number, name in enumerate(KINDS):
        kinds.value.add(name=name, number=number)
    message.field.add(name="kind", number=1, label=optional, type=field.TYPE_ENUM, type_name=".waooaw.Value.Kind")
    message.field.add(name="integer", number=2, label=optional, type=field.TYPE_SINT64)
    message.field.add(name="number", number=3, label=optional, type=field.TYPE_DOUBLE)
    message.field.add(name="text", number=4, label=optional, type=field.TYPE_STRING)
    message.field.add(name="data", number=5, label=optional, type=field.TYPE_BYTES)
    message.field.add(name="keys", number=6, label=repeated, type=field.TYPE_STRING)
    message.field.add(name="values", number=7, label=repeated, type=field.TYPE_MESSAGE, type_name=".waooaw.Value")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("waooaw.Value"))


Value: Any = _value_class()


def encode(value: Any) -> bytes:
    """Encode a value.

    Raises:
        TypeError, ValueError: It cannot be encoded.
    """
    message = Value()
    _fill(message, value)
    data: bytes = message.SerializeToString()
    return data


def decode(body: bytes, caps: Caps) -> Any:
    """Decode a body. Any other exception than the one below means that it cannot be decoded.

    Raises:
        DecodingFailed: It contains more than ``max_nodes`` values.
    """
    if body.count(_KEYS_TAG) + body.count(_VALUES_TAG) >= caps.max_nodes:
        _check_nodes(body, caps.max_nodes)
    message = Value()
    message.ParseFromString(body)
    return _Decoder(caps.max_nodes).decode(message)


def _check_nodes(body: bytes, max_nodes: int) -> None:
    """Check the number of values in a body, without building any of them. It is slow: use it only if needed.

    Raises:
        DecodingFailed: It contains more than ``max_nodes`` values or keys.
        IndexError, ValueError: It is not a Protobuf message.
    """
    position, values, keys = 0, 1, 0
    while position < len(body):
        tag, position = _varint(body, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, position = _varint(body, position)
        elif wire_type == _LENGTH:
            length, position = _varint(body, position)
            if tag == _VALUES_TAG:  # a nested Value: continue with its fields
                values += 1
            else:
                keys += tag == _KEYS_TAG
                position += length
        elif wire_type in _FIXED_SIZES:
            position += _FIXED_SIZES[wire_type]
        else:
            raise ValueError("it has a field of type group, which the schema does not use")
        if max(values, keys) > max_nodes:
            raise DecodingFailed(f"it contains more than {max_nodes} values")


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Return the varint at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = body[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than ten bytes")


def _fill(message: Any, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        message.kind = _TRUE if value else _FALSE
    elif isinstance(value, str):
        message.kind, message.text = _TEXT, value
    elif isinstance(value, int) and _MIN_INTEGER <= value <= _MAX_INTEGER:
        message.kind, message.integer = _INTEGER, int(value)
    elif isinstance(value, float):
        message.kind, message.number = _NUMBER, value
    elif isinstance(value, bytes):
        message.kind, message.data = _BYTES, value
    elif isinstance(value, list | tuple):
        message.kind = _LIST
        for item in value:
            _fill(message.values.add(), item)
    elif isinstance(value, dict):
        message.kind = _MAPPING
        message.keys.extend(value)
        for item in value.values():
            _fill(message.values.add(), item)
    else:
        _fill(message, tagged(value))


class _Decoder:
    """Turns ``Value`` messages into Python values, up to a maximum number."""

    def __init__(self, max_nodes: int) -> None:
        self._left = self._max_nodes = max_nodes

    def decode(self, message: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise DecodingFailed(f"it contains more than {self._max_nodes} values")
        kind = message.kind
        if kind == _TEXT:
            return message.text
        if kind == _INTEGER:
            return message.integer
        if kind == _NUMBER:
            return message.number
        if kind == _MAPPING:
            keys, values = message.keys, message.values
            if len(keys) != len(values) or len(set(keys)) != len(keys):
                raise ValueError("a mapping has a key twice, or a key without a value")
            return untagged({key: self.decode(item) for key, item in zip(keys, values, strict=True)})
        if kind == _LIST:
            return [self.decode(item) for item in message.values]
        if kind == _BYTES:
            return message.data
        if kind in (_FALSE, _TRUE):
            return kind == _TRUE
        if kind == _NULL:
            return None
        raise ValueError(f"there is no kind {kind}")
