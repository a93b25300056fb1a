"""The caps: limits on the size, depth and number of values of what is sent and received."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from waooaw_celery.errors import DecodingFailed

MIB = 1024 * 1024
#: Bytes allowed in an item of a Redis queue beside its body and headers.
_ITEM_OVERHEAD = 4096
#: A JSON string with its quotes. A string without an end also matches: searching for the end from each of its
#: quotes would take quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
#: A list or an object without values, outside of strings.
_EMPTY = re.compile(rb"\[\s*\]|\{\s*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What is accepted, at both ends.

    Attributes:
        max_body_bytes: Largest body as it travels.
        max_expanded_bytes: Largest body after decompression.
        max_header_bytes: Largest headers, as JSON.
        max_depth: Deepest nesting of lists and mappings in a body. Celery uses three levels around the payload.
        max_nodes: Largest number of values in a body: each number, string, list, … counts as one.
        content_types: Accepted formats of task bodies; None: this package's, and those that Kombu has enabled.
        codecs: Accepted content types of codecs; None: every codec whose output can be bounded.
    """

    max_body_bytes: int = 16 * MIB
    max_expanded_bytes: int = 16 * MIB
    max_header_bytes: int = 64 * 1024
    max_depth: int = 80
    max_nodes: int = 250_000
    content_types: Collection[str] | None = None
    codecs: Collection[str] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the caps that a transport's options contain, with defaults for the rest."""
        return cls(**{name: options[name] for name in CAP_NAMES if name in options})

    @property
    def max_item_bytes(self) -> int:
        """Largest item of a Redis queue, in which the body is a JSON string and may be escaped."""
        return 2 * (self.max_body_bytes + self.max_header_bytes) + _ITEM_OVERHEAD


#: The names of the caps. They are also options of the transports.
CAP_NAMES = tuple(field.name for field in fields(Caps))


def check_size(body: bytes, caps: Caps) -> None:
    """Check the size of a decompressed body.

    Raises:
        DecodingFailed: It is larger than ``max_expanded_bytes``.
    """
    if len(body) > caps.max_expanded_bytes:
        raise DecodingFailed(f"its body has {len(body)} bytes, more than {caps.max_expanded_bytes}")


def check_json_nodes(text: bytes, caps: Caps) -> None:
    """Check the number of values in JSON text, without building any of them.

    Raises:
        DecodingFailed: There are more than ``max_nodes``.
    """
    # Each value except the first follows a comma, or is the first of a list or an object.
    if len(text) <= caps.max_nodes or _separators(text) < caps.max_nodes:
        return
    without_strings = _STRING.sub(b"0", text)
    if _separators(without_strings) - len(_EMPTY.findall(without_strings)) >= caps.max_nodes:
        raise DecodingFailed(f"it contains more than {caps.max_nodes} values")


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def check_shape(value: Any, caps: Caps) -> None:
    """Check the nesting and the number of values of a decoded value.

    Raises:
        DecodingFailed: It is deeper than ``max_depth`` or has more than ``max_nodes`` values.
    """
    level, nodes = [value], 1
    for _ in range(caps.max_depth + 1):
        level = [each for each in level if type(each) in _CONTAINERS]
        if not level:
            return
        children: list[Any] = []
        for container in level:
            children += container if type(container) in _LISTS else container.values()
        nodes += len(children)
        if nodes > caps.max_nodes:
            raise DecodingFailed(f"it contains more than {caps.max_nodes} values")
        level = children
    raise DecodingFailed(f"it is nested deeper than {caps.max_depth} levels")


_LISTS = frozenset({list, tuple})
_CONTAINERS = _LISTS | {dict}


def header_bytes(headers: Mapping[str, Any]) -> int:
    """Return the approximate size of headers as JSON, in bytes."""
    size = 0
    for name, value in headers.items():
        size += len(name) + 6
        if isinstance(value, str):
            size += len(value)
        elif type(value) in _CONTAINERS:
            size += len(json.dumps(value, default=str))
    return size
