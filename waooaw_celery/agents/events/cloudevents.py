"""Converts events to and from CloudEvents 1.0 in the JSON format."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.topics.attributes import SPEC_VERSION
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import JSON

#: Prefix of the URIs of topic schemas; the topic, a colon and the version follow.
SCHEMA_URI = "urn:waooaw:schema:"


def to_cloudevent(message: Message) -> dict[str, JSON]:
    """Return the event of a message as a CloudEvent in the JSON format.

    Values of types that JSON does not have become text. ``correlationid`` and ``causationid`` are those of
    CloudEvents' correlation extension; ``replay`` is this package's own extension.

    Raises:
        InvalidMessage: the message is not a published EVENT.

    Example:
        >>> json.dumps(to_cloudevent(message))  # send it as application/cloudevents+json
    """
    event = message.event
    if event is None:
        raise InvalidMessage(f"message {message.message_id} is not a published EVENT")
    schema = f"{SCHEMA_URI}{event.topic}:{event.schema_version}" if event.schema_version else None
    cloudevent = {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": event.source,
        "type": event.topic,
        "time": event.time.isoformat(),
        "subject": event.subject,
        "datacontenttype": "application/json",
        "dataschema": schema,
        "correlationid": message.correlation_id,
        "causationid": message.causation_id,
        "replay": event.replay or None,
        "data": as_json(message.payload, str),
    }
    return {name: value for name, value in cloudevent.items() if value is not None or name == "data"}


def from_cloudevent(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``EventBus.publish`` that publish a CloudEvent of another system.

    Args:
        event: a CloudEvent in the JSON format, with JSON data. Of its extensions, only ``correlationid`` is used.

    Raises:
        InvalidMessage: it is not a CloudEvent 1.0, or its data is not JSON; the error gives the reason.

    Example:
        >>> bus.publish(**from_cloudevent(request.json()), from_agent="gateway")
    """
    if not isinstance(event, Mapping):
        raise InvalidMessage(f"a CloudEvent in the JSON format must be an object, not {event!r:.80}")
    if event.get("specversion") != SPEC_VERSION:
        raise InvalidMessage(f"the CloudEvent's specversion is {event.get('specversion')!r}, not {SPEC_VERSION}")
    for name in ("id", "source", "type"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise InvalidMessage(f"the CloudEvent has no {name!r}, or it is not a string")
    schema = event.get("dataschema") or ""
    prefix = f"{SCHEMA_URI}{event['type']}:"
    arguments = {
        "topic": event["type"],
        "event": _data(event),
        "event_id": event["id"],
        "source": event["source"],
        "subject": event.get("subject"),
        "time": _time(event.get("time")),
        "correlation_id": event.get("correlationid"),
        "schema_version": schema.removeprefix(prefix) if schema.startswith(prefix) else None,
    }
    return {name: value for name, value in arguments.items() if value is not None or name == "event"}


def _data(event: Mapping[str, Any]) -> JSON:
    if "data_base64" in event:
        raise InvalidMessage("the CloudEvent has binary data (data_base64): an event's payload must be JSON")
    content_type = str(event.get("datacontenttype") or "application/json").partition(";")[0].strip().lower()
    data = event.get("data")
    if content_type != "application/json" and not content_type.endswith("+json") and not isinstance(data, str):
        raise InvalidMessage(f"the CloudEvent's data is {content_type}: it must be JSON, or a string")
    return data


def _time(text: Any) -> datetime | None:
    if text is None:
        return None
    try:
        at = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise InvalidMessage(f"the CloudEvent's time {text!r:.80} is not an RFC 3339 time") from error
    if at.tzinfo is None:
        raise InvalidMessage(f"the CloudEvent's time {text!r:.80} has no time zone")
    return at
