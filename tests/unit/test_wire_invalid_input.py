"""Invalid, hostile and oversized bodies are refused, before they are built."""

from __future__ import annotations

import json
from typing import Any

import pytest
from wire_values import FORMATS, decoded, encoded

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import (
    MIB,
    Caps,
    check_json_nodes,
    check_shape,
)


def nested(name: str, levels: int) -> bytes:
    if name == "json":
        return b"[" * levels + b"]" * levels
    if name == "msgpack":
        return b"\x91" * (levels - 1) + b"\x90"
    body = b"\x08\x07"  # an empty list
    for _ in range(levels - 1):
        length, size = len(body), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        body = b"\x08\x07\x3a" + size + bytes([length]) + body
    return body


@pytest.mark.parametrize("name", FORMATS)
def test_the_depth_cap_is_exact(name: str) -> None:
    """``max_depth`` levels are decoded; one more, and 2,000, are refused."""
    decoded(nested(name, 80), name)
    for levels in (81, 2000):
        with pytest.raises(DecodingFailed):
            decoded(nested(name, levels), name)


def test_two_hundred_thousand_levels_are_refused() -> None:
    """Nesting that would overflow the stack raises the usual error."""
    for name in ("json", "msgpack"):
        with pytest.raises(DecodingFailed):
            decoded(nested(name, 200_000), name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_cap_on_values_is_exact(name: str) -> None:
    """``max_nodes`` values are decoded, and one more is refused."""
    value = [[1, 2], {"a": None}, 'text, with [commas], {braces} and "quotes"']
    body = encoded(value, name)
    assert decoded(body, name, max_nodes=7) == value
    with pytest.raises(DecodingFailed, match="values"):
        decoded(body, name, max_nodes=6, max_depth=1)


@pytest.mark.parametrize("name", FORMATS)
def test_too_many_values_are_refused_before_they_are_built(name: str) -> None:
    """Millions of empty lists take no memory."""
    import tracemalloc

    one = {"json": b"[],", "msgpack": b"\x90", "protobuf": b"\x3a\x02\x08\x07"}[name]
    count = 1_000_000
    body = {
        "json": lambda: b"[" + one * count + b"[]]",
        "msgpack": lambda: b"\xdd" + count.to_bytes(4, "big") + one * count,
        "protobuf": lambda: b"\x08\x07" + one * count,
    }[name]()
    tracemalloc.start()
    try:
        with pytest.raises(DecodingFailed, match="values"):
            decoded(body, name, max_nodes=10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * MIB


def test_the_declared_length_of_a_list_is_not_trusted() -> None:
    """Nested MessagePack lists that declare a million items but have none are refused at once."""
    body = b"\xdd\x00\x0f\x42\x40" * 900 + b"\x01" * 200_000
    with pytest.raises(DecodingFailed):
        decoded(body, "msgpack")


@pytest.mark.parametrize("value", [[[], {}, ""] * 4, {"a": [{}] * 3, "b": []}, [[" "], ["[]"], []], [[[[]]]], {}])
def test_both_ends_count_the_same_values(value: Any) -> None:
    """What the sender's check accepts, the receiver's accepts too, also with empty lists, objects and strings."""
    text = json.dumps(value).encode()
    for nodes in range(1, 20):
        caps, results = Caps(max_nodes=nodes), []
        for check, given in ((check_shape, value), (check_json_nodes, text)):
            try:
                check(given, caps)
                results.append("accepted")
            except DecodingFailed:
                results.append("refused")
        assert len(set(results)) == 1, (nodes, results)


def test_a_string_counts_as_one_value() -> None:
    """A long string full of commas and brackets is one value; one without an end is refused quickly."""
    text = json.dumps(['[{,"' * 100_000]).encode()
    check_json_nodes(text, Caps(max_nodes=3))
    with pytest.raises(DecodingFailed):
        check_json_nodes(b'["' + b'\\",' * 3_000_000 + b'",[],[],[]', Caps(max_nodes=3))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("json", b'{"a": 1, "a": 2}'),
        ("json", b'[{"b": {"a": 1, "a": 1}}]'),
        ("msgpack", b"\x82\xa1a\x01\xa1a\x02"),
        ("protobuf", b"\x08\x08\x32\x01a\x32\x01a\x3a\x00\x3a\x00"),
    ],
)
def test_duplicate_keys_are_refused(name: str, body: bytes) -> None:
    """Two receivers could keep different values."""
    with pytest.raises(DecodingFailed, match="twice"):
        decoded(body, name)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("json", b"NaN"),
        ("json", b"[Infinity]"),
        ("json", b"[-Infinity]"),
        ("json", b""),
        ("json", b"\xff"),
        ("json", b"[1"),
        ("json", b"[1] [2]"),
        ("json", b'{"__type__": "datetime", "__value__": "soon"}'),
        ("json", b'{"__type__": "uuid", "__value__": {"hex": 5}}'),
        ("json", b'{"__type__": ["x"], "__value__": 1}'),
        ("json", b'{"__type__": "nonsense", "__value__": 1}'),
        ("json", b'{"__type__": "int", "__value__": 1.5}'),
        ("json", b"9" * 5000),
        ("msgpack", b""),
        ("msgpack", b"\xc1"),
        ("msgpack", b"\x01\x01"),
        ("msgpack", b"\x92\x01"),
        ("msgpack", b"\x81\x01\x01"),
        ("msgpack", b"\x81\xc4\x01a\x01"),
        ("msgpack", b"\xa1\xff"),
        ("msgpack", b"\x82\xa8__type__\xa3int\xa9__value__\x01"),
        ("protobuf", b"\xff"),
        ("protobuf", b"\x08\x63"),
        ("protobuf", b"\x08\x08\x32\x01a"),
        ("protobuf", b"\x08\x05\x22\x01\xff"),
    ],
)
def test_an_invalid_body_is_refused(name: str, body: bytes) -> None:
    """Truncated, corrupt and impossible bodies raise one error with a printable message."""
    with pytest.raises(DecodingFailed) as refused:
        decoded(body, name)
    assert str(refused.value).isprintable()
