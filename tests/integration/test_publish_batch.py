"""A publish batch sends exactly the messages that Celery and Kombu would send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from celery import signals
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from waooaw_celery import AgentApp, Message, MessageBus, Priority, create_app
from waooaw_celery.app.publishing.publish_batch import PublishBatch
from waooaw_celery.broker.incoming.delivery import to_text
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.messages.reply_to import ReplyTo

TARGET = HandlerName("wire-test", "command")


@pytest.fixture
def app(redis_url: str) -> Iterator[AgentApp]:
    with closing(create_app(broker_url=redis_url, result_backend=redis_url, waooaw_agents=TARGET.agent)) as app:
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url.replace("redis+socket://", "unix://")) as client:
        yield client
        client.delete(*client.keys(f"{agent_queue(TARGET.agent).name}*") or ["-"])


def take_waiting(client: Any) -> list[dict[str, Any]]:
    """Remove the take_waiting messages of the agent and return them, without their delivery tags."""
    found = []
    for key in sorted(client.keys(f"{agent_queue(TARGET.agent).name}*")):
        if not key.endswith(b"bell"):
            found += [json.loads(item) for item in client.lrange(key, 0, -1)]
            client.delete(key)
    for message in found:
        assert message["properties"].pop("delivery_tag")
    return found


def messages() -> list[Message]:
    to: dict[str, Any] = {"to_agent": TARGET.agent}
    return [
        Message(from_agent="ann", payload={"n": [1, None, "ü"]}, priority=Priority.URGENT, **to),
        Message(from_agent="bob", payload="text", ttl_seconds=None, correlation_id="thread", **to),
        Message(from_agent="ann", payload=None, causation_id="c", conversation_id="d", **to),
        Message(from_agent="ann", payload={"at": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=7)}, **to),
        Message(from_agent="ann", payload=["the same text again"] * 100, **to),
        Message(from_agent="ann", payload=["the same text again"] * 100, compression="none", **to),
        Message(from_agent="ann", payload=["the same text"] * 200, serializer="msgpack", compression="zstd", **to),
        Message(from_agent="ann", payload={"n": b"\x00"}, serializer="protobuf", **to),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task_serializer": "msgpack", "task_compression": "none"},
        {"waooaw_agent_serializers": {TARGET.agent: "protobuf"}, "waooaw_compress_above": 0},
    ],
)
def test_a_batch_sends_the_same_messages_as_celery(app: AgentApp, client: Any, changes: dict[str, Any]) -> None:
    """A batch on this package's transport leaves the same messages as Celery does one by one."""
    app.conf.update(changes)
    batch = [(TARGET, app.message_factory.complete(TARGET, message)) for message in messages()]
    with app.producer_or_acquire() as producer:
        publication = PublishBatch(app, batch)
        publication.check_bodies()
        assert publication.may_bypass_celery()
        assert publication.publish_together(producer, lambda: None)
        directly = take_waiting(client)
        one_by_one = PublishBatch(app, batch)  # it has no bodies yet: Celery's producer encodes them
        for target, message in batch:
            one_by_one.publish_one(producer, target, message)
        by_celery = take_waiting(client)
    assert len(directly) == len(batch)
    assert directly == by_celery


ids = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
sent_messages = st.builds(
    Message,
    from_agent=st.sampled_from(["ann", "bob"]),
    to_agent=st.just(TARGET.agent),
    message_type=st.sampled_from(["command", "query", "ack"]),
    payload=st.none() | st.text() | st.integers() | st.dictionaries(st.text(), st.text() | st.floats(0, 1)),
    priority=st.sampled_from(Priority),
    ttl_seconds=st.none() | st.integers(1, 10**9) | st.floats(0.001, 1e9),
    message_id=ids,
    correlation_id=st.none() | ids,
    conversation_id=st.none() | ids,
    causation_id=st.none() | ids,
    compression=st.sampled_from([None, "none", "zlib"]),
    serializer=st.sampled_from([None, "json", "msgpack"]),
    resent=st.integers(0, 2),
    identity=st.sampled_from([None, "did:web:example.org:%s", 'a"b%d{0}']),
)


@pytest.mark.parametrize(
    "reply_to", [None, ReplyTo(on_reply="ann.answer"), ReplyTo(waiting=("ann",), stream=True)]
)
def test_a_template_gives_the_same_text_as_the_encoder(app: AgentApp, reply_to: ReplyTo | None) -> None:
    """Every field, and their order, is that of a message which is encoded as a whole."""

    with app.producer_or_acquire() as producer:
        channel = producer.channel

        @settings(max_examples=300, deadline=None)
        @given(message=sent_messages)
        def check(message: Message) -> None:
            target = HandlerName(TARGET.agent, message.message_type.value)
            message = app.message_factory.complete(target, message)
            publication = PublishBatch(app, [(target, message)], reply_to)
            publication.check_bodies()
            [(list_, bell, text)] = publication.texts(channel)
            [encoded] = publication._bodies or []
            written = publication._written(channel, target, message, encoded.packed)
            assert (list_, bell) == channel.keys.list_and_bell(agent_queue(TARGET.agent).name, written)
            written["properties"]["delivery_tag"] = json.loads(text)["properties"]["delivery_tag"]
            assert text == to_text(written)

        check()


def test_headers_that_show_arguments_show_those_of_their_own_message(app: AgentApp, client: Any) -> None:
    """With waooaw_log_payloads, no message has the arguments of an earlier one in its headers."""
    app.conf.waooaw_log_payloads = True
    batch = [
        (
            TARGET,
            app.message_factory.complete(TARGET, Message(from_agent="ann", to_agent=TARGET.agent, payload=text)),
        )
        for text in ("first", "second")
    ]
    with app.producer_or_acquire() as producer:
        publication = PublishBatch(app, batch)
        publication.check_bodies()
        assert publication.publish_together(producer, lambda: None)
    shown = sorted(message["headers"]["argsrepr"] for message in take_waiting(client))
    assert shown == ["('first',)", "('second',)"]


def test_receivers_of_celerys_signals_are_called(app: AgentApp, client: Any) -> None:
    """With a receiver of before_task_publish, Celery publishes the batch, and the receiver may add headers."""

    def add(headers: dict[str, Any], **_: Any) -> None:
        headers["traceparent"] = "00-1"

    signals.before_task_publish.connect(add)
    try:
        MessageBus(app).send_many(
            message.evolve(message_id=f"signalled-{n}") for n, message in enumerate(messages())
        )
    finally:
        signals.before_task_publish.disconnect(add)
    assert [message["headers"]["traceparent"] for message in take_waiting(client)] == ["00-1"] * len(messages())


@pytest.mark.parametrize("setting", [{"task_send_sent_event": True}, {"task_protocol": 1}])
def test_events_and_the_old_protocol_are_published_by_celery(redis_url: str, setting: dict[str, Any]) -> None:
    """A batch is not published directly if Celery must send events or use protocol 1."""
    with closing(create_app(broker_url=redis_url, **setting)) as app:
        assert not PublishBatch(app, []).may_bypass_celery()


def test_a_refused_batch_publishes_nothing(app: AgentApp, client: Any) -> None:
    """If the last check raises, no message of the batch is published."""

    def refuse() -> None:
        raise PermissionError("no")

    batch = [(TARGET, messages()[0])]
    with app.producer_or_acquire() as producer:
        publication = PublishBatch(app, batch)
        publication.check_bodies()
        with pytest.raises(PermissionError):
            publication.publish_together(producer, refuse)
    assert take_waiting(client) == []
