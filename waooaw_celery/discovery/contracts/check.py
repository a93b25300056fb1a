"""Checks the arguments of a call against the JSON Schema of its parameters.

Most arguments are valid. A function that is made of the schema finds that out in microseconds. Only arguments that
it does not accept are validated by jsonschema, which decides, and says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from typing import Any, TypeAlias
from uuid import UUID

from waooaw_celery.errors import InvalidArguments
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON

logger = get_logger(__name__)

Accepts: TypeAlias = Callable[[Any], bool]

#: Most problems that one error tells, and the most characters of each.
MAX_PROBLEMS, MAX_CHARACTERS = 5, 300
#: Keywords that accept or refuse nothing by themselves.
_ANNOTATIONS = frozenset({"$schema", "$id", "$comment", "$defs", "title", "description", "default", "examples"})
_KNOWN = _ANNOTATIONS | {
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "$ref"),
    "format",
}
#: The types that a message carries, and the format of the text that each of them is in JSON.
_FORMATS: dict[str, tuple[type, ...]] = {
    "date-time": (datetime,),
    "date": (date,),
    "time": (time,),
    "uuid": (UUID,),
    "binary": (bytes,),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str, datetime, date, time, UUID, bytes),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
#: The deepest schema of which a function is made.
_MAX_DEPTH = 20


class ArgumentCheck:
    """The check of the arguments of one method.

    Args:
        target: name of the handler, such as ``worker-1.get_status``, for the error.
        schema: the JSON Schema of its parameters, as one object.
    """

    def __init__(self, target: str, schema: Mapping[str, Any]) -> None:
        self._target, self._schema = target, schema
        self._accepts = _compiled(schema, schema.get("$defs", {}), 0)
        self._is_usable = True

    def check(self, arguments: Mapping[str, JSON]) -> None:
        """Check arguments.

        Args:
            arguments: the arguments by name.

        Raises:
            InvalidArguments: they do not match the schema; the error names the path of each part that does not.
        """
        if self._accepts(arguments):
            return
        problems = self._wrong_names(arguments) or self._wrong_values(dict(arguments))
        if problems:
            told = "; ".join(problems[:MAX_PROBLEMS])
            more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
            raise InvalidArguments(f"{self._target} takes ({self._shown()}): {told}{more}")

    def _wrong_names(self, arguments: Mapping[str, JSON]) -> list[str]:
        """Return which arguments are missing or unexpected, in the words of Python."""
        known, required = self._schema.get("properties", {}), self._schema.get("required", ())
        found = [f"missing a required argument: {name!r}" for name in required if name not in arguments]
        if self._schema.get("additionalProperties") is False:
            found += [f"got an unexpected keyword argument {name!r}" for name in arguments if name not in known]
        return found

    def _wrong_values(self, arguments: dict[str, JSON]) -> list[str]:
        """Return which arguments have other types than the method takes, each with its path."""
        if not self._is_usable:
            return []
        # Imported here: a process whose requests are right needs no jsonschema.
        from waooaw_celery.discovery.contracts.validation import UnusableSchema, problems_of

        try:
            return [each[:MAX_CHARACTERS] for each in problems_of(self._schema, arguments)]
        except UnusableSchema as error:
            self._is_usable = False
            logger.warning(
                "the arguments of %s are not checked: its schema cannot be used: %s",
                self._target,
                error,
                extra={"action": "contract_not_usable"},
            )
            return []

    def _shown(self) -> str:
        """Return the parameters. No default is shown, for it may be a secret."""
        required = self._schema.get("required", ())
        told = [name if name in required else f"{name}=…" for name in self._schema.get("properties", {})]
        if self._schema.get("additionalProperties") is not False:
            told.append("**")
        return ", ".join(told)


def _compiled(schema: Any, definitions: Mapping[str, Any], depth: int) -> Accepts:
    """Return a function that returns True only for values that a schema accepts.

    It returns False also where it does not know.
    """
    if schema is True or schema == {}:
        return _always
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH or not set(schema) <= _KNOWN:
        return _never
    checks: list[Accepts] = []
    if "$ref" in schema:
        checks.append(_referenced(str(schema["$ref"]), definitions, depth))
    if "type" in schema:
        checks.append(_of_type(schema, definitions, depth))
    elif {"properties", "required", "additionalProperties", "items", "format"} & set(schema):
        return _never
    if "anyOf" in schema:
        checks.append(_any_of([_compiled(each, definitions, depth + 1) for each in schema["anyOf"]]))
    for name in ("enum", "const"):
        if name in schema:
            checks.append(_one_of(schema["enum"] if name == "enum" else [schema["const"]]))
    if len(checks) == 1:
        return checks[0]
    return (lambda value: all(check(value) for check in checks)) if checks else _always


def _always(_: Any) -> bool:
    return True


def _never(_: Any) -> bool:
    return False


def _referenced(reference: str, definitions: Mapping[str, Any], depth: int) -> Accepts:
    name = reference.removeprefix("#/$defs/")
    return _compiled(definitions[name], definitions, depth + 1) if name in definitions else _never


def _any_of(checks: list[Accepts]) -> Accepts:
    return lambda value: any(check(value) for check in checks)


def _one_of(values: list[Any]) -> Accepts:
    texts = frozenset(value for value in values if isinstance(value, str))
    return lambda value: type(value) is str and value in texts


def _of_type(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> Accepts:
    kind = schema["type"]
    if not isinstance(kind, str) or kind not in _TYPES:
        return _never
    if kind == "object":
        return _object(schema, definitions, depth)
    if kind == "array":
        item = _compiled(schema.get("items", True), definitions, depth + 1)
        return lambda value: type(value) is list and (item is _always or all(map(item, value)))
    if "format" in schema:
        accepted = frozenset(_FORMATS.get(schema["format"], ()))
        return lambda value: type(value) in accepted
    kinds = frozenset(_TYPES[kind])
    return lambda value: type(value) in kinds


def _object(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> Accepts:
    properties = {
        name: _compiled(each, definitions, depth + 1) for name, each in schema.get("properties", {}).items()
    }
    required = tuple(schema.get("required", ()))
    others = schema.get("additionalProperties", True)
    other = _never if others is False else _compiled(others, definitions, depth + 1)

    def accepts(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name in required:
            if name not in value:
                return False
        return all(properties.get(name, other)(item) for name, item in value.items())

    return accepts
