"""MessagePack: values as bytes and back, counted before they are built."""

from __future__ import annotations

from typing import Any

import msgpack

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.messages.validation import mapping, tagged
from waooaw_celery.wire.caps import Caps

#: What other languages write a datetime as, MessagePack's own extension, becomes an aware datetime.
_AS_DATETIME = 3
#: The first bytes with which MessagePack writes a list or a mapping; they are in other things, too.
_OPENERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_ALL_BYTES = bytes(range(256))
_NO_OPENERS = bytes(byte for byte in _ALL_BYTES if byte not in _OPENERS)


def encode(value: Any) -> bytes:
    """Write a value; raises anything when it cannot be carried."""
    packed: bytes = msgpack.packb(value, default=tagged, use_bin_type=True)
    return packed


def _mapping_of_texts(pairs: list[tuple[Any, Any]]) -> Any:
    "".join(key for key, _ in pairs)  # raises TypeError for a key that is bytes
    return mapping(pairs)


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"there is no extension {code}")


def decode(body: bytes, caps: Caps) -> Any:
    """Read a value.

    Raises:
        DecodingFailed: it holds more values than are accepted. Whatever else is wrong raises anything.
    """
    # A list says how long it is, and is made as long before its items are read: first see that they are there.
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(body)
    unpacker.skip()
    if unpacker.tell() != len(body):
        raise ValueError("there is more than one value")
    if len(body) > caps.max_nodes:
        check_nodes(body, caps)
    has_bytes = any(head in body for head in (b"\xc4", b"\xc5", b"\xc6"))
    return msgpack.unpackb(
        body,
        raw=False,
        object_pairs_hook=_mapping_of_texts if has_bytes else mapping,
        ext_hook=_no_extension,
        timestamp=_AS_DATETIME,
    )


def containers(written: bytes) -> int:
    """Return no fewer than there are lists and mappings in what was written."""
    return len(written.translate(None, _NO_OPENERS))


def check_nodes(body: bytes, caps: Caps) -> None:
    """Check how many values MessagePack's bytes hold, without building any of them: slow, for large bodies only.

    Args:
        body: one whole value.
        caps: what is accepted.

    Raises:
        DecodingFailed: more than what is accepted.
    """
    position, nodes, end = 0, 0, len(body)
    while position < end:
        nodes += 1
        if nodes > caps.max_nodes:
            raise DecodingFailed(f"it holds more than {caps.max_nodes} values")
        head, length_bytes, fixed = body[position], *_SIZES[body[position]]
        length = int.from_bytes(body[position + 1 : position + 1 + length_bytes], "big") if length_bytes else 0
        if 0x80 <= head <= 0x8F or 0xDE <= head <= 0xDF:  # the keys of a mapping do not count
            nodes -= length if head >= 0xDE else head & 0x0F
        position += 1 + length_bytes + fixed + (0 if 0xDC <= head <= 0xDF else length)


def _sizes() -> list[tuple[int, int]]:
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


_SIZES = _sizes()
