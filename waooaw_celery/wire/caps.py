"""The caps: how large, deep and many-parted what is sent and received may be."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from waooaw_celery.errors import DecodingFailed

MIB = 1024 * 1024
#: What stands around a raw item of a queue's body and headers.
_AROUND = 4096
#: A text in JSON, with its quotes. One that does not end is matched too: to look for the end from each of its
#: quotes would take the square of the time.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What is accepted, at both ends.

    Attributes:
        max_body_bytes: largest body, as it travels.
        max_expanded_bytes: largest body, unpacked.
        max_header_bytes: largest headers, as JSON.
        max_depth: deepest nesting of a body, in containers; three of them are Celery's, around the payload.
        max_nodes: most values in a body: each number, text, list, … counts as one.
        content_types: formats of the bodies of tasks that are read; None: this
            package's, and whatever Kombu has not disabled.
        codecs: content types of the codecs that are unpacked; None: every one that can be bounded.
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
        """Return the caps that the options of a transport name."""
        return cls(**{name: options[name] for name in CAP_NAMES if name in options})

    @property
    def max_item_bytes(self) -> int:
        """The largest item of a Redis queue: a body of text is written as text within text there."""
        return 2 * (self.max_body_bytes + self.max_header_bytes) + _AROUND


#: The names of the caps, which are also options of a transport.
CAP_NAMES = tuple(field.name for field in fields(Caps))


class ActiveCaps:
    """The caps of this process, for what Kombu decodes and unpacks without asking any application.

    They are the widest of its applications': each of them has its own at its own connections. Which formats are
    accepted, Kombu asks by itself.
    """

    def __init__(self) -> None:
        self.caps = Caps()
        self._set = False

    def widen(self, caps: Caps) -> None:
        """Take in an application's caps; the first one's replace the defaults."""
        wide = (caps, self.caps) if self._set else (caps,)
        names = [name for name in CAP_NAMES if name.startswith("max_")]
        self.caps = Caps(**{name: max(getattr(each, name) for each in wide) for name in names})
        self._set = True


active_caps = ActiveCaps()


def check_size(body: bytes, caps: Caps) -> None:
    """Check how large an unpacked body is.

    Raises:
        DecodingFailed: larger than what is accepted.
    """
    if len(body) > caps.max_expanded_bytes:
        raise DecodingFailed(f"its body has {len(body)} bytes, more than {caps.max_expanded_bytes}")


def check_json_nodes(text: bytes, caps: Caps) -> None:
    """Check how many values JSON text holds, without building any of them.

    Raises:
        DecodingFailed: more than what is accepted.
    """
    # Each value but the first comes with a character of its own at least, and a comma or a bracket.
    if len(text) <= caps.max_nodes or _separators(text) < caps.max_nodes:
        return
    if _separators(_TEXT.sub(b"", text)) >= caps.max_nodes:  # and not those within texts
        raise DecodingFailed(f"it holds more than {caps.max_nodes} values")


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def check_shape(value: Any, caps: Caps) -> None:
    """Check how deep a value is nested, and how many values it holds.

    Raises:
        DecodingFailed: more than what is accepted.
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
            raise DecodingFailed(f"it holds more than {caps.max_nodes} values")
        level = children
    raise DecodingFailed(f"it is nested deeper than {caps.max_depth} levels")


_LISTS = frozenset({list, tuple})
_CONTAINERS = _LISTS | {dict}


def header_bytes(headers: Mapping[str, Any]) -> int:
    """Return about how large headers are, in bytes of JSON."""
    size = 0
    for name, value in headers.items():
        size += len(name) + 6
        if isinstance(value, str):
            size += len(value)
        elif type(value) in _CONTAINERS:
            size += len(json.dumps(value, default=str))
    return size
