"""Values for tests of the wire: all that can travel, made by Hypothesis."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

#: A zone travels as its offset from UTC at that moment.
NONE = timedelta(0)
#: Text that every format can carry: without halves of surrogate pairs.
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
    | st.datetimes(timezones=st.timezones()).map(lambda at: at.replace(tzinfo=timezone(at.utcoffset() or NONE)))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False).map(Decimal)
)


def _mapping(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    tag = {"__type__", "__value__"}
    return st.dictionaries(texts, inner, max_size=4).filter(lambda made: not tag <= set(made))


values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | _mapping(inner), max_leaves=20)
