"""What makes a message an event: attributes that all messages of one event share, under CloudEvents' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.validation import JSON, check_id

#: The version of CloudEvents whose names travel.
SPEC_VERSION = "1.0"
#: Longest source or subject, in characters.
MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAttributes:
    """What an event is, whoever gets it; the attributes of CloudEvents 1.0, and two of ours.

    Attributes:
        id: of the event: its subscribers' messages, and its replays, share it.
        topic: what happened; CloudEvents' ``type``.
        source: where: the agent that published it, or the URI that a CloudEvent from elsewhere brought along.
        time: when it happened, aware UTC.
        subject: what it happened to, or None.
        schema_version: version of the topic's schema that it is of, or None.
        replay: whether it is told again, by a replay or to a subscriber that catches up.

    Raises:
        InvalidMessage: an attribute breaks its rule; the sentence names it.
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
            raise InvalidMessage("the time of an event must be an aware datetime, such as datetime.now(UTC)")
        if not isinstance(self.replay, bool):
            raise InvalidMessage(f"replay must be true or false, not {self.replay!r:.80}")
        object.__setattr__(self, "time", self.time.astimezone(UTC))

    def to_envelope(self) -> dict[str, JSON]:
        """Return what travels, and what the ledger keeps."""
        said = {
            "specversion": SPEC_VERSION,
            "id": self.id,
            "source": self.source,
            "type": self.topic,
            "time": self.time.isoformat(),
            "subject": self.subject,
            "schemaversion": self.schema_version,
            "replay": self.replay or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def from_envelope(cls, said: Any) -> Self | None:
        """Return the attributes that came with a message, or None when it is no event.

        Raises:
            InvalidMessage: they are damaged.
        """
        if said is None:
            return None
        try:
            if not isinstance(said, Mapping):
                raise TypeError("no mapping")
            return cls(
                id=said["id"],
                topic=said["type"],
                source=said["source"],
                time=datetime.fromisoformat(said["time"]),
                subject=said.get("subject"),
                schema_version=said.get("schemaversion"),
                replay=said.get("replay", False),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidMessage(f"the attributes of the event are damaged ({error}): {said!r:.200}") from error


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise InvalidMessage(f"{what} must be 1 to {MAX_TEXT} printable characters, not {value!r:.80}")
