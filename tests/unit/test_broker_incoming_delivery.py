"""The forms of a message on its way: as text on Redis, as an item of another broker, as delivered."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import pytest

from waooaw_celery.broker.incoming.delivery import (
    Message,
    mark_redelivered,
    to_redis_item,
    to_text,
    without_compression,
)
from waooaw_celery.broker.incoming.embed import check_embed
from waooaw_celery.errors import DecodingFailed

TYPES = ("application/json", "utf-8")


def item(body: Any = "{}", headers: Any = None, properties: Any = None) -> Any:
    """Return a message of another broker as a dead letter stores it."""
    return json.loads(to_redis_item(body, *TYPES, {} if headers is None else headers, properties or {}))


@pytest.mark.parametrize("body", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_travel_as_base64(body: Any) -> None:
    """JSON has no bytes; the property says how they are written."""
    stored = item(body)
    assert b64decode(stored["body"]) == b"\x00\xff"
    assert stored["properties"]["body_encoding"] == "base64"


def test_text_travels_as_it_is() -> None:
    """It needs no encoding."""
    stored = item("text")
    assert (stored["body"], stored["properties"]["body_encoding"]) == ("text", None)
    assert (stored["content-type"], stored["content-encoding"]) == TYPES


def test_only_the_properties_of_a_message_are_kept() -> None:
    """Those of one delivery are not."""
    properties = {"priority": 3, "delivery_tag": "x", "delivery_info": {"routing_key": "q"}, "message_id": "m"}
    kept = {"priority": 3, "delivery_info": {"routing_key": "q"}, "message_id": "m", "body_encoding": None}
    assert item(properties=properties)["properties"] == kept
    assert item()["properties"] == {"delivery_info": {}, "body_encoding": None}


def nested() -> Any:
    """Return a value that is nested too deep to be written or shown."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


def circular() -> Any:
    """Return a value that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("headers", "shown"),
    [({"x": object}, "object"), (nested(), "nested too deeply"), (circular(), "self")],
    ids=["class", "nested", "circular"],
)
def test_headers_that_json_cannot_express_become_text(headers: Any, shown: str) -> None:
    """A dead letter keeps what can be shown of them."""
    stored = item(b"body", headers, {"priority": 3})
    assert shown in stored["headers"]
    assert stored["properties"] == {"body_encoding": "base64"}


def test_values_that_only_kombu_can_write_are_written_by_kombu() -> None:
    """Such as a datetime in a header."""
    text = to_text({"headers": {"at": datetime(2026, 3, 1, tzinfo=UTC)}})
    assert json.loads(text)["headers"]["at"]["__type__"] == "datetime"
    assert to_text({"a": 1}) == '{"a": 1}'


def test_unpaired_surrogates_do_not_stop_a_dead_letter() -> None:
    """They are escaped."""
    assert item("\ud800")["body"] == "\ud800"


def test_a_redelivered_message_is_marked_where_celery_looks() -> None:
    """In the headers, and in the delivery info where there is one."""
    message: dict[str, Any] = {"headers": {}, "properties": {"delivery_info": {"routing_key": "q"}}}
    mark_redelivered(message)
    assert message["headers"] == {"redelivered": True}
    assert message["properties"]["delivery_info"] == {"routing_key": "q", "redelivered": True}
    for properties in ({}, {"delivery_info": None}, None):
        bare: dict[str, Any] = {"headers": {}, "properties": properties}
        mark_redelivered(bare)
        assert bare == {"headers": {"redelivered": True}, "properties": properties}


def test_the_header_of_the_compression_goes_when_the_body_is_unpacked() -> None:
    """Celery would unpack it a second time."""
    plain = {"id": "x"}
    assert without_compression(plain) is plain
    assert without_compression({"id": "x", "compression": "gzip"}) == plain


def test_a_message_that_the_guard_did_not_see_is_kombus() -> None:
    """A broadcast, for example: its body is decoded when it is read."""
    payload = {
        "body": '{"a": 1}',
        "content-type": TYPES[0],
        "content-encoding": TYPES[1],
        "headers": {},
        "properties": {"delivery_tag": "t", "delivery_info": {}, "body_encoding": None},
    }

    class Channel:
        """What Kombu needs of a channel."""

        def decode_body(self, body: Any, encoding: Any) -> Any:
            return body

    message = Message(payload, channel=Channel(), accept={TYPES[0]})
    assert not message.guarded
    assert message.payload == {"a": 1}


# --- the signatures in the body of a task


def task(name: Any = "a.command", **fields: Any) -> dict[str, Any]:
    return {"task": name, **fields}


@pytest.mark.parametrize(
    "embed",
    [
        None,
        {},
        {"callbacks": None, "errbacks": [], "chain": [task(args=[1], kwargs={}, options={})]},
        {"chord": task(args=None, kwargs=None, options=None, subtask_type=None)},
        {"callbacks": [task("x" * 255), task("x")]},
        {"chain": [task(subtask_type="group", kwargs={"tasks": [task(), task()]})]},
        {"chain": [task(subtask_type="chord", kwargs={"header": task(), "body": task()})]},
        {"chain": [task(subtask_type="other", kwargs={"tasks": 5})]},
        {"callbacks": [task(options={"link": [task()], "link_error": task()})]},
    ],
)
def test_valid_signatures_pass(embed: Any) -> None:
    """Also within a group, a chord and the options of another."""
    check_embed(embed)


@pytest.mark.parametrize(
    ("embed", "reason"),
    [
        ({"callbacks": 5}, "callbacks are not a list"),
        ({"chain": [5]}, "chain does not name a task"),
        ({"chain": [{}]}, "chain does not name a task"),
        ({"chord": {"task": 5}}, "chord does not name a task"),
        ({"errbacks": [task("")]}, "errbacks does not name a task"),
        ({"errbacks": [task("x" * 256)]}, "errbacks does not name a task"),
        ({"errbacks": [task("a\nb")]}, "errbacks does not name a task"),
        ({"chain": [task(args={})]}, "arguments of a.command in its chain are not a list"),
        ({"chain": [task(kwargs=[])]}, "options of a.command in its chain are not a mapping"),
        ({"chain": [task(options=[])]}, "options of a.command in its chain are not a mapping"),
        ({"chain": [task(subtask_type=5)]}, "type of a.command in its chain is not text"),
        ({"chain": [task(subtask_type="group", kwargs={"tasks": [5]})]}, "chain does not name a task"),
        ({"chain": [task(subtask_type="chain", kwargs={"tasks": 5})]}, "chain does not name a task"),
        ({"chain": [task(subtask_type="chord", kwargs={"header": 5})]}, "chain does not name a task"),
        ({"chain": [task(subtask_type="chord", kwargs={"body": 5})]}, "chain does not name a task"),
        ({"callbacks": [task(options={"link": 5})]}, "callbacks does not name a task"),
        ({"callbacks": [task(options={"link_error": [5]})]}, "callbacks does not name a task"),
    ],
)
def test_malformed_signatures_are_refused(embed: Any, reason: str) -> None:
    """Celery would raise while it sends them, after the handler has ended."""
    with pytest.raises(DecodingFailed, match=reason):
        check_embed(embed)
