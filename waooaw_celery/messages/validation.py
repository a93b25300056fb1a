"""The rules for the parts of a message: names, ids, times to live, values."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from time import time as seconds_now
from typing import Any, Self, TypeAlias
from uuid import UUID

from kombu.utils import json as kombu_json

from waooaw_celery.errors import InvalidMessage

#: A value that a message can carry: None, bool, int, finite float, str, list, or a dict with str keys, as in JSON;
#: and datetime, date, time, UUID, Decimal and bytes, which every format restores.
JSON: TypeAlias = Any

#: Deepest nesting of a payload, in containers. Real payloads are far below it, and every format can carry it.
MAX_DEPTH = 64

#: Longest integer, in bits. Python refuses to parse an integer of more than 4300 digits.
MAX_BITS = 4096

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
#: Prefixes of the task names of Celery and of this package; no agent can have such a name.
RESERVED_NAMES = frozenset({"celery", "waooaw"})
_TAG = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,62}")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class LocalTime(datetime):
    """A time read from this computer's clock, as the default of a field.

    The store replaces it by the time of the reference clock when it records it: see ``ReferenceClock.corrected``.
    """

    @classmethod
    def read(cls) -> Self:
        """Return the time of this computer's clock, aware UTC."""
        return cls.fromtimestamp(seconds_now(), UTC)


def check_agent_name(name: object, what: str = "agent") -> str:
    """Return the name if it is a valid name of an agent.

    Args:
        name: the name.
        what: what the error calls it, such as ``from_agent``.

    Raises:
        InvalidMessage: it does not match ``^[a-z0-9][a-z0-9_-]{0,62}$`` or is reserved.
    """
    if not isinstance(name, str) or not AGENT_NAME.fullmatch(name):
        raise InvalidMessage(
            f"{what} must be 1 to 63 characters of a-z, 0-9, _ and -, beginning with a letter or a digit, "
            f"not {name!r:.80}"
        )
    if name in RESERVED_NAMES:
        raise InvalidMessage(f"{what} {name!r} is reserved: choose another name")
    return name


def check_tags(tags: object) -> tuple[str, ...]:
    """Return an agent's capability tags, sorted and without duplicates.

    Raises:
        InvalidMessage: a tag is not 1 to 63 characters of a-z, 0-9, ``.``, ``:``, ``_`` and ``-``.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidMessage(f"capabilities must be a list of tags, such as ['ocr'], not {tags!r:.80}")
    found = list(tags)
    for tag in found:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise InvalidMessage(
                "a capability must be 1 to 63 characters of a-z, 0-9, '.', ':', '_' and '-', "
                f"beginning with a letter or a digit, not {tag!r:.80}"
            )
    return tuple(sorted(set(found)))


def check_id(value: object, what: str) -> str:
    """Return the id if it is valid. The characters are restricted because ids appear in logs and in Redis keys.

    Args:
        value: the id.
        what: what the error calls it, such as ``message_id``.

    Raises:
        InvalidMessage: it is not 1 to 128 letters, digits, ``.``, ``_``, ``:`` and ``-``.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidMessage(f"{what} must be 1 to 128 letters, digits, '.', '_', ':' or '-', not {value!r:.80}")
    return value


def check_ttl(seconds: object) -> None:
    """Check a time to live.

    Raises:
        InvalidMessage: it is neither None nor a positive number of seconds below 3.2e9 (100 years).
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9:
        raise InvalidMessage(f"ttl_seconds must be None (no expiry) or a positive number, not {seconds!r}")


#: Types whose values are copied without a check, for speed: most values in payloads have one of them.
_PLAIN = frozenset({str, bool, type(None)})
#: Types that JSON does not have; they are written with a tag and restored from it.
_TAGGED = (datetime, date, time, UUID, Decimal, bytes)
#: The keys of a tagged value in Kombu's JSON, which every program that uses Kombu can read.
_TYPE, _VALUE = "__type__", "__value__"
_kombu = kombu_json.JSONEncoder()


def json_copy(value: object, where: str, depth: int = 0) -> JSON:
    """Return a deep copy of a value, made of types that a message can carry.

    A tuple becomes a list, an enum member its value, and a dataclass or pydantic model a dict of its fields,
    because the receiver does not have the sender's classes.

    Args:
        value: the value to copy.
        where: what the error calls the value, such as ``payload``.
        depth: number of containers around the value.

    Raises:
        InvalidMessage: a message cannot carry a part of it; the error names the path of the part and what to use
            instead.

    Example:
        >>> json_copy({"points": (1, 2)}, "payload")
        {'points': [1, 2]}
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise InvalidMessage(f"{where} is an integer of more than {MAX_BITS} bits: send it as a string")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidMessage(f"{where} is {value}, which JSON does not have: use None or a string")
        return value
    if depth >= MAX_DEPTH:
        raise InvalidMessage(f"{where[:80]}… is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list | tuple):
        return [
            item if type(item) in _PLAIN else json_copy(item, f"{where}[{index}]", depth + 1)
            for index, item in enumerate(value)
        ]
    if isinstance(value, Mapping):
        return _json_dict(value, where, depth)
    if isinstance(value, _TAGGED):
        return value
    named = _fields(value)
    if named is not None:
        return _json_dict(named, where, depth)
    raise InvalidMessage(
        f"{where} is a {type(value).__name__}, which cannot be sent: use None, bool, int, float, str, list, dict, "
        "datetime, date, time, UUID, Decimal, bytes, or an enum, a dataclass or a pydantic model made of these"
    )


def tagged(value: object) -> JSON:
    """Return the representation of a value that a format does not have. Encoders call it for unknown types.

    A type that JSON does not have is written as Kombu's JSON writes it, ``{"__type__": …, "__value__": …}``, so
    that any program that uses Kombu can read it. This includes types that ``kombu.utils.json.register_type``
    registered.

    Raises:
        TypeError: no representation of the value is known.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int):  # too large for the format
        return {_TYPE: "int", _VALUE: str(value)}
    named = _fields(value)
    return _kombu.default(value) if named is None else named


def untagged(found: dict[str, Any]) -> Any:
    """Return the value that a decoded mapping represents, or the mapping itself if it is not a tagged value.

    Raises:
        ValueError, TypeError, …: the tagged value is invalid, or its type is not registered.
    """
    if len(found) != 2 or _TYPE not in found or _VALUE not in found:
        return found
    if found[_TYPE] == "int":
        if not isinstance(found[_VALUE], str):
            raise TypeError(f"a tagged int is {found[_VALUE]!r:.80}")
        return int(found[_VALUE])
    return kombu_json.object_hook(found)


def mapping(pairs: list[tuple[str, Any]]) -> Any:
    """Return the mapping of decoded pairs, or the tagged value that it represents. Decoders call it.

    Raises:
        ValueError: a key occurs twice. The rest as ``untagged``.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a mapping has a key twice")
    return untagged(found) if len(found) == 2 else found  # a tagged value has two keys


def restored(value: JSON) -> JSON:
    """Return a value that was decoded as plain JSON, with its tagged values restored.

    A tagged value that cannot be restored stays a mapping.
    """
    if isinstance(value, list):
        return [item if type(item) in _PLAIN else restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: item if type(item) in _PLAIN else restored(item) for key, item in value.items()}
    try:
        return untagged(found)
    except (ValueError, TypeError, ArithmeticError, AttributeError):
        return found


def _fields(value: object) -> dict[str, Any] | None:
    """Return the fields of a dataclass or pydantic model by name; None for any other value."""
    pydantic = sys.modules.get("pydantic")  # if it is not imported, the value is not one of its models
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        model: dict[str, Any] = value.model_dump()
        return model
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _json_dict(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, JSON]:
    if _TYPE in value and _VALUE in value:
        # Kombu's JSON decoder would read it as a tagged value, and fail.
        raise InvalidMessage(f"{where} has both keys '__type__' and '__value__': rename one")
    for key in value:
        if not isinstance(key, str):
            raise InvalidMessage(f"{where} has the key {key!r:.80}: the keys of a JSON object must be strings")
    return {
        key: item if type(item) in _PLAIN else json_copy(item, f"{where}.{key}", depth + 1)
        for key, item in value.items()
    }
