"""CloudEvents at the HTTP edge, made by the cloudevents package: structured, binary, batched, and bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from edge_server import served
from edge_world import EdgeWorld, edge_world
from support import until

from waooaw_celery.edges import EdgeOptions, Protocol, create_edge
from waooaw_celery.edges.access.authentication import ApiKeys
from waooaw_celery.edges.access.principals_file import new_key, parse_principals
from waooaw_celery.testing.embedded import valkey

KEY, OTHER_KEY = new_key(), new_key()


@dataclass(frozen=True)
class Publisher:
    """Publishes at the edge."""

    world: EdgeWorld
    http: httpx2.Client

    def send(self, message: HTTPMessage, **headers: str) -> httpx2.Response:
        """Send what the cloudevents package has made."""
        named: dict[str, str] = {**message.headers, **headers}
        return self.http.post("/v1/events", content=message.body, headers=named)

    def arrived(self, payload: Any) -> int:
        """How often the agent got an event with a payload."""
        return self.world.happened().count(f"order {json.dumps(payload)}")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    folder = tmp_path_factory.mktemp("http-edge-events")
    principals = parse_principals(
        {
            "shop": {"from_agent": "shop", "keys": [KEY[1]], "may_publish": ["orders.*"]},
            "other": {"from_agent": "other", "keys": [OTHER_KEY[1]], "may_publish": ["orders.*"]},
        }
    )
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as world:
        edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.HTTP], authentication=ApiKeys(principals)))
        with (
            served(edge.asgi) as server,
            httpx2.Client(base_url=server.url, headers={"X-API-Key": KEY[0]}, timeout=30) as http,
        ):
            yield Publisher(world, http)


def event_of(data: Any, **attributes: Any) -> CloudEvent:
    """Return an event as the cloudevents package has it."""
    given = {
        "id": f"id {uuid4()} /ü",
        "source": "https://shop.example/tills/7",
        "type": "orders.created",
        "specversion": "1.0",
        "time": datetime.now(UTC),
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes={**given, **attributes}, data=data)


@pytest.mark.parametrize("write", [to_structured_event, to_binary_event])
def test_an_event_of_the_cloudevents_package_is_published(publisher: Publisher, write: Any) -> None:
    """In both modes its data arrives at the subscriber, and the ledger knows who published it."""
    data = {"order": uuid4().hex, "name": "Zoë"}
    answer = publisher.send(write(event_of(data, subject="order 7 é", dataschema="https://schemas.example/order")))
    assert answer.status_code == 202, answer.text
    until(lambda: publisher.arrived(data) == 1, "the event")
    [published] = answer.json()["events"]
    record = publisher.world.trail.receipt(published["event_id"])
    assert (record.receipt.from_agent, record.identity) == ("shop", "http:shop")
    [receipt] = published["receipts"].values()
    assert publisher.http.get(f"/v1/receipts/{receipt['message_id']}").json()["from_agent"] == "shop"


def test_the_same_event_is_published_once(publisher: Publisher) -> None:
    """Sent three times, it arrives once; one of another source or another principal with its id arrives too."""
    data = {"order": uuid4().hex}
    message = to_structured_event(event_of(data, id="7"))
    ids = {publisher.send(message).json()["events"][0]["event_id"] for _ in range(3)}
    assert len(ids) == 1
    elsewhere = to_structured_event(event_of({**data, "n": 2}, id="7", source="/another"))
    assert publisher.send(elsewhere).json()["events"][0]["event_id"] not in ids
    own = publisher.send(to_structured_event(event_of({**data, "n": 3}, id="7")), **{"X-API-Key": OTHER_KEY[0]})
    assert own.json()["events"][0]["event_id"] not in ids
    for each in (data, {**data, "n": 2}, {**data, "n": 3}):
        until(lambda each=each: publisher.arrived(each) == 1, "the event")  # type: ignore[misc]


def test_a_batch_is_published_whole_or_not(publisher: Publisher) -> None:
    """All of its events are checked before the first is published."""
    datas = [{"order": uuid4().hex} for _ in range(3)]
    good = [
        {"specversion": "1.0", "id": uuid4().hex, "source": "/till", "type": "orders.created", "data": data}
        for data in datas
    ]
    headers = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}
    bad = [*good, {**good[0], "type": "salaries.changed"}]
    refused = publisher.http.post("/v1/events", content=json.dumps(bad), headers=headers)
    assert (refused.status_code, "may not publish to salaries.changed" in refused.text) == (403, True)
    answer = publisher.http.post("/v1/events", content=json.dumps(good), headers=headers)
    assert (answer.status_code, len(answer.json()["events"])) == (202, 3)
    for data in datas:
        until(lambda data=data: publisher.arrived(data) == 1, "the event")  # type: ignore[misc]


def test_a_text_is_published_as_a_text(publisher: Publisher) -> None:
    """In binary mode, data of text/* is a string."""
    text = uuid4().hex
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/t", "ce-type": "orders.noted"}
    answer = publisher.http.post("/v1/events", content=text, headers={**headers, "Content-Type": "text/plain"})
    assert answer.status_code == 202
    until(lambda: publisher.arrived(text) == 1, "the event")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"specversion": "0.3"}, 400),
        ({"id": ""}, 400),
        ({"id": 7}, 400),
        ({"source": "\x00"}, 400),
        ({"source": "x" * 501}, 400),
        ({"type": "orders.*"}, 400),
        ({"type": "Orders created"}, 400),
        ({"type": "salaries.changed"}, 403),
        ({"time": "yesterday"}, 400),
        ({"time": "2026-01-01T00:00:00"}, 400),
        ({"time": 7}, 400),
        ({"dataschema": 7}, 400),
        ({"subject": ["x"]}, 400),
        ({"correlationid": "a b"}, 400),
        ({"data_base64": "eA=="}, 400),
        ({"data": "x", "datacontenttype": "image/png"}, 202),
        ({"data": {"x": 1}, "datacontenttype": "image/png"}, 400),
    ],
    ids=range(17),
)
def test_a_bad_event_is_refused(publisher: Publisher, changes: dict[str, Any], status: int) -> None:
    """With a sentence, and nothing is published."""
    event = {"specversion": "1.0", "id": uuid4().hex, "source": "/till", "type": "orders.created", **changes}
    headers = {"Content-Type": "application/cloudevents+json"}
    answer = publisher.http.post("/v1/events", content=json.dumps(event), headers=headers)
    assert (answer.status_code, "detail" in answer.json()) == (status, status != 202), answer.text


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "application/cloudevents+xml"}, b"<event/>", 415),
        ({"Content-Type": "application/cloudevents+json"}, b"[]", 400),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"{}", 400),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"[" + b"{}," * 500 + b"{}]", 400),
        ({"Content-Type": "image/png", "ce-specversion": "1.0", "ce-id": "1"}, b"\x89PNG", 415),
        ({"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "%ff"}, b"{}", 400),
        ({"Content-Type": "application/json", "ce-specversion": "1.0", "ce-data": "1"}, b"{}", 400),
        ({"Content-Type": "text/plain", "ce-specversion": "1.0", "ce-id": "1"}, b"\xff", 400),
    ],
    ids=range(9),
)
def test_what_is_no_event_is_refused(
    publisher: Publisher, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Another type, another form, too many, or a broken header."""
    answer = publisher.http.post("/v1/events", content=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
