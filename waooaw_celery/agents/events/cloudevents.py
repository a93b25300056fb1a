"""Events as CloudEvents 1.0 in JSON, to and from systems that speak it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.topics.attributes import SPEC_VERSION
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import JSON

#: How the URIs of the schemas of topics begin, each followed by the topic, a colon and the version.
SCHEMA_URI = "urn:waooaw:schema:"


def to_cloudevent(message: Message) -> dict[str, JSON]:
    """Return the event that a message tells of, as a CloudEvent in the JSON format.

    What JSON lacks is text there. Its ``correlationid`` and ``causationid`` are those of CloudEvents' extension
    for correlation; ``replay`` is an extension of ours.

    Raises:
        InvalidMessage: it is no event.

    Example:
        >>> json.dumps(to_cloudevent(message))  # to be sent as application/cloudevents+json
    """
    event = message.event
    if event is None:
        raise InvalidMessage(f"message {message.message_id} is no published EVENT")
    schema = f"{SCHEMA_URI}{event.topic}:{event.schema_version}" if event.schema_version else None
    said = {
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
    return {name: value for name, value in said.items() if value is not None or name == "data"}


def from_cloudevent(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which ``publish`` publishes a CloudEvent that came from elsewhere.

    Args:
        event: a CloudEvent in the JSON format. Its data is JSON; extensions but ``correlationid`` are left out.

    Raises:
        InvalidMessage: it is no CloudEvent 1.0, or its data is no JSON; the sentence says why.

    Example:
        >>> bus.publish(**from_cloudevent(request.json()), from_agent="gateway")
    """
    if not isinstance(event, Mapping):
        raise InvalidMessage(f"a CloudEvent in the JSON format is an object, not {event!r:.80}")
    if event.get("specversion") != SPEC_VERSION:
        raise InvalidMessage(f"the CloudEvent's specversion is {event.get('specversion')!r}, not {SPEC_VERSION}")
    for name in ("id", "source", "type"):
        if not isinstance(event.get(name), str) or not event[name]:
            raise InvalidMessage(f"the CloudEvent has no {name!r}, which must be a text")
    schema = event.get("dataschema") or ""
    prefix = f"{SCHEMA_URI}{event['type']}:"
    found = {
        "topic": event["type"],
        "event": _data(event),
        "event_id": event["id"],
        "source": event["source"],
        "subject": event.get("subject"),
        "time": _time(event.get("time")),
        "correlation_id": event.get("correlationid"),
        "schema_version": schema.removeprefix(prefix) if schema.startswith(prefix) else None,
    }
    return {name: value for name, value in found.items() if value is not None or name == "event"}


def _data(event: Mapping[str, Any]) -> JSON:
    if "data_base64" in event:
        raise InvalidMessage("the CloudEvent has binary data (data_base64): an event's payload is JSON")
    kind = str(event.get("datacontenttype") or "application/json").partition(";")[0].strip().lower()
    data = event.get("data")
    if kind != "application/json" and not kind.endswith("+json") and not isinstance(data, str):
        raise InvalidMessage(f"the CloudEvent's data is {kind}: an event's payload is JSON, or a text")
    return data


def _time(text: Any) -> datetime | None:
    if text is None:
        return None
    try:
        moment = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise InvalidMessage(f"the CloudEvent's time {text!r:.80} is no moment as RFC 3339 writes it") from error
    if moment.tzinfo is None:
        raise InvalidMessage(f"the CloudEvent's time {text!r:.80} has no time zone")
    return moment
