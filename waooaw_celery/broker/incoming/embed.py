"""What a task's message says is to be called afterwards: Celery takes it for granted that it can be called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.errors import DecodingFailed

#: Parts of a task's message that are lists of signatures.
_LISTS = ("callbacks", "errbacks", "chain")
#: Options of a signature that are lists of signatures, or one.
_OF_OPTIONS = ("link", "link_error", "chain")
#: Longest name of a task, in characters.
_MAX_NAME = 255


def check_embed(embed: Mapping[str, Any] | None) -> None:
    """Check the callbacks, errbacks, chain and chord of a task's message.

    Raises:
        DecodingFailed: one of them cannot be called.
    """
    for name in _LISTS:
        said = (embed or {}).get(name)
        if said is None:
            continue
        if not isinstance(said, list | tuple):
            raise DecodingFailed(f"its {name} are no list")
        for each in said:
            _check_signature(each, name)
    chord = (embed or {}).get("chord")
    if chord is not None:
        _check_signature(chord, "chord")


def _check_signature(said: Any, where: str) -> None:
    """Check one signature, and those within it. (The depth of a body is bounded before.)"""
    if not isinstance(said, Mapping):
        raise DecodingFailed(f"its {where} names no task")
    name = said.get("task")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
        raise DecodingFailed(f"its {where} names no task")
    args, kwargs, options = said.get("args"), said.get("kwargs"), said.get("options")
    if not isinstance(args, list | tuple | None):
        raise DecodingFailed(f"the arguments of {name} in its {where} are no list")
    if not isinstance(kwargs, Mapping | None) or not isinstance(options, Mapping | None):
        raise DecodingFailed(f"the options of {name} in its {where} are no mapping")
    kind = said.get("subtask_type")
    if not isinstance(kind, str | None):
        raise DecodingFailed(f"the type of {name} in its {where} is no text")
    for option in _OF_OPTIONS:
        _check_signatures((options or {}).get(option), where)
    parts = kwargs or {}
    if kind in ("group", "chain"):
        _check_signatures(parts.get("tasks"), where)
    elif kind == "chord":
        _check_signatures(parts.get("header"), where)
        _check_signatures(parts.get("body"), where)


def _check_signatures(said: Any, where: str) -> None:
    if said is None:
        return
    for each in said if isinstance(said, list | tuple) else (said,):
        _check_signature(each, where)
