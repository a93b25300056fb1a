"""What is published again: the same message, with all that follows it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import pytest
from celery import chain, chord
from lost_messages import (
    declare_agent,
    event_names,
    lose_everything,
    raw_messages,
    read_record,
    recover,
    redis_client,
)
from support import Broker, queue_length, settled, until

from waooaw_celery import AgentApp, EventBus, Message, MessageBus, MessageStatus, MessageType, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.incoming.delivery import DELIVERY_COUNT
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.publish_options import RECOVERED_HEADER
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.subscriptions import Subscription

Process: TypeAlias = subprocess.Popen[bytes]


def test_a_republished_message_equals_the_original(broker: Broker, app: AgentApp) -> None:
    """Headers, body and queue of messages, ``.delay`` calls, requests and parts of a canvas do not change."""
    name = declare_agent(broker, app, "command", "echo", "nap", "replied")
    bus, to = MessageBus(app), {"from_agent": "tests", "to_agent": name}
    value = {"at": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=7), "text": "ü" * 600}
    bus.send(Message(payload=value, priority=Priority.URGENT, ttl_seconds=None, correlation_id="a", **to))
    bus.send(Message(payload=value, serializer="msgpack", compression="none", priority=Priority.LOW, **to))
    bus.send(Message(message_type=MessageType.COMMAND, causation_id="b", conversation_id="c", resent=2, **to))
    echo = app.signature(f"{name}.echo", kwargs={"value": 1})
    later = app.signature(f"{name}.command", args=({"n": value},), immutable=True)
    due = datetime.now(UTC) + timedelta(seconds=600)
    app.send_task(f"{name}.echo", args=({"args": [1]},), eta=due, time_limit=7, soft_time_limit=5)
    app.send_task(f"{name}.echo", kwargs={"args": [], "kwargs": {}}, headers={"mine": "x"}, shadow="s")
    app.send_task(f"{name}.echo", (1,), link=[later], link_error=[later], expires=900, priority="high")
    app.send_task(f"{name}.echo", (1,), serializer="msgpack", ignore_result=True, group_id="g", group_index=3)
    chain(echo, later).apply_async()
    chord([echo.clone(), echo.clone()], later).apply_async()
    Requests(app).request_later(name, "nap", {"seconds": 0}, on_reply="replied", from_agent=name, timeout=60)
    before = raw_messages(broker, name)
    assert len(before) == 11
    lose_everything(broker)
    result = recover(app, name)
    assert (len(result.recovered), result.failed, result.error) == (11, [], None)
    after = raw_messages(broker, name)
    for _, message in after:
        assert message["headers"].pop(RECOVERED_HEADER) == 1
    by_id = {message["headers"]["id"]: (list_, message) for list_, message in after}
    for list_, message in before:
        new_list, republished = by_id[message["headers"]["id"]]
        assert new_list == list_
        for each in (message, republished):  # Celery does not distinguish None and False
            each["headers"]["ignore_result"] = bool(each["headers"]["ignore_result"])
            # Nothing reads these on Redis: the address of replies, and options that Celery leaves in by accident.
            for name in ("reply_to", "argsrepr", "kwargsrepr"):
                each["properties"].pop(name, None)
        assert republished["headers"] == message["headers"]
        assert republished == message


def test_a_lost_event_keeps_its_attributes(broker: Broker, app: AgentApp) -> None:
    """The republished message to a subscriber has the attributes of the event."""
    agent = broker.name()
    app.registry.declare(agent, ["event.noted"], f"{agent}@gone", 0.001)
    app.subscriptions.declare([Subscription(agent=agent, name="noted", patterns=(f"{agent}.*",))])
    published = EventBus(app).publish(topic=f"{agent}.new", event={"n": 1})
    assert len(published.receipts) == 1
    before = raw_messages(broker, agent)
    lose_everything(broker)
    assert recover(app, agent).recovered == [before[0][1]["headers"]["id"]]
    [(_, republished)] = raw_messages(broker, agent)
    assert republished["headers"].pop(RECOVERED_HEADER) == 1
    assert republished == before[0][1]


def test_a_lost_request_for_a_reply_is_answered(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """A request whose answer is a message is recovered, and its reply arrives."""
    requester, responder = broker.name(), declare_agent(broker, app, "echo")
    start(app, requester)
    params = {"to_agent": responder, "method": "echo", "params": {"value": 5}, "timeout": 120}
    message_id = Requests(app).request(requester, "ask_for_reply", params, timeout=20)
    app.receipts.flush()
    lose_everything(broker)
    assert recover(app, responder).recovered == [message_id]
    start(app, responder)
    until(lambda: Requests(app).request(requester, "replies", timeout=20), "the reply")
    [reply] = Requests(app).request(requester, "replies", timeout=20)
    assert (reply["message_id"], reply["result"]) == (message_id, 5)


def test_a_chain_continues_after_its_lost_first_step(
    broker: Broker, app: AgentApp, start: Callable[..., Process], tmp_path: Path
) -> None:
    """The second step is recorded with the first, and runs after the first was recovered."""
    agent = declare_agent(broker, app, "command", "echo")
    first = app.signature(f"{agent}.echo", kwargs={"value": 1})
    then = app.signature(f"{agent}.command", args=({"touch": str(tmp_path)},), immutable=True)
    result = chain(first, then).apply_async()
    app.receipts.flush()
    lose_everything(broker)
    assert recover(app, agent).recovered == [result.parent.id]
    start(app, agent)
    until(lambda: list(tmp_path.iterdir()), "the second step")
    assert settled(app, result.id) is MessageStatus.HANDLED
    assert [path.name for path in tmp_path.iterdir()] == [result.id]


@pytest.mark.slow
def test_a_chain_whose_first_step_runs_twice_continues_once(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """The step was redelivered while its first worker was alive: both attempts end, and neither fails."""
    agent = declare_agent(broker, app, "command", "nap")
    first = app.signature(f"{agent}.nap", kwargs={"seconds": 2})
    then = app.signature(f"{agent}.command", args=({},), immutable=True)
    result = chain(first, then).apply_async()
    app.receipts.flush()
    with redis_client(broker) as redis:
        [key] = [key for key in redis.keys(f"{agent_queue(agent).name}*") if not key.endswith(b"bell")]
        copy = json.loads(redis.lindex(key, 0))
        copy["headers"][DELIVERY_COUNT] = 1
        start(app, agent, "-c", "2")

        def was_begun_a_while_ago() -> bool:
            times = [event.at for event in read_record(app, result.parent.id).events if event.event == "delivered"]
            return bool(times) and datetime.now(UTC) - times[0] > timedelta(seconds=0.5)

        until(was_begun_a_while_ago, "the first attempt")
        redis.lpush(key, json.dumps(copy))  # it ends later: by then it is recorded that the second step was sent
    until(lambda: event_names(app, result.parent.id).count("delivered") == 2, "both attempts")
    until(lambda: has_ended(app, result.id), "the second step")
    with redis_client(broker) as redis:
        until(lambda: redis.hlen("unacked") == 0 and queue_length(app, agent) == 0, "all acknowledgements")
    events = [event.event for event in read_record(app, result.parent.id).events]
    assert (events.count("delivered"), events.count("handled"), events.count("failed")) == (2, 1, 0)
    assert event_names(app, result.id).count("handled") == 1
    assert "sent already" not in (broker.folder / f"{agent}.log").read_text()


def has_ended(app: AgentApp, message_id: str) -> bool:
    """Whether a message has a final status."""
    with suppress(UnknownMessage):
        return MessageBus(app).receipt(message_id).status.final
    return False


def test_a_recorded_reply_that_was_not_published_arrives(
    broker: Broker, app: AgentApp, start: Callable[..., Process]
) -> None:
    """The worker that was to publish the reply was killed; the recovery publishes it."""
    agent = broker.name()
    start(app, agent)
    asked_at = datetime.now(UTC).isoformat()
    payload = {"message_id": "asked", "asked_at": asked_at, "result": 7, "error": None}
    reply = Message(
        from_agent="other",
        to_agent=agent,
        message_type=MessageType.RESPONSE,
        payload=payload,
        retention=RetentionPolicy.DAYS_90,
    )
    app.receipts.begin_recording([(reply, "replied")])()
    assert recover(app, agent).recovered == [reply.message_id]
    assert settled(app, reply.message_id) is MessageStatus.HANDLED
    [received] = Requests(app).request(agent, "replies", timeout=20)
    assert (received["message_id"], received["result"]) == ("asked", 7)
