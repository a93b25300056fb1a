"""How deep JSON is nested, in one pass and without recursion, so that a parser never sees what is too deep."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

#: A string of JSON, in which brackets do not count, also one without an end. The quantifiers are possessive: the
#: search never goes back, so its time grows with the length only.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?+\Z)', re.DOTALL)
#: A bracket as its step: one deeper, or (as a signed byte) one less deep.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def depth_of(body: bytes) -> int:
    """Return how deep brackets in a body are nested. Those within strings do not count.

    Args:
        body: what should be JSON, in UTF-8.
    """
    brackets = _STRINGS.sub(b"", body).translate(None, _OTHERS).translate(_STEPS)
    return max(accumulate(array("b", brackets)), default=0)
