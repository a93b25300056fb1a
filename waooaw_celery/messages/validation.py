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
from os import urandom
from time import time as seconds_now
from typing import Any, Self, TypeAlias
from uuid import UUID

from kombu.utils import json as kombu_json

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.wording import with_article

#: A value that a message can carry: None, bool, int, finite float, str, list, or a dict with str keys, as in JSON;
#: and datetime, date, time, UUID, Decimal and bytes, which every format restores.
JSON: TypeAlias = Any

#: Deepest nesting of a payload, in containers. Real payloads are far below it, and every format can carry it.
MAX_DEPTH = 64

#: Longest integer, in bits. Python refuses to parse an integer of more than 4300 digits.
MAX_BITS = 4096

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_MAX_NAME = 63
#: The longest identity of an agent, in characters.
_MAX_IDENTITY = 255
#: Prefixes of the task names of Celery and of this package; no agent can have such a name.
RESERVED_NAMES = frozenset({"celery", "waooaw"})
_TAG = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,62}")
#: The digit of a UUID that also says its variant, from a random digit.
_VARIANTS = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


#: The most names of agents that are known to be valid without a look at their characters.
MAX_CACHED_NAMES = 10_000
_valid_names: set[str] = set()


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
    if type(name) is str and name in _valid_names:
        return name
    if not isinstance(name, str) or not AGENT_NAME.fullmatch(name):
        proposed = _valid_name(name)
        raise InvalidMessage(
            f"{what} must be 1 to 63 characters of a-z, 0-9, _ and -, beginning with a letter or a digit, "
            f"not {name!r:.80}" + (f": {proposed!r} would do" if proposed else "")
        )
    if name in RESERVED_NAMES:
        raise InvalidMessage(f"{what} {name!r} is reserved: choose another name")
    if len(_valid_names) < MAX_CACHED_NAMES:
        _valid_names.add(name)
    return name


def _valid_name(name: object) -> str | None:
    """Return the valid name that is nearest to an invalid one, or None."""
    if not isinstance(name, str):
        return None
    proposed = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:_MAX_NAME].rstrip("-_")
    return proposed if AGENT_NAME.fullmatch(proposed) and proposed not in RESERVED_NAMES else None


def check_searchable(text: str, what: str) -> str:
    """Return a text to search for, if a database can compare it with what it stores.

    Args:
        text: the text.
        what: what the error calls it.

    Raises:
        InvalidMessage: it has a NUL character or an unpaired surrogate, which no stored text has.
    """
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidMessage(f"{what} has a NUL character or an unpaired surrogate, which no stored text has")
    return text


def check_identity(value: object, what: str = "identity") -> str:
    """Return the identity of an agent, such as a DID or an e-mail address, if it is one line of text.

    Args:
        value: the identity.
        what: what the error calls it.

    Raises:
        InvalidMessage: it is empty, longer than 255 characters, or has spaces or control characters.
    """
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _MAX_IDENTITY
        or not value.isprintable()
        or " " in value
    ):
        raise InvalidMessage(
            f"{what} must be 1 to {_MAX_IDENTITY} printable characters without spaces, such as "
            f"{'summarise@>=2' if what == 'capability' else 'did:web:example.org:crm or crm@example.org'}, "
            f"not {value!r:.80}"
        )
    return value


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


class NewId(str):
    """An id that was just generated, so that no earlier message can have it."""

    __slots__ = ()


def new_id() -> str:
    """Return a new random id: the text of a UUID of version 4, in half the time that ``uuid.uuid4`` takes."""
    digits = urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"


def check_optional_ids(message: Any) -> None:
    """Check the ids that a message may have beside its own.

    Raises:
        InvalidMessage: one of them is invalid.
    """
    if message.correlation_id is not None:
        check_id(message.correlation_id, "correlation_id")
    if message.conversation_id is not None:
        check_id(message.conversation_id, "conversation_id")
    if message.causation_id is not None:
        check_id(message.causation_id, "causation_id")
    if message.ledger is not None:
        check_id(message.ledger, "ledger")


def check_ttl(seconds: object) -> None:
    """Check a time to live.

    Raises:
        InvalidMessage: it is neither None nor a positive number of seconds below 3.2e9 (100 years).
    """
    if seconds is None or (type(seconds) is float and 0 < seconds < 3.2e9):
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9:
        raise InvalidMessage(f"ttl_seconds must be None (no expiry) or a positive number, not {seconds!r}")


#: Types whose values are copied without a check, for speed: most values in payloads have one of them.
_PLAIN = frozenset({str, bool, type(None)})
_TEXT = frozenset({str})
#: The types of JSON. A value of another type may be of a subclass.
_COMMON = _PLAIN | {int, float, list, dict}
#: Where a value is: what the error calls the whole, or the place of its container and its index or key there. The
#: path becomes text only for an error: a large payload has a hundred thousand paths.
_Where: TypeAlias = "str | tuple[_Where, int | str]"
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
    return _copy(value, where, depth)


def _copy(value: Any, where: _Where, depth: int) -> JSON:
    kind = type(value)
    if kind not in _COMMON:  # a subclass, or a type that JSON does not have
        return _uncommon_copy(value, where, depth)
    if kind in _PLAIN:
        return value
    if kind is int:
        if value.bit_length() > MAX_BITS:
            raise InvalidMessage(f"{_path(where)} is an integer of more than {MAX_BITS} bits: send it as a string")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise InvalidMessage(f"{_path(where)} is {value}, which JSON does not have: use None or a string")
        return value
    if depth >= MAX_DEPTH:
        raise InvalidMessage(f"{_path(where)[:80]}… is nested deeper than {MAX_DEPTH} levels")
    if kind is dict:
        return _json_dict(value, where, depth)
    copy = value.copy()
    if not _PLAIN.issuperset(map(type, value)):
        for index, item in enumerate(value):
            if type(item) not in _PLAIN:
                copy[index] = _copy(item, (where, index), depth + 1)
    return copy


def _uncommon_copy(value: Any, where: _Where, depth: int) -> JSON:
    if isinstance(value, Enum):
        return _copy(value.value, where, depth)
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        _copy(int(value), where, depth)  # checks it
        return value
    if isinstance(value, float):
        _copy(float(value), where, depth)
        return value
    if depth >= MAX_DEPTH:
        raise InvalidMessage(f"{_path(where)[:80]}… is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list | tuple):
        return _copy(list(value), where, depth)
    if isinstance(value, Mapping):
        return _json_dict(value, where, depth)
    if isinstance(value, _TAGGED):
        return value
    named = _fields(value)
    if named is not None:
        return _json_dict(named, where, depth)
    raise InvalidMessage(
        f"{_path(where)} is {with_article(type(value).__name__)}, which cannot be sent: use None, bool, int, "
        "float, str, list, dict, datetime, date, time, UUID, Decimal, bytes, "
        "or an enum, a dataclass or a pydantic model made of these"
    )


def _path(where: _Where) -> str:
    """Return the path of a part as text, such as ``payload.items[3]``."""
    steps = ""
    while not isinstance(where, str):
        where, step = where
        steps = (f".{step}" if isinstance(step, str) else f"[{step}]") + steps
    return where + steps


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


def _json_dict(value: Mapping[Any, Any], where: _Where, depth: int) -> dict[str, JSON]:
    if _TYPE in value and _VALUE in value:
        # Kombu's JSON decoder would read it as a tagged value, and fail.
        raise InvalidMessage(f"{_path(where)} has both keys '__type__' and '__value__': rename one")
    copy = dict(value)
    if not _TEXT.issuperset(map(type, copy)):
        for key in copy:
            if not isinstance(key, str):
                raise InvalidMessage(
                    f"{_path(where)} has the key {key!r:.80}: the keys of a JSON object must be strings"
                )
    if not _PLAIN.issuperset(map(type, copy.values())):
        for key, item in copy.items():
            if type(item) not in _PLAIN:
                copy[key] = _copy(item, (where, key), depth + 1)
    return copy
