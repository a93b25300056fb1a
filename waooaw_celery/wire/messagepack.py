"""MessagePack: encodes values, and counts the values of a body before it decodes them."""

from __future__ import annotations

from typing import Any

import msgpack

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.validation import mapping, tagged
from waooaw_celery.wire.caps import Caps

#: msgpack's option ``timestamp``: decode MessagePack's own timestamp, which other languages write, as a datetime.
_TIMESTAMP_AS_DATETIME = 3
#: The first bytes of lists and mappings. The same bytes also occur within other values.
_CONTAINER_HEADS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in _CONTAINER_HEADS)


def encode(value: Any) -> bytes:
    """Encode a value. Any exception means that it cannot be encoded."""
    encoded: bytes = msgpack.packb(value, default=tagged, use_bin_type=True)
    return encoded


def _mapping_with_string_keys(pairs: list[tuple[Any, Any]]) -> Any:
    "".join(key for key, _ in pairs)  # raises TypeError if a key is bytes
    return mapping(pairs)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"there is no extension {code}")


def decode(body: bytes, caps: Caps) -> Any:
    """Decode a body. Any other exception than the one below means that it cannot be decoded.

    Raises:
        DecodingFailed: It contains more than ``max_nodes`` values.
    """
    # A list starts with its length and is allocated before its items are read: check first that they exist.
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise ValueError("it contains more than one value")
    if len(body) > caps.max_nodes:
        check_nodes(body, caps)
    may_have_bytes = any(head in body for head in (b"\xc4", b"\xc5", b"\xc6"))
    return msgpack.unpackb(
        body,
        raw=False,
        object_pairs_hook=_mapping_with_string_keys if may_have_bytes else mapping,
        ext_hook=_refuse_extension,
        timestamp=_TIMESTAMP_AS_DATETIME,
    )


def count_containers(encoded: bytes) -> int:
    """Return an upper bound of the number of lists and mappings in an encoded body."""
    return len(encoded.translate(None, _OTHER_BYTES))


def check_nodes(body: bytes, caps: Caps) -> None:
    """Check the number of values in a body, without building any of them. It is slow: use it only if needed.

    Args:
        body: One complete value.
        caps: The limits.

    Raises:
        DecodingFailed: It contains more than ``max_nodes`` values.
    """
    position, nodes, end = 0, 0, len(body)
    while position < end:
        nodes += 1
        if nodes > caps.max_nodes:
            raise DecodingFailed(f"it contains more than {caps.max_nodes} values")
        head, length_bytes, fixed = body[position], *_SIZES[body[position]]
        length = int.from_bytes(body[position + 1 : position + 1 + length_bytes], "big") if length_bytes else 0
        if 0x80 <= head <= 0x8F or 0xDE <= head <= 0xDF:  # the keys of a mapping are not counted
            nodes -= length if head >= 0xDE else head & 0x0F
        position += 1 + length_bytes + fixed + (0 if 0xDC <= head <= 0xDF else length)


def _sizes() -> list[tuple[int, int]]:
    """Return by a value's first byte: the number of bytes of its length field, and of the fixed part after it."""
    sizes = [(0, 0)] * 256  # small integers, small lists and mappings, nil, false, true
    for head in range(0xA0, 0xC0):  # short strings
        sizes[head] = 0, head - 0xA0
    for head, length_bytes in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):
        sizes[head] = length_bytes, 0  # bytes and strings
    for head, length_bytes in ((0xC7, 1), (0xC8, 2), (0xC9, 4)):
        sizes[head] = length_bytes, 1  # extensions, with one byte for the type
    for head, fixed in ((0xCA, 4), (0xCB, 8), (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
        sizes[head] = 0, fixed  # floats and unsigned integers
    for head, fixed in ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)):
        sizes[head] = 0, fixed  # signed integers
    for head, fixed in ((0xD4, 2), (0xD5, 3), (0xD6, 5), (0xD7, 9), (0xD8, 17)):
        sizes[head] = 0, fixed  # extensions of fixed length
    for head, length_bytes in ((0xDC, 2), (0xDD, 4), (0xDE, 2), (0xDF, 4)):
        sizes[head] = length_bytes, 0  # lists and mappings, whose length counts values, not bytes
    return sizes


_SIZES = _sizes()
