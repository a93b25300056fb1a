"""The versions of each topic's JSON Schema, and the validation of events against them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from waooaw_celery.errors import ConfigurationError, InvalidMessage, SchemaConflict
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import JSON, json_copy

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class SchemaCheck(StrEnum):
    """Where an event is validated against its schema."""

    PUBLISH = "publish"  #: the publisher validates it, and does not publish an invalid event
    RECEIPT = "receipt"  #: each subscriber's worker validates it, and an invalid event becomes FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSchema:
    """One version of the JSON Schema of a topic.

    Attributes:
        topic: the topic.
        version: name of the version, such as ``1`` or ``2.1``.
        schema: the JSON Schema, of draft 2020-12 unless its ``$schema`` names another.
        check: where events are validated.

    Raises:
        InvalidMessage: the topic or the version is invalid.
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
        """Validate the payload of an event, within 5 seconds.

        Dates, times, UUIDs and bytes are validated as text, a Decimal as a number.

        Raises:
            SchemaViolation: the payload breaks the schema, or cannot be validated in time; the error says where.
            InvalidSchema: the schema refers to another document or to itself without end, or has a regular
                expression that cannot be searched in linear time.
        """
        # Imported when an event is validated: a process without schemas does not load jsonschema.
        from waooaw_celery.messages.topics.payload_validation import NamedSchema, validate_payload

        validate_payload(NamedSchema(self.topic, self.version, self.schema), payload)

    @property
    def text(self) -> str:
        """The schema as text in which the order of keys makes no difference, but 1 and true do."""
        return json.dumps(self.schema, sort_keys=True, ensure_ascii=False)

    def check_same(self, known: TopicSchema, where: str) -> None:
        """Check that this schema has the text with which its version is known.

        Args:
            known: the known schema of the same topic and version.
            where: where it is known, for the error.

        Raises:
            SchemaConflict: the texts differ.
        """
        if self.text != known.text:
            raise SchemaConflict(
                f"{self.topic} already has another schema in version {self.version} {where}: events were checked "
                "against it. Register the changed schema under a new version"
            )

    def check_itself(self) -> None:
        """Check that the schema is a JSON Schema, and that validation against it ends.

        Raises:
            InvalidSchema: it is not; the error gives the reason.
        """
        from waooaw_celery.messages.topics.payload_validation import NamedSchema, check_schema

        check_schema(NamedSchema(self.topic, self.version, self.schema))


class SchemaRegistry:
    """The schemas that the code of an application registers."""

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

        Workers announce it to all publishers. A publish without a version uses the version registered last.

        Args:
            topic: the topic, without wildcards.
            schema: the JSON Schema.
            version: name of the version. A changed schema needs a new version.
            check: where events are validated.

        Raises:
            InvalidMessage: the topic or the version is invalid.
            InvalidSchema: the schema is invalid, or validation against it might not end.
            SchemaConflict: another schema is registered for this version. A schema that another process has
                registered is found when this one publishes, or starts as a worker.
            ConfigurationError: the same schema is registered with another ``check``.

        Example:
            >>> app.schemas.register("order.paid", {"type": "object", "required": ["order_id"]})
        """
        made = TopicSchema(
            topic=topic,
            version=version,
            schema=as_json(json_copy(schema, "schema"), float),
            check=SchemaCheck(check),
        )
        made.check_itself()
        known = self._known.setdefault((topic, version), made)
        made.check_same(known, "in this application")
        if known.check is not made.check:
            raise ConfigurationError(
                f"the schema of {topic} in version {version} is already registered with check={known.check.name}: "
                "use one check"
            )
        return known

    def all(self) -> tuple[TopicSchema, ...]:
        """Return all schemas, in the order of their registration."""
        return tuple(self._known.values())


def select_schema(known: Iterable[TopicSchema], topic: str, version: str | None) -> TopicSchema | None:
    """Return the schema for an event, or None if its topic has none.

    Args:
        known: the known schemas, the newest version of each topic last.
        topic: topic of the event.
        version: version of the schema; None: the newest.

    Raises:
        InvalidMessage: the topic has no schema of this version.
    """
    versions = {schema.version: schema for schema in known if schema.topic == topic}
    if version is None:
        return next(reversed(versions.values()), None)
    if version not in versions:
        raise InvalidMessage(
            f"{topic} has no schema in version {version!r} (known: {', '.join(versions) or 'none'}): "
            "register it with app.schemas.register()"
        )
    return versions[version]
