"""The conversion to and from CloudEvents, checked with the CloudEvents project's own package."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from waooaw_celery import Message, MessageType
from waooaw_celery.agents.events.cloudevents import from_cloudevent, to_cloudevent
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.attributes import EventAttributes


def message(payload: Any, **fields: Any) -> Message:
    given = {"id": "e-1", "topic": "task.created", "source": "boss", "time": datetime(2026, 1, 2, tzinfo=UTC)}
    return Message(
        from_agent="boss",
        to_agent="worker",
        message_type=MessageType.EVENT,
        payload=payload,
        correlation_id="thread",
        causation_id="e-1",
        event=EventAttributes(**(given | fields)),
    )


@pytest.mark.parametrize("payload", [{"n": [1, None, "ü"]}, [1, 2], "text", 7, True, None])
def test_the_package_reads_our_cloudevent(payload: Any) -> None:
    """It finds all attributes, our extensions and the data."""
    made = to_cloudevent(message(payload, subject="it", schema_version="2", replay=True))
    read = JSONFormat().read(CloudEvent, json.dumps(made))
    assert read.get_specversion() == "1.0"
    assert (read.get_id(), read.get_source(), read.get_type()) == ("e-1", "boss", "task.created")
    assert read.get_time() == datetime(2026, 1, 2, tzinfo=UTC)
    assert read.get_subject() == "it"
    assert read.get_datacontenttype() == "application/json"
    assert read.get_dataschema() == "urn:waooaw:schema:task.created:2"
    assert read.get_extension("correlationid") == "thread"
    assert read.get_extension("replay") is True
    assert read.get_data() == payload


@pytest.mark.parametrize("payload", [{"n": [1, None, "ü"]}, [1, 2], "text", 7])
def test_we_read_the_packages_cloudevent(payload: Any) -> None:
    """Its attributes become arguments of publish."""
    event = CloudEvent(
        {
            "id": "A234-1234",
            "source": "https://github.com/cloudevents/spec/pull",
            "type": "com.github.pull_request.opened",
            "specversion": "1.0",
            "subject": "123",
            "time": datetime(2018, 4, 5, 17, 31, tzinfo=UTC),
            "datacontenttype": "application/json",
            "correlationid": "thread",
            "comexampleextension": "left out",
        },
        payload,
    )
    assert from_cloudevent(json.loads(JSONFormat().write(event))) == {
        "topic": "com.github.pull_request.opened",
        "event": payload,
        "event_id": "A234-1234",
        "source": "https://github.com/cloudevents/spec/pull",
        "subject": "123",
        "time": datetime(2018, 4, 5, 17, 31, tzinfo=UTC),
        "correlation_id": "thread",
    }


def test_a_round_trip_keeps_the_attributes() -> None:
    """An event that is converted and read back is the same."""
    made = from_cloudevent(to_cloudevent(message({"n": 1}, subject="it", schema_version="2")))
    assert made == {
        "topic": "task.created",
        "event": {"n": 1},
        "event_id": "e-1",
        "source": "boss",
        "subject": "it",
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "correlation_id": "thread",
        "schema_version": "2",
    }


GOOD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b"}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("text", "must be an object"),
        ({**GOOD, "specversion": "0.3"}, "specversion is '0.3'"),
        ({**GOOD, "id": ""}, "no 'id'"),
        ({**GOOD, "type": 7}, "no 'type'"),
        ({**GOOD, "time": "yesterday"}, "RFC 3339"),
        ({**GOOD, "time": "2026-01-01T00:00:00"}, "no time zone"),
        ({**GOOD, "data_base64": "AA=="}, "binary data"),
        ({**GOOD, "datacontenttype": "image/png", "data": {}}, "image/png"),
    ],
)
def test_an_invalid_cloudevent_is_refused(event: Any, error: str) -> None:
    """The error gives the reason."""
    with pytest.raises(InvalidMessage, match=error):
        from_cloudevent(event)


def test_other_types_are_text_in_a_cloudevent() -> None:
    """No digit of a Decimal is lost, and a reader needs no package of ours."""
    made = to_cloudevent(message({"at": datetime(2026, 1, 2, tzinfo=UTC), "total": Decimal("0.10"), "raw": b"a"}))
    assert json.loads(json.dumps(made))["data"] == {
        "at": "2026-01-02T00:00:00+00:00",
        "total": "0.10",
        "raw": "YQ==",
    }


def test_only_an_event_can_be_a_cloudevent() -> None:
    """A command has no topic."""
    with pytest.raises(InvalidMessage, match="not a published EVENT"):
        to_cloudevent(Message(from_agent="a", to_agent="b"))
