"""Helpers for tests of the wire: Hypothesis strategies for every value of a payload, and encoding by name."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.formats import decode, encode, find_format

FORMATS = ("json", "msgpack", "protobuf")
CODECS = ("none", "zlib", "real-gzip", "zstd", "bzip2", "lzma")
#: A time zone travels as its offset from UTC at that time.
NO_OFFSET = timedelta(0)
#: Strings that every format can encode: no lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary(max_size=20)
    | st.uuids()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.datetimes(timezones=st.timezones()).map(
        lambda at: at.replace(tzinfo=timezone(at.utcoffset() or NO_OFFSET))
    )
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False).map(Decimal)
)


def _mapping(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tag = {"__type__", "__value__"}
    return st.dictionaries(texts, inner, max_size=4).filter(lambda made: not tag <= set(made))


values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | _mapping(inner), max_leaves=20)


def encoded(value: Any, name: str) -> bytes:
    body = encode(value, find_format(name))
    return body.encode() if isinstance(body, str) else body


def decoded(body: bytes, name: str, **caps: Any) -> Any:
    return decode(body, find_format(name).content_type, None, Caps(**caps))


def nested_list(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value
