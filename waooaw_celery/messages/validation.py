"""The rules for what is put into a message: names, ids, times to live, values."""

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

#: A value that can travel: None, bool, int, finite float, str, list, or a dict with str keys, as JSON has them,
#: and datetime, date, time, UUID, Decimal and bytes, which every format here brings back as what they were.
JSON: TypeAlias = Any

#: Deepest nesting of a payload, in containers: far above real payloads, and what every format can carry.
MAX_DEPTH = 64

#: Longest integer, in bits: Python reads no more than 4300 digits of one.
MAX_BITS = 4096

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
#: Task names that begin with these belong to Celery and to this package, never to an agent.
RESERVED_NAMES = frozenset({"celery", "waooaw"})
_TAG = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,62}")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class LocalTime(datetime):
    """A moment that this computer's clock gave, since nobody named one.

    Whoever writes it down replaces it by what the reference clock said then: see ``clock.ReferenceClock``.
    """

    @classmethod
    def read(cls) -> Self:
        """Return the time that this computer's clock shows, aware UTC."""
        return cls.fromtimestamp(seconds_now(), UTC)


def check_agent_name(name: object, what: str = "agent") -> str:
    """Return the name when it can be an agent's.

    Raises:
        InvalidMessage: it breaks the grammar ``^[a-z0-9][a-z0-9_-]{0,62}$`` or is reserved.
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
    """Return the tags of what an agent can do, sorted, each once.

    Raises:
        InvalidMessage: one is not 1 to 63 of the characters of an agent's name, ``.`` and ``:``.
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
    """Return the id when it can be one.

    Raises:
        InvalidMessage: it is not 1 to 128 characters of letters, digits and ``. _ : -``: an id is printed in
            logs and is part of Redis keys.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidMessage(f"{what} must be 1 to 128 letters, digits, '.', '_', ':' or '-', not {value!r:.80}")
    return value


def check_ttl(seconds: object) -> None:
    """Check a time to live.

    Raises:
        InvalidMessage: it is neither None nor a positive, finite number of seconds below 100 years.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9:
        raise InvalidMessage(f"ttl_seconds must be None (no expiry) or a positive number, not {seconds!r}")


#: Types whose values need no look: most of what payloads are made of.
_PLAIN = frozenset({str, bool, type(None)})
#: Values that no format has, and all bring back.
_TAGGED = (datetime, date, time, UUID, Decimal, bytes)
#: How Kombu's JSON writes a value that JSON lacks; every program that uses Kombu reads it.
_TYPE, _VALUE = "__type__", "__value__"
_kombu = kombu_json.JSONEncoder()


def json_copy(value: object, where: str, depth: int = 0) -> JSON:
    """Return a deep copy of a value that can travel.

    Tuples become lists, an enum's member its value, a dataclass and a pydantic model a dict of its fields: a
    receiver has none of the sender's classes.

    Args:
        value: what to copy.
        where: the name of the value in an error's sentence, such as ``payload``.
        depth: how many containers are around it.

    Raises:
        InvalidMessage: a part cannot travel; the sentence gives its path and what to use instead.
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
        f"{where} is a {type(value).__name__}, which cannot travel: use None, bool, int, float, str, list, dict, "
        "datetime, date, time, UUID, Decimal, bytes, or an enum, a dataclass or a pydantic model made of these"
    )


def tagged(value: object) -> JSON:
    """Return what stands for a value that a format lacks: for encoders, which call it for what they do not know.

    What JSON lacks is written as Kombu's own JSON writes it, ``{"__type__": …, "__value__": …}``, so that any
    program that uses Kombu reads it; so are types that were registered with ``kombu.utils.json.register_type``.

    Raises:
        TypeError: the value cannot travel.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int):  # that the format has no room for
        return {_TYPE: "int", _VALUE: str(value)}
    named = _fields(value)
    return _kombu.default(value) if named is None else named


def untagged(found: dict[str, Any]) -> Any:
    """Return the value that a decoded mapping stands for, or the mapping itself.

    Raises:
        ValueError, TypeError, …: it stands for something that cannot be, or of a type that nobody registered.
    """
    if len(found) != 2 or _TYPE not in found or _VALUE not in found:
        return found
    if found[_TYPE] == "int":
        if not isinstance(found[_VALUE], str):
            raise TypeError(f"a tagged int is {found[_VALUE]!r:.80}")
        return int(found[_VALUE])
    return kombu_json.object_hook(found)


def mapping(pairs: list[tuple[str, Any]]) -> Any:
    """Return the mapping of decoded pairs, or the value that it stands for: for decoders, which call it for each.

    Raises:
        ValueError: a key is there twice; the rest as ``untagged``.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a mapping has a key twice")
    return untagged(found) if len(found) == 2 else found  # as many as a tag has


def restored(value: JSON) -> JSON:
    """Return a value that was read as bare JSON, with what stands for others put in place of the tags.

    What nobody here can restore stays as it was written.
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
    """Return the fields of a dataclass's or a model's instance by name; None for anything else."""
    pydantic = sys.modules.get("pydantic")  # without it in the process, no value can be one of its models
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        model: dict[str, Any] = value.model_dump()
        return model
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _json_dict(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, JSON]:
    if _TYPE in value and _VALUE in value:
        # Kombu's JSON decoder takes this pair for a coded object; the receiver would lose the message.
        raise InvalidMessage(f"{where} has the keys '__type__' and '__value__' together: rename one")
    for key in value:
        if not isinstance(key, str):
            raise InvalidMessage(f"{where} has the key {key!r:.80}: the keys of a JSON object are strings")
    return {
        key: item if type(item) in _PLAIN else json_copy(item, f"{where}.{key}", depth + 1)
        for key, item in value.items()
    }
