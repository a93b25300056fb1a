"""Event attributes: the facts that all messages of one event share, under the names of CloudEvents 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.validation import JSON, check_id

#: Version of CloudEvents that the attributes follow.
SPEC_VERSION = "1.0"
#: Longest source, subject or schema version, in characters.
MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAttributes(JsonForm):
    """The attributes of an event: those of CloudEvents 1.0, and ``schema_version`` and ``replay``.

    Attributes:
        id: id of the event; all its messages and replays share it.
        topic: what happened, such as ``task.created``; the ``type`` of CloudEvents.
        source: where it happened: the agent that published it, or the URI in a CloudEvent of another system.
        time: when it happened, aware UTC.
        subject: what it happened to, or None.
        schema_version: version of the topic's schema that it follows, or None.
        replay: whether this delivery is a replay, or part of a new subscriber's catch-up.

    Raises:
        InvalidMessage: an attribute is invalid; the error names it.
    """

    id: str
    topic: str
    source: str
    time: datetime
    subject: str | None = None
    schema_version: str | None = None
    replay: bool = False

    def __post_init__(self) -> None:
        check_id(self.id, "event_id")
        check_topic(self.topic)
        _check_text(self.source, "source")
        for name in ("subject", "schema_version"):
            if getattr(self, name) is not None:
                _check_text(getattr(self, name), name)
        if not isinstance(self.time, datetime) or self.time.tzinfo is None:
            raise InvalidMessage(
                f"the time of an event must be an aware datetime, such as datetime.now(UTC), not {self.time!r:.80}"
            )
        if not isinstance(self.replay, bool):
            raise InvalidMessage(f"replay must be true or false, not {self.replay!r:.80}")
        object.__setattr__(self, "time", self.time.astimezone(UTC))

    def to_envelope(self) -> dict[str, JSON]:
        """Return the JSON object that the message carries and the ledger stores, without empty attributes."""
        attributes = {
            "specversion": SPEC_VERSION,
            "id": self.id,
            "source": self.source,
            "type": self.topic,
            "time": self.time.isoformat(),
            "subject": self.subject,
            "schemaversion": self.schema_version,
            "replay": self.replay or None,
        }
        return {name: value for name, value in attributes.items() if value is not None}

    @classmethod
    def from_envelope(cls, attributes: Any) -> Self | None:
        """Return the event attributes of an envelope, or None if the message is not an event.

        Raises:
            InvalidMessage: the attributes are damaged.
        """
        if attributes is None:
            return None
        try:
            if not isinstance(attributes, Mapping):
                raise TypeError("not a mapping")
            return cls(
                id=attributes["id"],
                topic=attributes["type"],
                source=attributes["source"],
                time=datetime.fromisoformat(attributes["time"]),
                subject=attributes.get("subject"),
                schema_version=attributes.get("schemaversion"),
                replay=attributes.get("replay", False),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidMessage(f"the event attributes are damaged ({error}): {attributes!r:.200}") from error


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise InvalidMessage(f"{what} must be 1 to {MAX_TEXT} printable characters, not {value!r:.80}")
