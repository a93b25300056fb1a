"""MessagePack: every type is counted exactly."""

from __future__ import annotations

import msgpack
import pytest

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import (
    Caps,
)
from waooaw_celery.wire.formats import decode, encode, find_format
from waooaw_celery.wire.messagepack import check_nodes, count_containers

MESSAGEPACK_VALUES: dict[str, bytes] = {
    **{f"fixed integer {head:x}": bytes([head]) for head in (0x00, 0x7F, 0xC0, 0xC2, 0xC3, 0xE0, 0xFF)},
    **{f"string of {size}": bytes([0xA0 + size]) + b"\x01" * size for size in (0, 1, 30, 31)},
    **{
        f"{name} {width}": bytes([head]) + (5).to_bytes(width, "big") + b"\x01" * 5
        for name, heads in (("bytes", (0xC4, 0xC5, 0xC6)), ("string", (0xD9, 0xDA, 0xDB)))
        for head, width in zip(heads, (1, 2, 4), strict=True)
    },
    **{
        f"extension {width}": bytes([head]) + (5).to_bytes(width, "big") + b"\x01" * 6
        for head, width in ((0xC7, 1), (0xC8, 2), (0xC9, 4))
    },
    **{
        f"fixed size {head:x}": bytes([head]) + b"\x01" * size
        for head, size in (
            *((0xCA, 4), (0xCB, 8), (0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)),
            *((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)),
            *((0xD4, 2), (0xD5, 3), (0xD6, 5), (0xD7, 9), (0xD8, 17)),
        )
    },
}


@pytest.mark.parametrize("name", MESSAGEPACK_VALUES)
def test_every_messagepack_type_counts_as_one_value(name: str) -> None:
    """Its content is skipped exactly: the bytes of the content would count as values themselves."""
    body = b"\x93" + MESSAGEPACK_VALUES[name] + b"\x02\x03"
    check_nodes(body, Caps(max_nodes=4))
    with pytest.raises(DecodingFailed, match=r"^it contains more than 3 values$"):
        check_nodes(body, Caps(max_nodes=3))


@pytest.mark.parametrize(
    ("head", "items"),
    [
        (b"\x82", 2),
        (b"\x8f", 15),
        (b"\xde\x00\x02", 2),
        (b"\xdf\x00\x00\x00\x02", 2),
        (b"\x90", 0),
        (b"\x9f", 15),
        (b"\xdc\x00\x03", 3),
        (b"\xdd\x00\x00\x00\x03", 3),
    ],
)
def test_messagepack_containers_count_with_their_values(head: bytes, items: int) -> None:
    """The container and each value count as one; the keys of a mapping do not."""
    is_mapping = head[0] <= 0x8F or head[0] >= 0xDE
    body = b"\x92" + head + (b"\xa1k\x01" if is_mapping else b"\x01") * items + b"\x05"
    assert len(msgpack.unpackb(body, object_pairs_hook=list)[0]) == items
    nodes = 3 + items
    check_nodes(body, Caps(max_nodes=nodes))
    with pytest.raises(DecodingFailed):
        check_nodes(body, Caps(max_nodes=nodes - 1))


@pytest.mark.parametrize(("size", "head"), [(0, 0x80), (15, 0x8F), (16, 0xDE), (70_000, 0xDF)])
def test_messagepack_mappings_are_containers(size: int, head: int) -> None:
    """Their first bytes are counted, for every size."""
    encoded = encode({"k": {str(number): "x" for number in range(size)}}, find_format("msgpack"))
    assert isinstance(encoded, bytes)
    assert encoded[3] == head
    assert count_containers(encoded) >= 2


@pytest.mark.parametrize(("size", "head"), [(0, 0x90), (15, 0x9F), (16, 0xDC), (70_000, 0xDD)])
def test_messagepack_lists_are_containers(size: int, head: int) -> None:
    """Their first bytes are counted, for every size; small integers are not."""
    encoded = encode(["x"] * size, find_format("msgpack"))
    assert isinstance(encoded, bytes)
    assert encoded[0] == head
    assert count_containers(encoded) == 1
    assert count_containers(bytes([0x7F, 0xA0, 0xDB, 0xE0])) == 0


def test_a_large_messagepack_body_is_counted_and_a_small_one_is_not() -> None:
    """A body of at most ``max_nodes`` bytes cannot contain more values."""
    body = msgpack.packb([1, 2, 3])
    assert decode(body, "application/x-msgpack", None, Caps(max_nodes=4)) == [1, 2, 3]
    with pytest.raises(DecodingFailed, match="more than 3 values"):
        decode(body, "application/x-msgpack", None, Caps(max_nodes=3))
    with pytest.raises(DecodingFailed, match="more than one value"):
        decode(b"\x01\x02", "application/x-msgpack", None, Caps())


@pytest.mark.parametrize("head", [b"\xc4\x01", b"\xc5\x00\x01", b"\xc6\x00\x00\x00\x01"])
def test_a_messagepack_key_must_be_a_string(head: bytes) -> None:
    """Bytes as a key are refused, however their length is written."""
    with pytest.raises(DecodingFailed, match="TypeError"):
        decode(b"\x81" + head + b"a\x01", "application/x-msgpack", None, Caps())
