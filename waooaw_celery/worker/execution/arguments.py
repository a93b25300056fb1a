"""The arguments with which a handler is called, and the value that it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from celery.app.task import Context

from waooaw_celery.discovery.contracts.check import ArgumentCheck
from waooaw_celery.discovery.contracts.contract import PARAMETERS
from waooaw_celery.errors import InvalidArguments
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.messages.validation import json_copy
from waooaw_celery.settings import ArgumentChecks

#: The attribute of a task that caches the check of the types of its arguments.
_CONTRACT = "waooaw_contract"
#: The attributes of a task that cache the signature of its handler, and how many arguments that takes by position.
_CACHE, _COUNTS = "waooaw_signature", "waooaw_argument_counts"
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a handler can be called with the arguments of a message.

    Args:
        task: the handler, an AgentTask.
        args: the positional arguments.
        kwargs: the keyword arguments.

    Raises:
        InvalidArguments: one is missing, one is too many, or one has another type than its type hint says; the
            error names it.
    """
    signature = _signature(task)
    if signature is None:
        return
    check = _contract(task)
    if check is None and not kwargs and len(args) in vars(task)[_COUNTS]:
        return
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        if takes_message(task.handler):
            raise InvalidArguments(f"{task.name} takes one argument, the payload: {error}") from None
        raise InvalidArguments(f"{task.name} takes ({_shown(signature)}): {error}") from None
    if check is not None:
        check.check(dict(kwargs) if not args else _by_name(bound))


def _contract(task: Any) -> ArgumentCheck | None:
    """Return the check of the types of a method's arguments; None: they are not checked."""
    if _CONTRACT not in vars(task):
        app, check = task.app, None
        declaration = app.declarations.get(task.agent)
        if declaration is not None and app.settings.check_arguments is not ArgumentChecks.OFF:
            contract = declaration.contract(task.handler)
            check = None if contract is None else ArgumentCheck(task.name, contract[PARAMETERS])
        setattr(task, _CONTRACT, check)
    found: ArgumentCheck | None = vars(task)[_CONTRACT]
    return found


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments of a call by name, without those of ``*args``."""
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            found[name] = value
    return found


def by_position(
    task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments of a call, as many of them by position as possible.

    Celery's ``Task.__call__`` has a parameter ``self`` of its own, which hides a handler's.
    """
    signature = _signature(task)
    if "self" not in kwargs or signature is None:
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    return bound.args, bound.kwargs


def answer_of(task: Any, request: Context, returned: Any) -> Any:
    """Return what a handler returned as the JSON value that its caller gets, as in a payload.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        returned: what it returned.

    Raises:
        InvalidMessage: an answer cannot carry a part of it; the error names the path of the part.
    """
    if request.called_directly or task.ignore_result or request.ignore_result:
        return returned
    return json_copy(returned, "the result")


def _signature(task: Any) -> inspect.Signature | None:
    if _CACHE not in vars(task):
        try:
            signature = inspect.signature(task.run)
        except ValueError:  # a callable without a signature
            signature = None
        setattr(task, _CACHE, signature)
        setattr(task, _COUNTS, range(0) if signature is None else _counts(signature))
    found: inspect.Signature | None = vars(task)[_CACHE]
    return found


def _counts(signature: inspect.Signature) -> range:
    """Return how many arguments a function can be called with, if all are given by position."""
    parameters = signature.parameters.values()
    positional = [each for each in parameters if each.kind in _BY_POSITION]
    optional = sum(each.default is not inspect.Parameter.empty for each in positional)
    needs_others = any(
        each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is inspect.Parameter.empty
        for each in parameters
    )
    return range(0) if needs_others else range(len(positional) - optional, len(positional) + 1)


def _shown(signature: inspect.Signature) -> str:
    """Return the parameters without annotations; a default is shown as ``…``, for it may be a secret."""
    parameters = [
        each.replace(
            annotation=inspect.Parameter.empty,
            default=each.default if each.default is inspect.Parameter.empty else _DEFAULT,
        )
        for each in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))[1:-1]


class _Default:
    def __repr__(self) -> str:
        return "…"


_DEFAULT = _Default()
