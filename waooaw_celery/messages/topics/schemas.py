"""JSON Schemas of topics, each in versions: what the events of a topic look like, and who checks that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing.exceptions import Unresolvable

from waooaw_celery.errors import ConfigurationError, InvalidMessage, InvalidSchema, SchemaViolation
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.topics.plain_json import as_json, unchanged
from waooaw_celery.messages.topics.regular_expressions import UnsafePattern
from waooaw_celery.messages.topics.schema_validation import (
    Endless,
    TooLong,
    UnsafeSchema,
    first_violation,
    make_validator,
)
from waooaw_celery.messages.validation import JSON, json_copy

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class SchemaCheck(StrEnum):
    """Where an event is checked against its schema."""

    PUBLISH = "publish"  #: one that breaks it is refused, and reaches nobody
    RECEIPT = "receipt"  #: each subscriber's worker checks it, and one that breaks it has FAILED there


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSchema:
    """A version of the JSON Schema of a topic.

    Attributes:
        topic: of which events.
        version: its name, such as ``1`` or ``2.1``.
        schema: the JSON Schema; of draft 2020-12, unless its ``$schema`` says otherwise.
        check: where events are checked.
    """

    topic: str
    version: str
    schema: JSON
    check: SchemaCheck = SchemaCheck.PUBLISH

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if not isinstance(self.version, str) or not _VERSION.fullmatch(self.version):
            raise InvalidMessage(
                f"a schema's version must be 1 to 32 letters, digits, '.', '_' or '-', not {self.version!r:.80}"
            )

    def __hash__(self) -> int:
        return hash((self.topic, self.version))

    def validate(self, payload: JSON) -> None:
        """Check an event; a datetime and the like is checked as its text, a Decimal as a number.

        It takes no longer than ``checking.MAX_SECONDS``, whatever the schema and the event are.

        Raises:
            SchemaViolation: it breaks the schema, or cannot be checked; the sentence says where and how.
            InvalidSchema: the schema refers to another one, which is not in it, or to itself without end, or has a
                regular expression that cannot be searched in linear time.
        """
        try:
            error = first_violation(_validator(self), as_json(payload, unchanged))
        except Unresolvable as unresolved:
            raise self._invalid(
                f"refers to what is not in it: {unresolved}. Nothing is fetched: put it under $defs"
            ) from unresolved
        except Endless as endless:
            raise self._invalid("refers to itself without end: let each reference lead deeper") from endless
        except (UnsafePattern, UnsafeSchema) as unsafe:
            raise self._invalid(f"cannot be used: {unsafe}") from unsafe
        except TooLong as late:
            raise SchemaViolation(self.topic, self.version, "$", f"{late}: simplify the schema") from late
        except RecursionError as deep:
            raise SchemaViolation(self.topic, self.version, "$", "it is nested too deeply to be checked") from deep
        except Exception as broken:  # a value that jsonschema does not expect, such as a Decimal that is no number
            raise SchemaViolation(
                self.topic, self.version, "$", f"it cannot be checked: {broken!r:.200}"
            ) from broken
        if error is not None:
            raise SchemaViolation(self.topic, self.version, error.json_path, error.message[:500])

    def check_itself(self) -> None:
        """Check that it is a JSON Schema, and one whose check ends.

        Raises:
            InvalidSchema: it is not; the sentence says why.
        """
        try:
            validator_for(self.schema, default=Draft202012Validator).check_schema(self.schema)
            first_violation(_validator(self), None)
        except SchemaError as error:
            raise InvalidSchema(
                f"the schema of {self.topic} in version {self.version} is none: {error.message:.500} "
                f"at {error.json_path}"
            ) from error
        except Endless as endless:
            raise self._invalid("refers to itself without end: let each reference lead deeper") from endless
        except TooLong as late:
            raise self._invalid(f"is too complex: {late}") from late
        except Unresolvable:  # told when an event is checked: another part may never be asked for
            return
        except RecursionError as deep:
            raise self._invalid("is nested too deeply") from deep
        except Exception as error:
            raise self._invalid(f"cannot be used: {error!s:.300}") from error

    def _invalid(self, problem: str) -> InvalidSchema:
        return InvalidSchema(f"the schema of {self.topic} in version {self.version} {problem}")


class SchemaRegistry:
    """The schemas that this application's code registers."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], TopicSchema] = {}

    def register(
        self,
        topic: str,
        schema: Mapping[str, Any],
        *,
        version: str = "1",
        check: SchemaCheck = SchemaCheck.PUBLISH,
    ) -> TopicSchema:
        """Register a version of the schema of a topic.

        Workers make it known to all publishers. A publish that names no version is checked against the newest:
        the one registered last.

        Args:
            topic: of which events; no pattern.
            schema: the JSON Schema.
            version: its name; what was once published under it should not change.
            check: where events are checked.

        Raises:
            InvalidMessage: the topic or the version cannot be one.
            InvalidSchema: the schema is none, or its check might not end.
            ConfigurationError: the code has another schema of this version already.
        """
        made = TopicSchema(
            topic=topic,
            version=version,
            schema=as_json(json_copy(schema, "schema"), float),
            check=SchemaCheck(check),
        )
        made.check_itself()
        if self._known.setdefault((topic, version), made) != made:
            raise ConfigurationError(f"{topic} has another schema of version {version}: give this a new one")
        return made

    def all(self) -> tuple[TopicSchema, ...]:
        """Return all, in the order in which they were registered."""
        return tuple(self._known.values())


def select_schema(known: Iterable[TopicSchema], topic: str, version: str | None) -> TopicSchema | None:
    """Return the schema that an event is to be checked against, or None when its topic has none.

    Args:
        known: schemas, the newest version of a topic last.
        topic: of the event.
        version: the one that the event is of; None: the newest.

    Raises:
        InvalidMessage: there is no such version.
    """
    versions = {schema.version: schema for schema in known if schema.topic == topic}
    if version is None:
        return next(reversed(versions.values()), None)
    if version not in versions:
        raise InvalidMessage(
            f"{topic} has no schema of version {version!r} (known: {', '.join(versions) or 'none'}): "
            "register it with app.schemas.register()"
        )
    return versions[version]


#: Made once for each schema: by topic and version, the schema and what checks it.
_validators: dict[tuple[str, str], tuple[JSON, Validator]] = {}


def _validator(schema: TopicSchema) -> Validator:
    key = schema.topic, schema.version
    made, validator = _validators.get(key, (None, None))
    if validator is None or made != schema.schema:
        validator = make_validator(schema.schema)
        _validators[key] = schema.schema, validator
    return validator
