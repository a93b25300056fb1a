"""Checks the signatures in a task's message: the tasks that Celery calls after it without checking them itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.errors import DecodingFailed

#: Parts of a task's message that are lists of signatures.
_LISTS = ("callbacks", "errbacks", "chain")
#: Options of a signature that are a signature or a list of them.
_SIGNATURE_OPTIONS = ("link", "link_error", "chain")
#: The longest name of a task, in characters.
_MAX_NAME = 255


def check_embed(embed: Mapping[str, Any] | None) -> None:
    """Check the callbacks, errbacks, chain and chord of a task's message.

    Args:
        embed: The third part of the body of a task's message; None: there is nothing to call.

    Raises:
        DecodingFailed: One of them is not a valid signature.
    """
    for name in _LISTS:
        signatures = (embed or {}).get(name)
        if signatures is None:
            continue
        if not isinstance(signatures, list | tuple):
            raise DecodingFailed(f"its {name} are not a list")
        for signature in signatures:
            _check_signature(signature, name)
    chord = (embed or {}).get("chord")
    if chord is not None:
        _check_signature(chord, "chord")


def _check_signature(signature: Any, where: str) -> None:
    """Check one signature and those within it. (The nesting depth of the body is already limited.)"""
    if not isinstance(signature, Mapping):
        raise DecodingFailed(f"its {where} does not name a task")
    name = signature.get("task")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
        raise DecodingFailed(f"its {where} does not name a task")
    args, kwargs, options = signature.get("args"), signature.get("kwargs"), signature.get("options")
    if not isinstance(args, list | tuple | None):
        raise DecodingFailed(f"the arguments of {name} in its {where} are not a list")
    if not isinstance(kwargs, Mapping | None) or not isinstance(options, Mapping | None):
        raise DecodingFailed(f"the options of {name} in its {where} are not a mapping")
    kind = signature.get("subtask_type")
    if not isinstance(kind, str | None):
        raise DecodingFailed(f"the type of {name} in its {where} is not text")
    for option in _SIGNATURE_OPTIONS:
        _check_signatures((options or {}).get(option), where)
    parts = kwargs or {}
    if kind in ("group", "chain"):
        _check_signatures(parts.get("tasks"), where)
    elif kind == "chord":
        _check_signatures(parts.get("header"), where)
        _check_signatures(parts.get("body"), where)


def _check_signatures(value: Any, where: str) -> None:
    if value is None:
        return
    for signature in value if isinstance(value, list | tuple) else (value,):
        _check_signature(signature, where)
