"""The rules for what is put into a message: names, ids, times to live, JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from waooaw_celery.errors import InvalidMessage

#: A value that JSON can carry: None, bool, int, finite float, str, list, or a dict with str keys.
JSON: TypeAlias = Any

#: Deepest nesting of a payload, in containers: far above real payloads, far below Python's recursion limit.
MAX_DEPTH = 100

#: Longest integer, in bits: Python reads no more than 4300 digits of one.
MAX_BITS = 4096

AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
#: Task names that begin with these belong to Celery and to this package, never to an agent.
RESERVED_NAMES = frozenset({"celery", "waooaw"})
_TAG = re.compile(r"[a-z0-9][a-z0-9_.:-]{0,62}")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


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


def json_copy(value: object, where: str, depth: int = 0) -> JSON:
    """Return a deep copy of a JSON value; tuples become lists.

    Args:
        value: what to copy.
        where: the name of the value in an error's sentence, such as ``payload``.
        depth: how many containers are around it.

    Raises:
        InvalidMessage: a part is no JSON value; the sentence gives its path and what to use instead.
    """
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
    raise InvalidMessage(
        f"{where} is a {type(value).__name__}, which is no JSON value: "
        "use None, bool, int, float, str, list or dict (a datetime as .isoformat(), an enum as .value)"
    )


def _json_dict(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, JSON]:
    if "__type__" in value and "__value__" in value:
        # Kombu's JSON decoder takes this pair for a coded object; the receiver would lose the message.
        raise InvalidMessage(f"{where} has the keys '__type__' and '__value__' together: rename one")
    for key in value:
        if not isinstance(key, str):
            raise InvalidMessage(f"{where} has the key {key!r:.80}: the keys of a JSON object are strings")
    return {
        key: item if type(item) in _PLAIN else json_copy(item, f"{where}.{key}", depth + 1)
        for key, item in value.items()
    }
