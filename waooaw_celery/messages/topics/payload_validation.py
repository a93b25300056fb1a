"""Validates the payloads of events with jsonschema, and names what is wrong with a payload or a schema."""

from __future__ import annotations

from typing import NamedTuple

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing.exceptions import Unresolvable

from waooaw_celery.errors import InvalidSchema, SchemaProblem, SchemaViolation
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

#: Most problems of one payload that are told, and the most characters of the path and the text of each.
MAX_PROBLEMS = 20
MAX_CHARACTERS = 500


class NamedSchema(NamedTuple):
    """A JSON Schema, and the topic and version whose schema it is."""

    topic: str
    version: str
    document: JSON


#: What is wrong with a schema whose reference leads back to itself.
_ENDLESS = "has an endless $ref to itself: each $ref must lead deeper into the payload"


def validate_payload(schema: NamedSchema, payload: JSON) -> None:
    """Validate the payload of an event: see ``TopicSchema.validate``."""
    try:
        found = violations(_validator(schema), as_json(payload, unchanged))
    except Unresolvable as unresolved:
        raise _invalid(
            schema,
            f"has a $ref to another document, which is never fetched: {unresolved}. Put that schema under $defs",
        ) from unresolved
    except EndlessReference as endless:
        raise _invalid(schema, _ENDLESS) from endless
    except (UnsafePattern, UnsafeSchema) as unsafe:
        raise _invalid(schema, f"cannot be used: {unsafe}") from unsafe
    except ValidationTimeout as late:
        raise _violation(schema, f"{late}: simplify the schema") from late
    except RecursionError as deep:
        raise _violation(schema, "it is nested too deeply") from deep
    except Exception as broken:  # a value that jsonschema does not expect, such as a Decimal that is NaN
        raise _violation(schema, f"it cannot be validated: {broken!r:.200}") from broken
    if found:
        problems = [
            SchemaProblem(_shortened(each.json_path), _shortened(each.message)) for each in found[:MAX_PROBLEMS]
        ]
        raise SchemaViolation(schema.topic, schema.version, problems, max(len(found) - MAX_PROBLEMS, 0))


def check_schema(schema: NamedSchema) -> None:
    """Check a schema itself: see ``TopicSchema.check_itself``."""
    try:
        validator_for(schema.document, default=Draft202012Validator).check_schema(schema.document)
        violations(_validator(schema), None)
    except SchemaError as error:
        raise InvalidSchema(
            f"the schema of {schema.topic} in version {schema.version} is not a JSON Schema: "
            f"{error.message:.500} at {error.json_path}"
        ) from error
    except EndlessReference as endless:
        raise _invalid(schema, _ENDLESS) from endless
    except ValidationTimeout as late:
        raise _invalid(schema, f"is too complex: {late}") from late
    except Unresolvable:  # reported when an event needs that part of the schema
        return
    except RecursionError as deep:
        raise _invalid(schema, "is nested too deeply") from deep
    except Exception as error:
        raise _invalid(schema, f"cannot be used: {error!s:.300}") from error


def _violation(schema: NamedSchema, problem: str) -> SchemaViolation:
    return SchemaViolation(schema.topic, schema.version, [SchemaProblem("$", problem)])


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def _invalid(schema: NamedSchema, problem: str) -> InvalidSchema:
    return InvalidSchema(f"the schema of {schema.topic} in version {schema.version} {problem}")


#: The validator of each schema, and the schema that it was made of, by topic and version.
_validators: dict[tuple[str, str], tuple[JSON, Validator]] = {}


def _validator(schema: NamedSchema) -> Validator:
    key = schema.topic, schema.version
    made, validator = _validators.get(key, (None, None))
    if validator is None or made != schema.document:
        validator = make_validator(schema.document)
        _validators[key] = schema.document, validator
    return validator
