"""The contract of a method: JSON Schemas of its parameters and its result, from its type hints."""

from __future__ import annotations

import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from functools import partial
from typing import Any

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.topics.regular_expressions import UnsafePattern, linear_pattern

logger = get_logger(__name__)

#: The dialect of the schemas.
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: The parts of a contract: a schema of the parameters as one object, one of the result, and one of each part of a
#: streamed answer.
PARAMETERS, RESULT, PART, DESCRIPTION = "parameters", "result", "part", "description"
#: Is true in the contract of a workflow.
WORKFLOW = "workflow"
_STREAMS = (Iterator, Iterable, Generator, AsyncIterator, AsyncIterable, AsyncGenerator)
_ANY: dict[str, Any] = {}


def method_contract(function: Callable[..., Any], bind: bool = False) -> dict[str, Any] | None:
    """Return the contract of a method.

    A parameter without a type hint, or with one that JSON Schema cannot express, accepts every JSON value.

    Args:
        function: the method, as it was written.
        bind: whether its first parameter is the Celery task.

    Returns:
        A JSON object with ``parameters``, ``result`` and, for a generator, ``part``; None for a callable without a
        signature.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[1 if bind else 0 :]
    except (ValueError, TypeError):
        return None
    hints = _hints(function)
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    rest = next((each for each in parameters if each.kind is each.VAR_KEYWORD), None)
    result = _result_hints(function, hints.get("return", Any))
    wanted: dict[str, tuple[Any, Any]] = {
        f"p:{each.name}": (hints.get(each.name, Any), "validation") for each in named
    }
    wanted |= {part: (hint, "serialization") for part, hint in result.items()}
    if rest is not None:
        wanted["rest"] = hints.get(rest.name, Any), "validation"
    schemas, definitions = _schemas(wanted)
    accepted: dict[str, Any] = {
        "type": "object",
        "properties": {each.name: schemas[f"p:{each.name}"] for each in named},
        "additionalProperties": False if rest is None else schemas["rest"] or True,
    }
    if required := [each.name for each in named if each.default is each.empty]:
        accepted["required"] = required
    contract: dict[str, Any] = {PARAMETERS: _with_definitions(accepted, definitions)}
    contract |= {part: _with_definitions(schemas[part], definitions) for part in result}
    text = inspect.getdoc(function)
    if text:
        contract[DESCRIPTION] = text.partition("\n\n")[0].replace("\n", " ")
    return contract


def foreign_contract(
    parameters: Mapping[str, Any], result: Mapping[str, Any] | None = None, description: str | None = None
) -> dict[str, Any]:
    """Return the contract of a method that stands for one of another program, such as a tool of an MCP server.

    Args:
        parameters: JSON Schema of its parameters, as one object.
        result: JSON Schema of its result; None: it is unknown.
        description: what it does.
    """
    contract: dict[str, Any] = {PARAMETERS: _cleaned(dict(parameters)), RESULT: _cleaned(dict(result or _ANY))}
    if description:
        contract[DESCRIPTION] = description.strip()
    return contract


def _hints(function: Any) -> dict[str, Any]:
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001 - a hint that only a type checker can resolve names no type here
        logger.debug("the type hints of %r cannot be resolved: %s", function, error)
        return {}


def _result_hints(function: Any, hint: Any) -> dict[str, Any]:
    """Return the hint of the result and, of a generator, that of its parts."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    is_stream = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if not is_stream or origin not in _STREAMS:
        return {RESULT: Any if is_stream else hint}
    returned = arguments[2] if origin is Generator and len(arguments) > 2 else Any
    return {RESULT: returned, PART: arguments[0] if arguments else Any}


def _schemas(wanted: Mapping[str, tuple[Any, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of each hint, and the definitions to which they refer."""
    # Imported here: only a process with agents needs it, and importing it takes a tenth of a second.
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    found: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for name, (hint, mode) in wanted.items():
        try:
            schema = {} if hint is Any else TypeAdapter(hint).json_schema(mode=mode)
        except (PydanticUserError, NameError, TypeError, ValueError, RecursionError):  # not a type of JSON values
            schema = _ANY
        given = schema.get("$defs", {})
        if any(definitions.get(each, part) != part for each, part in given.items()):
            schema, given = _ANY, {}  # two types have one name
        definitions |= given
        found[name] = _cleaned({key: value for key, value in schema.items() if key != "$defs"})
    return found, {name: _cleaned(each) for name, each in definitions.items()}


def _cleaned(schema: Any) -> Any:
    """Return a schema without titles, defaults (they may be secrets) and patterns that cannot be checked."""
    if isinstance(schema, list):
        return [_cleaned(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned = {}
    for key, value in schema.items():
        if key in ("title", "default") and not isinstance(value, dict):
            continue
        if key == "pattern" and isinstance(value, str) and not _is_linear(value):
            continue
        if key in ("properties", "$defs", "patternProperties"):
            cleaned[key] = {name: _cleaned(each) for name, each in value.items()}
        else:
            cleaned[key] = value if key in ("const", "enum", "examples") else _cleaned(value)
    return cleaned


def _is_linear(pattern: str) -> bool:
    try:
        linear_pattern(pattern)
    except UnsafePattern:
        return False
    return True


def _with_definitions(schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with the definitions that it needs."""
    needed: dict[str, Any] = {}
    pending: list[Any] = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
            name = str(part.get("$ref", "")).rpartition("/")[2]
            if name in definitions and name not in needed:
                needed[name] = definitions[name]
                pending.append(definitions[name])
    return {**schema, "$defs": needed} if needed else schema
