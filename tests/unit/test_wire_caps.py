"""The caps: exact limits on sizes, values and depth."""

from __future__ import annotations

import pytest

from waooaw_celery.errors import DecodingFailed
from waooaw_celery.wire.caps import (
    CAP_NAMES,
    Caps,
    check_json_nodes,
    check_shape,
    check_size,
    header_bytes,
)


def test_the_caps_have_defaults() -> None:
    """16 MiB, 64 KiB of headers, 80 levels, 250,000 values; all of them are options of the transports."""
    assert Caps() == Caps(
        max_body_bytes=16_777_216,
        max_expanded_bytes=16_777_216,
        max_header_bytes=65_536,
        max_depth=80,
        max_nodes=250_000,
        content_types=None,
        codecs=None,
    )
    assert Caps.of({"max_depth": 3, "codecs": (), "socket_timeout": 1}) == Caps(max_depth=3, codecs=())
    assert set(CAP_NAMES) >= {"max_body_bytes", "codecs"}
    assert Caps(max_body_bytes=1000, max_header_bytes=100).max_item_bytes == 2 * 1100 + 4096


def test_a_body_may_have_exactly_the_largest_size() -> None:
    """One byte more is refused, and the error has both numbers."""
    check_size(b"1234", Caps(max_expanded_bytes=4))
    with pytest.raises(DecodingFailed, match=r"^its body has 5 bytes, more than 4$"):
        check_size(b"12345", Caps(max_expanded_bytes=4))


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        (b"[1, 2, 3]", 4),
        (b'{"a": {"b": [2], "c": 1}}', 5),
        (b'["a,b[c{d", "\\\\", "\\",", 5]', 5),
        (b"[[[[1]]]]", 5),
        (b'[",,,,,,,,,,"]', 2),
    ],
)
def test_values_in_json_are_counted_exactly(text: bytes, nodes: int) -> None:
    """Separators outside strings count the values; each value has at least one byte."""
    check_json_nodes(text, Caps(max_nodes=nodes))
    with pytest.raises(DecodingFailed, match=f"^it contains more than {nodes - 1} values$"):
        check_json_nodes(text, Caps(max_nodes=nodes - 1))


def test_the_shape_of_a_value_is_checked_exactly() -> None:
    """Lists, tuples and mappings are levels; keys are not counted."""
    value = {"a": [1, (2, {"b": 3})], "c": "x"}
    check_shape(value, Caps(max_depth=4, max_nodes=8))
    with pytest.raises(DecodingFailed, match=r"^it contains more than 7 values$"):
        check_shape(value, Caps(max_depth=4, max_nodes=7))
    with pytest.raises(DecodingFailed, match=r"^it is nested deeper than 3 levels$"):
        check_shape(value, Caps(max_depth=3, max_nodes=8))
    check_shape(1, Caps(max_depth=0, max_nodes=1))
    with pytest.raises(DecodingFailed, match="deeper than 0"):
        check_shape([], Caps(max_depth=0))


def test_the_size_of_headers_is_estimated() -> None:
    """Names with quotes and separators, strings, and containers as JSON."""
    assert header_bytes({}) == 0
    assert header_bytes({"id": "abcd"}) == 2 + 6 + 4
    assert (
        header_bytes({"a": [1, 2], "b": {"c": object}, "retries": 1})
        == 7 + 6 + 7 + len('{"c": "<class \'object\'>"}') + 13
    )
