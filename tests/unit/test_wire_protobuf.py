"""Protobuf: fields are skipped and values counted exactly."""

from __future__ import annotations

from typing import Any

import pytest

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire import protobuf
from waooaw_celery.wire.caps import (
    Caps,
)


def test_protobuf_fields_are_skipped_by_their_wire_type() -> None:
    """The content of a field would count as values itself; nested values count one each."""
    values = b"\x3a\x00" * 3
    for field in (
        b"\x19" + b"\x3a" * 8,  # fixed64
        b"\x1d" + b"\x3a" * 4,  # fixed32
        b"\x10\xba\xba\x3a",  # varint
        b"\x22\x04\x3a\x00\x3a\x00",  # string
        b"\x2a\x83\x00\x3a\x3a\x3a",  # bytes, with a length of two bytes
    ):
        protobuf._check_nodes(field + values, 4)
        with pytest.raises(DecodingFailed, match=r"^it contains more than 3 values$"):
            protobuf._check_nodes(field + values, 3)
    protobuf._check_nodes(b"\x32\x01a" * 3, 3)
    with pytest.raises(DecodingFailed, match="more than 2 values"):
        protobuf._check_nodes(b"\x32\x01a" * 3, 2)
    protobuf._check_nodes(b"\x3a\x04\x3a\x02\x3a\x00", 4)
    with pytest.raises(DecodingFailed):
        protobuf._check_nodes(b"\x3a\x04\x3a\x02\x3a\x00", 3)
    with pytest.raises(ValueError, match="group"):
        protobuf._check_nodes(b"\x0b\x0c", 10)


def test_a_varint_has_at_most_ten_bytes() -> None:
    """Seven bits in each byte, the lowest first."""
    assert protobuf._varint(b"\x00", 0) == (0, 1)
    assert protobuf._varint(b"xx\x96\x01yy", 2) == (150, 4)
    assert protobuf._varint(b"\xff\x7f", 0) == (16_383, 2)
    assert protobuf._varint(b"\x80" * 9 + b"\x01", 0) == (1 << 63, 10)
    with pytest.raises(ValueError, match="longer than ten bytes"):
        protobuf._varint(b"\x80" * 10 + b"\x01", 0)


@pytest.mark.parametrize(
    "value", [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 0, -1, True, False, None, 0.5, b"", "", [], {}]
)
def test_protobuf_keeps_integers_of_any_size(value: Any) -> None:
    """Up to 64 bits they are integers of the schema, larger ones are tagged."""
    body = protobuf.encode(value)
    result = protobuf.decode(body, Caps(max_nodes=3))
    assert (result, type(result)) == (value, type(value))
    if type(value) is int:
        assert protobuf.Value.FromString(body).kind == (3 if -(2**63) <= value < 2**63 else 8)


def test_protobuf_values_are_counted_when_they_are_decoded() -> None:
    """The bytes of a body may look like fewer values than there are tags, or more."""
    body = protobuf.encode(["::::::::", 1])
    assert protobuf.decode(body, Caps(max_nodes=3)) == ["::::::::", 1]
    with pytest.raises(DecodingFailed, match=r"^it contains more than 2 values$"):
        protobuf.decode(body, Caps(max_nodes=2))
    with pytest.raises(ValueError, match="there is no kind 99"):
        protobuf.decode(b"\x08\x63", Caps())
    for mapping in (b"\x08\x08\x32\x01a", b"\x08\x08\x3a\x00", b"\x08\x08\x32\x01a\x32\x01a\x3a\x00\x3a\x00"):
        with pytest.raises(ValueError, match="a mapping has a key twice"):
            protobuf.decode(mapping, Caps())


def test_protobuf_values_are_counted_before_decoding_only_if_there_may_be_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counting is slow: the number of tags in a small body shows that it is not needed."""
    counted: list[int] = []
    monkeypatch.setattr(protobuf, "_check_nodes", lambda body, max_nodes: counted.append(max_nodes))
    body = protobuf.encode({"a": 1, "b": 2})
    protobuf.decode(body, Caps(max_nodes=5))
    assert counted == []
    protobuf.decode(body, Caps(max_nodes=4))
    assert counted == [4]
