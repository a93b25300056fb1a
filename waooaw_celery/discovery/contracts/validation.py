"""Validates the arguments of a call with jsonschema, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from referencing.exceptions import Unresolvable

from waooaw_celery.messages.topics.plain_json import as_json, unchanged
from waooaw_celery.messages.topics.regular_expressions import UnsafePattern
from waooaw_celery.messages.topics.schema_validation import (
    EndlessReference,
    UnsafeSchema,
    ValidationTimeout,
    make_validator,
    violations,
)
from waooaw_celery.messages.validation import JSON


class UnusableSchema(ValueError):
    """Nothing can be validated against the schema of a method's parameters."""


def problems_of(schema: Mapping[str, Any], arguments: Mapping[str, JSON]) -> list[str]:
    """Return what is wrong with arguments, the most relevant problem first, each with its path.

    Args:
        schema: the JSON Schema of the parameters, as one object.
        arguments: the arguments by name.

    Raises:
        UnusableSchema: the schema is invalid, or cannot be validated in bounded time.
    """
    try:
        found = violations(make_validator(schema), as_json(dict(arguments), unchanged))
    except ValidationTimeout as late:
        return [f"at $: {late}"]
    except RecursionError:
        return ["at $: they are nested too deeply"]
    except (UnsafeSchema, UnsafePattern, EndlessReference, Unresolvable) as error:
        raise UnusableSchema(str(error)) from error
    return [f"at {each.json_path}: {each.message}" for each in found]
